"""`bench.py peers`: what its checks accept and refuse, and how it deals with programs that misbehave."""

import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torchvision.transforms.v2 import RandomResizedCrop

from benchmarks import record
from benchmarks.measure import Ratio, Sample
from benchmarks.peers import check, command, contest, environments, gradient, layout, observe, registry, report, run
from benchmarks.peers.process import CHILD, Child, Missing, PeerError
from benchmarks.peers.registry import OURS, PEERS, Peer
from shards.format import ShardSet

SIDE = 32
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
SOURCE = Image.fromarray(gradient.image())
SIZE = [gradient.WIDTH, gradient.HEIGHT]

# --- what a crop is, seen from its colours


def cut(left: float, top: float, width: float, height: float, flip: bool = False) -> np.ndarray:
    """(3, SIDE, SIDE) float32, normalised: a region in pixels, resized by PIL."""
    box = (left, top, left + width, top + height)
    pixels = np.asarray(SOURCE.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=box), dtype=np.float32)
    pixels = pixels[:, ::-1] if flip else pixels
    return ((pixels - MEAN) / STD).transpose(2, 0, 1).astype(np.float32)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    "box", [(0, 0, 320, 240), (10, 20, 200, 100), (250, 0, 70, 240), (3, 200, 60, 40), (100.0, 50.0, 20.0, 30.0)]
)
def test_a_crop_is_found_from_its_colours(box: tuple[float, ...], flip: bool) -> None:
    crop = cut(*box, flip=flip)
    found = observe.describe_crops(crop[None], MEAN, STD, SIZE)
    shares = np.array(box) / [320, 240, 320, 240]
    assert np.allclose(
        [found[name][0] for name in ("left", "top", "width", "height")], shares, atol=0.01
    )  # 2.5 grey levels
    assert (found["flipped"], found["upside_down"]) == ([flip], [False])
    assert found["blue"][0] == pytest.approx(gradient.BLUE, abs=0.5)
    assert found["error"][0] < 0.03


# --- the checks


def law(num: int, seed: int, scale: tuple[float, float] = (0.08, 1.0), ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flipped: float = 0.5, centred: bool = False) -> np.ndarray:  # fmt: skip
    """(num, 3, SIDE, SIDE): crops drawn by torchvision."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    draw, crops = RandomResizedCrop(SIDE, scale, ratio), []
    whole = torch.empty(3, gradient.HEIGHT, gradient.WIDTH)
    for _ in range(num):
        box = draw.make_params([whole])
        left, top, width, height = (box[name] for name in ("left", "top", "width", "height"))
        if centred:
            left, top = (gradient.WIDTH - width) / 2, (gradient.HEIGHT - height) / 2
        crops.append(cut(left, top, width, height, rng.random() < flipped))
    return np.stack(crops)


def seen(images: np.ndarray) -> dict[str, Any]:
    return observe.describe(images) | observe.describe_crops(images, MEAN, STD, SIZE)


NUM = 500


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    return seen(law(NUM, seed=1))


def test_the_same_law_passes(expected: dict[str, Any]) -> None:
    assert check.crop_faults(seen(law(NUM, seed=2)), expected) == []


@pytest.mark.parametrize(
    ("what", "wrong"),
    [
        ("area", {"scale": (0.25, 1.0)}),
        ("aspect ratio", {"ratio": (1 / 2, 2.0)}),
        ("flipped", {"flipped": 0.0}),
        ("centre", {"centred": True}),
    ],
)
def test_another_crop_law_is_refused(what: str, wrong: dict[str, Any], expected: dict[str, Any]) -> None:
    faults = check.crop_faults(seen(law(NUM, seed=2, **wrong)), expected)
    assert faults
    assert all(what in fault for fault in faults) or wrong.get("scale")  # larger crops also lie nearer the centre
    assert any(what in fault for fault in faults)


@pytest.mark.parametrize(
    ("what", "spoil"),
    [
        ("blue", lambda images: images[:, ::-1]),
        ("blue", lambda images: images / 255),
        ("blue", lambda images: images + 0.2),
        ("upside down", lambda images: images[:, :, ::-1]),
        ("colours are", lambda images: np.roll(images, SIDE // 2, axis=3)),
    ],
)
def test_other_pixels_than_a_crops_are_refused(what: str, spoil: Callable[..., Any], expected: dict[str, Any]) -> None:
    assert what in check.crop_faults(seen(spoil(law(50, seed=2))), expected)[0]


def test_a_small_sample_of_the_right_law_passes(expected: dict[str, Any]) -> None:
    """The limits are those of chance, however few crops there are."""
    for seed in range(10):
        assert check.crop_faults(seen(law(20, seed=10 + seed)), expected) == []


def photographs(num: int, seed: int) -> np.ndarray:
    """(num, 3, 8, 8) normalised images, each with a brightness and a contrast of its own; more red than blue."""
    rng = np.random.default_rng(seed)
    level, contrast = rng.uniform(60, 160, (num, 1, 1, 1)), rng.uniform(20, 60, (num, 1, 1, 1))
    pixels = level + contrast * rng.normal(size=(num, 3, 8, 8)) + np.array([40, 10, -20])[:, None, None]
    normalised = (pixels - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    return np.asarray(normalised, np.float32)


@pytest.mark.parametrize(
    ("what", "spoil"),
    [
        ("red's mean", lambda images: images[:, ::-1]),
        ("std", lambda images: images * (np.reshape(STD, (3, 1, 1)) / 127.5)),
        ("std", lambda images: images / 255),
        ("mean", lambda images: images + 0.3),
        ("std", lambda images: images.clip(-0.5, 0.5)),
    ],
)
def test_other_colours_are_refused(what: str, spoil: Callable[..., Any]) -> None:
    right = observe.describe(photographs(2000, 1))
    assert check.pixel_faults(observe.describe(photographs(2000, 2)), right) == []
    assert any(what in fault for fault in check.pixel_faults(observe.describe(spoil(photographs(2000, 2))), right))


@pytest.mark.parametrize(
    ("what", "images"),
    [
        ("dtype is uint8", np.zeros((4, 3, SIDE, SIDE), np.uint8)),
        ("shape", np.zeros((4, SIDE, SIDE, 3), np.float32)),
        ("shape", np.zeros((5, 3, SIDE, SIDE), np.float32)),
        ("not finite", np.full((4, 3, SIDE, SIDE), np.nan, np.float32)),
    ],
)
def test_another_form_is_refused(what: str, images: np.ndarray) -> None:
    assert check.form_faults(observe.describe(np.zeros((4, 3, SIDE, SIDE), np.float32)), 4, SIDE) == []
    (fault,) = check.form_faults(observe.describe(images), 4, SIDE)
    assert what in fault


def test_one_bad_batch_among_good_ones_is_seen() -> None:
    good = np.zeros((2, 3, 8, 8), np.float32)
    whole = observe.joined([observe.describe(one) for one in (good, good * np.nan, good)])
    assert not whole["finite"]
    whole = observe.joined([observe.describe(one) for one in (good, good[:1], good)])
    assert whole["shape"] == [1, 3, 8, 8], "a last batch that is smaller"
    assert len(observe.joined([observe.describe(good)] * 3)["means"]) == 6


def test_the_distance_is_kolmogorov_smirnovs() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=60), rng.normal(0.5, 2, size=90)
    brute = max(abs((a <= x).mean() - (b <= x).mean()) for x in np.concatenate([a, b]))
    assert check.ks_distance(a, b) == pytest.approx(brute)
    same = [check.ks_distance(rng.random(200), rng.random(300)) for _ in range(400)]
    assert 0.01 < np.mean(np.array(same) > check.ks_limit(200, 300, level=0.05)) < 0.09


# --- processes that misbehave

GOOD = """
import numpy as np
def batches(job):
    print("a library's chatter")
    while True:
        yield np.zeros((job.batch_size, 3, 4, 4), np.float32)
"""


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Callable[..., Child]]:
    """`child(source, **job)` starts an adapter; all end with the test."""
    started = []

    def start(source: str, limit_s: float = 60.0, script: Path = CHILD, **job: Any) -> Child:
        adapter = tmp_path / "adapter.py"
        adapter.write_text(source)
        cores = sorted(os.sched_getaffinity(0))
        told = {"package": "numpy", "batch_size": 5, "workers": 1, "cores": cores, "settle": 2} | job
        command = [sys.executable, "-P", str(script), str(adapter)]
        started.append(Child("fake", command, told, tmp_path / "log.txt", limit_s))
        return started[-1]

    yield start
    for one in started:
        one.close()


def test_a_program_is_started_and_timed(child: Callable[..., Child], tmp_path: Path) -> None:
    program = child(GOOD)
    assert program.ask("start")["version"] == np.__version__
    done = program.ask("run", seconds=0.2)
    assert done["images"] % 5 == 0
    assert 0.2 <= done["seconds"] < 5
    assert program.ask("describe", num_images=12)["means"] == [[0, 0, 0]] * 15
    assert "chatter" in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize(
    ("source", "kind", "words"),
    [
        ("raise ImportError('no module ffcv')", Missing, "no module ffcv"),
        ("def batches(job):\n  raise OSError('disk\\nis full')\n  yield", PeerError, "OSError: disk is full"),
        ("import os, sys\nprint('bad alloc', file=sys.stderr)\nsys.stderr.flush()\nos._exit(3)", PeerError,
         "ended with status 3 at 'start': bad alloc"),
        ("import os\nos.kill(os.getpid(), 11)", PeerError, "was ended by signal 11 at 'start'"),
        ("def batches(job):\n  return iter([])", PeerError, "StopIteration"),
    ],
)  # fmt: skip
def test_a_failure_is_one_clear_line(
    child: Callable[..., Child], source: str, kind: type[PeerError], words: str
) -> None:
    with pytest.raises(PeerError) as caught:
        child(source).ask("start")
    assert type(caught.value) is kind
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.peer == "fake"


def test_a_program_that_hangs_is_given_up(child: Callable[..., Child]) -> None:
    program = child("import time\ntime.sleep(600)", limit_s=1.0)
    before = time.monotonic()
    with pytest.raises(PeerError, match=r"no answer to 'start' in 1 s \(see .*log.txt\)"):
        program.ask("start")
    program.close()
    assert time.monotonic() - before < 20


@pytest.mark.parametrize("rubbish", ["hello", "[1, 2]", '{"other": 1}', '{"answer": 3}', "\\xff\\xfe"])
def test_rubbish_is_no_answer(child: Callable[..., Child], tmp_path: Path, rubbish: str) -> None:
    script = tmp_path / "child.py"
    script.write_text(f"import sys\nfor line in sys.stdin:\n    print({rubbish!r}, flush=True)")
    with pytest.raises(PeerError, match=r"'start' with .* which is no answer"):
        child("", script=script).ask("start")


WITH_WORKER = """
import os, time
import numpy as np
def batches(job):
    if os.fork() == 0:
        held = np.ones(300_000_000 // 8)
        time.sleep(600)
    while True:
        time.sleep(0.01)
        yield np.zeros((job.batch_size, 3, 4, 4), np.float32)
"""


def test_memory_counts_all_processes_and_all_end(child: Callable[..., Child]) -> None:
    program = child(WITH_WORKER)
    session = program._process.pid
    program.ask("start")
    program.ask("run", watch=True, seconds=2.0)
    assert 300 < program.memory_mb < 600
    program.close()
    command = ["ps", "-o", "stat=", "-s", str(session)]
    for _ in range(100):
        states = subprocess.run(command, capture_output=True, text=True).stdout.split()
        if all(state.startswith("Z") for state in states):  # ended; its new parent has not yet been told
            break
        time.sleep(0.1)
    else:
        pytest.fail(f"still there: {states}")


# --- letting a peer in

FAKE = """
import time
import numpy as np
from PIL import Image
from pathlib import Path

def prepare(job):
    Path(job.prepared).mkdir(parents=True)
    (Path(job.prepared) / "file").write_bytes(bytes(1000))

def batches(job):
    rng = np.random.default_rng()
    sources = [np.asarray(Image.open(p).convert("RGB")) for p in sorted(Path(job.folder).glob("*/*.jpg"))]
    while True:
        images = []
        for i in rng.integers(len(sources), size=job.batch_size):
            source = Image.fromarray(sources[i])
            W, H = source.size
            for _ in range(10):
                area, ratio = rng.uniform(0.08, 1) * W * H, np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
                w, h = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
                if w <= W and h <= H:
                    break
            else:
                w, h = W, H
            x, y = rng.integers(W - w + 1), rng.integers(H - h + 1)
            image = source.resize((job.image_size, job.image_size), Image.BILINEAR, box=(x, y, x + w, y + h))
            pixels = np.asarray(image)[:, ::rng.choice([-1, 1])]
            images.append(((pixels - job.mean) / job.std).astype(np.float32).transpose(2, 0, 1))
        time.sleep(job.options["slow"][job.workers])
        yield np.stack(images)[:, ::job.options["channels"]]
"""


@pytest.fixture
def settings(tmp_path: Path) -> contest.Settings:
    return contest.Settings(image_size=SIDE, batch_size=10, cores=tuple(sorted(os.sched_getaffinity(0))),
                            workers=(1, 2, 3), folder=tmp_path, num_checked=200, turn_s=0.2, limit_s=60.0)  # fmt: skip


def enter_fake(monkeypatch: pytest.MonkeyPatch, dataset: ShardSet, settings: contest.Settings, channels: int) -> Any:
    adapter = settings.folder / "fake.py"
    adapter.write_text(FAKE)
    options = {"slow": [0, 0.2, 0.0, 0.1], "channels": channels}
    monkeypatch.setitem(PEERS, "fake", Peer("numpy", "own", "a fake", options=options))
    monkeypatch.setattr(contest, "adapter_file", lambda name: adapter)
    images = layout.lay_out(dataset, "train", settings.folder, workers=None)
    gradients = layout.lay_out_gradients(settings.folder)
    expected, crops = contest.reference(images, settings), contest.reference(gradients, settings, crops=True)
    return contest.enter("fake", images, gradients, expected, crops, settings)


def test_a_peer_is_prepared_checked_and_given_the_best_workers(
    monkeypatch: pytest.MonkeyPatch, dataset: ShardSet, settings: contest.Settings
) -> None:
    with closing(enter_fake(monkeypatch, dataset, settings, channels=1)) as contestant:
        figures = contestant.figures()
        assert contestant.run(0.1).images_per_s > 0
    assert figures["workers"] == 2
    assert set(figures["images_per_s_of_workers"]) == {"1", "2", "3"}
    assert figures["size_bytes"] == 1000
    assert 0 < figures["prepare_s"] < figures["first_batch_s"] < 60
    assert figures["memory_mb"] > 10


def test_a_peer_with_other_channels_is_refused(
    monkeypatch: pytest.MonkeyPatch, dataset: ShardSet, settings: contest.Settings
) -> None:
    with pytest.raises(PeerError, match="its output is wrong: an even blue of 128 comes out as"):
        enter_fake(monkeypatch, dataset, settings, channels=-1)


def test_a_peer_without_its_environment_is_missing(settings: contest.Settings, dataset: ShardSet) -> None:
    images = layout.lay_out(dataset, "train", settings.folder, workers=None)
    with pytest.raises(Missing, match="no environment"):
        contest.enter("ffcv", images, images, {}, {}, settings)
    assert "peers --setup --only ffcv" in environments.how_to_install("ffcv")
    assert "uv pip install timm" in environments.how_to_install("timm")


class Fake:
    """A program that fails in its `fails_at`-th turn."""

    def __init__(self, name: str, fails_at: int = 0) -> None:
        self.name, self.fails_at, self.turns = name, fails_at, 0

    def run(self, seconds: float) -> Sample:
        self.turns += 1
        if self.turns == self.fails_at:
            raise PeerError(self.name, "gave up")
        return Sample(100.0)


def test_a_peer_that_fails_while_timed_is_left_out_and_the_others_are_timed() -> None:
    failed: dict[str, str] = {}
    lines: list[str] = []
    programs: Any = [Fake("a"), Fake("b", fails_at=5), Fake("c")]
    samples = run.timed(programs, 0.01, 3, failed, lines.append)
    assert {name: len(taken) for name, taken in samples.items()} == {"a": 3, "c": 3}
    assert failed == {"b": "gave up"}
    assert lines == ["b: FAILED, gave up"]


# --- images


def test_the_folder_has_the_shards_images(dataset: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "pack_seconds", lambda images, workers: 1.5)
    made = layout.lay_out(dataset, "train", tmp_path, workers=2)
    files = sorted(made.folder.glob("*/*.jpg"))
    members: dict[str, bytes] = {}
    for shard in made.job()["shards"]:
        with tarfile.open(shard) as tar:
            members |= {one.name: tar.extractfile(one).read() for one in tar if one.isfile()}  # type: ignore[union-attr]
    assert {path.name: path.read_bytes() for path in files} == {
        name: data for name, data in members.items() if name.endswith(".jpg")
    }
    assert all(int(path.parent.name) == int(members[path.stem + ".cls"]) for path in files)
    assert made.pack_s == 1.5
    assert made.folder_bytes == sum(path.stat().st_size for path in files)
    assert made.shard_bytes > made.folder_bytes


def test_an_interrupted_copy_is_made_again_and_a_complete_one_kept(tmp_path: Path) -> None:
    calls = []

    def make(target: Path) -> dict[str, Any]:
        assert list(target.iterdir()) == []
        (target / "part").touch()
        calls.append(target)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return {"seconds": 2.0}

    with pytest.raises(KeyboardInterrupt):
        layout.make_once(tmp_path / "copy", make)
    assert [layout.make_once(tmp_path / "copy", make) for _ in range(2)] == [{"seconds": 2.0}] * 2
    assert len(calls) == 2


def test_packing_resized_images_again_is_no_figure(dataset: ShardSet) -> None:
    resized = SimpleNamespace(made=dataset.made | {"encode": dataset.made["encode"] | {"max_side": 500}})
    assert layout._resized(resized)  # type: ignore[arg-type]
    assert not layout._resized(dataset)


# --- the command


def test_the_table_tells_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.text.MAX_COLUMNS", 200)
    monkeypatch.setenv("COLUMNS", "200")
    slow_figures = record.Figures([400, 500, 600], version="1.2", workers=3, memory_mb=1234.5, first_batch_s=2.25,
                                  size_bytes=5_600_000)  # fmt: skip
    ours_figures = replace(slow_figures, images_per_s=[1000, 1100, 1200], prepare_s=7.0)
    result = replace(
        record.build("peers", {}, {}, {}, []),
        programs={"slow": slow_figures, OURS: ours_figures},
        ratios={f"{OURS} / slow": Ratio(2.2, 2.0, 2.5, 2.0, 2.5)},
        more={
            "skipped": {"ffcv": "it has no environment yet; install it with: …"},
            "failed": {"timm": "its output is wrong: dtype is uint8, not float32"},
        },
    )
    head, ours, slow, *rest = report.table(result).splitlines()
    assert head.split("  ")[1] == "program"
    assert ours.split() == [OURS, "1.2", "3", "1,100", "[1,000–1,200]", "1", "1,234", "2.2", "7.0", "5.6"]
    assert slow.split() == ["slow", "1.2", "3", "500", "[400–600]", "2.20", "[2.00–2.50]", "1,234", "2.2", "–", "5.6"]
    assert rest == [
        "  ffcv: skipped, it has no environment yet; install it with: …",
        "  timm: FAILED, its output is wrong: dtype is uint8, not float32",
    ]


def test_every_peer_has_its_files() -> None:
    for name in PEERS:
        assert registry.adapter_file(name).exists(), name
    own = {registry.adapter_of(name) for name in PEERS if registry.requirements(name)}
    assert {path.stem for path in (registry.HERE / "requirements").iterdir()} == own
    used = {registry.adapter_of(name) for name in PEERS}
    assert {path.stem for path in (registry.HERE / "adapters").glob("*.py")} == used
    for path in (registry.HERE / "requirements").iterdir():
        lines = path.read_text().splitlines()
        assert all(">=" in line and "://" not in line and not line.startswith("-") for line in lines), path


@pytest.mark.parametrize(("threads", "tried"), [(1, (1, 2, 3, 4)), (2, (1, 2, 3, 4)), (4, (1, 2, 3, 4)),
                                                (16, (8, 16, 24, 32)), (5, (2, 5, 7, 10))])  # fmt: skip
def test_workers_go_with_the_threads(threads: int, tried: tuple[int, ...]) -> None:
    assert run.worker_counts(threads) == tried


@pytest.mark.parametrize("value", ["", "0,1", "two", "-1", "1,,2"])
def test_wrong_workers_are_refused(value: str) -> None:
    result = CliRunner().invoke(command, ["--workers", value])
    assert result.exit_code == 2
    assert "is no list of numbers from 1 on" in result.output


@pytest.fixture
def fake_uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `uv` that notes how it was called, and cannot install tensorflow. Returns its notes."""
    notes, uv = tmp_path / "calls.txt", tmp_path / "bin" / "uv"
    uv.parent.mkdir()
    uv.write_text(
        f'#!/bin/sh\necho "$@" >> {notes}\n'
        'case "$*" in *install*tfdata.txt) echo "warning: slow" >&2; echo "No solution found" >&2; exit 1;; esac\n'
    )
    uv.chmod(0o755)
    monkeypatch.setenv("PATH", f"{uv.parent}:/bin:/usr/bin")
    return notes


def test_setup_makes_the_environments_and_tells_what_failed(fake_uv: Path, tmp_path: Path) -> None:
    options = ["--folder", str(tmp_path / "peers"), "--setup"]
    for name in ("ffcv", "ffcv-half-raw", "tfdata", "timm"):
        options += ["--only", name]
    result = CliRunner().invoke(command, options)
    assert result.exit_code == 1
    lines = result.output.splitlines()
    assert "timm: runs in the project's own environment" in lines
    assert f"ffcv-half-raw: installed in {tmp_path}/peers/ffcv" in lines
    assert "tfdata: not installed: warning: slow No solution found" in lines
    assert lines[-1] == "Error: not installed: tfdata; the others are"
    calls = fake_uv.read_text().splitlines()
    assert len(calls) == 4, "ffcv's two files share an environment"
    python = f"{tmp_path}/peers/ffcv/bin/python"
    assert calls[1] == f"pip install --quiet --python {python} --requirement {registry.requirements('ffcv')}"


def test_setup_without_uv_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="uv is not installed"):
        environments.set_up(["ffcv"], tmp_path, print)
