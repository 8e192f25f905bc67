"""`bench.py peers`: what its checks accept and refuse, and how it deals with programs that misbehave."""

import os
import subprocess
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

from benchmarks import peers, record
from benchmarks.measure import Ratio, Sample
from benchmarks.peers import check, command, environments, images, process, run
from benchmarks.peers.process import Child, PeerError
from benchmarks.peers.registry import OURS, PEERS, Peer
from shards.format import ShardSet

SIDE = 32
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
SOURCES = [Image.fromarray(check.marked_image(label)) for label in range(check.NUM_MARKED)]

# --- what a crop is, seen from its colours


def cut(label: int, left: float, top: float, width: float, height: float, flip: bool = False) -> np.ndarray:
    """(3, SIDE, SIDE) float32, normalised: a region in pixels of a marked image, resized by PIL."""
    box = (left, top, left + width, top + height)
    pixels = np.asarray(SOURCES[label].resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=box), dtype=np.float32)
    pixels = pixels[:, ::-1] if flip else pixels
    return ((pixels - MEAN) / STD).transpose(2, 0, 1).astype(np.float32)


def seen(images: np.ndarray, labels: np.ndarray | None = None) -> check.Seen:
    """One batch, described."""
    job = SimpleNamespace(batch_size=len(images), image_size=images.shape[-1], mean=MEAN, std=STD)
    labels = np.zeros(len(images), np.int64) if labels is None else labels
    return check.describe([(images, labels)], len(images), job)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    "box", [(0, 0, 320, 240), (10, 20, 200, 100), (250, 0, 70, 240), (3, 200, 60, 40), (100.0, 50.0, 20.0, 30.0)]
)
def test_a_crop_is_found_from_its_colours(box: tuple[float, ...], flip: bool) -> None:
    found = seen(cut(5, *box, flip=flip)[None])
    left, top, width, height = np.array(box) / [320, 240, 320, 240]
    assert found["centre from the left"][0] == pytest.approx(left + width / 2, abs=0.01)  # 2.5 grey levels
    assert found["centre from the top"][0] == pytest.approx(top + height / 2, abs=0.01)
    assert found["area"][0] == pytest.approx(width * height, abs=0.01 * (width + height))
    assert found["aspect ratio"][0] == pytest.approx(box[2] / box[3], rel=0.03)
    assert (found["flipped"].tolist(), found["upside down"].tolist()) == ([flip], [False])
    assert found["blue"][0] == pytest.approx(check.blue_of(5), abs=0.5)
    assert found["bent"][0] < 0.03


# --- the checks


def law(num: int, seed: int, scale: tuple[float, float] = (0.08, 1.0), ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flipped: float = 0.5, centred: bool = False) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """(num, 3, SIDE, SIDE) crops drawn by torchvision, each image as often as another, and their labels."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    draw, crops, labels = RandomResizedCrop(SIDE, scale, ratio), [], np.arange(num) % check.NUM_MARKED
    whole = torch.empty(3, check.HEIGHT, check.WIDTH)
    for label in labels:
        box = draw.make_params([whole])
        left, top, width, height = (box[name] for name in ("left", "top", "width", "height"))
        if centred:
            left, top = (check.WIDTH - width) / 2, (check.HEIGHT - height) / 2
        crops.append(cut(int(label), left, top, width, height, rng.random() < flipped))
    return np.stack(crops), labels


NUM = 1000


@pytest.fixture(scope="module")
def expected() -> check.Seen:
    return seen(*law(NUM, seed=1))


def test_the_same_law_passes(expected: check.Seen) -> None:
    assert check.marked_faults(seen(*law(NUM, seed=2)), expected) == []


@pytest.mark.parametrize(
    ("what", "wrong"),
    [
        ("area", {"scale": (0.25, 1.0)}),
        ("aspect ratio", {"ratio": (1 / 2, 2.0)}),
        ("flipped", {"flipped": 0.0}),
        ("centre", {"centred": True}),
    ],
)
def test_another_crop_law_is_refused(what: str, wrong: dict[str, Any], expected: check.Seen) -> None:
    faults = check.marked_faults(seen(*law(NUM, seed=2, **wrong)), expected)
    assert any(what in fault for fault in faults)
    if what != "aspect ratio" and "scale" not in wrong:  # other shapes and larger crops also lie nearer the centre
        assert all(what in fault for fault in faults)


@pytest.mark.parametrize(
    ("what", "spoil"),
    [
        ("blue", lambda images, labels: (images[:, ::-1], labels)),
        ("blue", lambda images, labels: (images / 255, labels)),
        ("blue", lambda images, labels: (images + 0.2, labels)),
        ("wrong label", lambda images, labels: (images, labels[::-1])),
        ("wrong label", lambda images, labels: (images, labels + 1)),
        ("upside down", lambda images, labels: (images[:, :, ::-1], labels)),
        ("colours are", lambda images, labels: (np.roll(images, SIDE // 2, axis=3), labels)),
        ("image 7 comes 0 times", lambda images, labels: (images[labels != 7], labels[labels != 7])),
        ("image 3 comes 7", lambda images, labels: (np.concatenate([images, *[images[labels == 3][:20]] * 2]),
                                                    np.concatenate([labels, [3] * 40]))),
    ],
)  # fmt: skip
def test_other_images_labels_and_epochs_are_refused(what: str, spoil: Callable[..., Any], expected: check.Seen) -> None:
    assert what in check.marked_faults(seen(*spoil(*law(NUM, seed=2))), expected)[0]


def test_a_small_sample_of_the_right_law_passes(expected: check.Seen) -> None:
    """The limits are those of chance, however few crops there are."""
    for seed in range(10):
        assert check.marked_faults(seen(*law(20, seed=10 + seed)), expected) == []


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
        ("mean square", lambda images: images * (np.reshape(STD, (3, 1, 1)) / 127.5)),
        ("mean square", lambda images: images / 255),
        ("mean", lambda images: images + 0.3),
        ("mean square", lambda images: images.clip(-0.5, 0.5)),
    ],
)
def test_other_colours_are_refused(what: str, spoil: Callable[..., Any]) -> None:
    right = seen(photographs(2000, 1))
    assert check.pixel_faults(seen(photographs(2000, 2)), right) == []
    spoilt = np.asarray(spoil(photographs(2000, 2)), np.float32)
    assert any(what in fault for fault in check.pixel_faults(seen(spoilt), right))


GOOD_IMAGES, GOOD_LABELS = np.zeros((4, 3, SIDE, SIDE), np.float32), np.zeros(4, np.int64)


@pytest.mark.parametrize(
    ("what", "images", "labels"),
    [
        ("uint8, not", np.zeros((4, 3, SIDE, SIDE), np.uint8), GOOD_LABELS),
        ("images are", np.zeros((4, SIDE, SIDE, 3), np.float32), GOOD_LABELS),
        ("images are", np.zeros((3, 3, SIDE, SIDE), np.float32), np.zeros(3, np.int64)),  # a last batch that is smaller
        ("not finite", np.full((4, 3, SIDE, SIDE), np.nan, np.float32), GOOD_LABELS),
        ("labels are", GOOD_IMAGES, np.zeros((4, 10), np.int64)),
        ("labels are", GOOD_IMAGES, np.zeros(4)),
    ],
)
def test_another_form_is_refused(what: str, images: np.ndarray, labels: np.ndarray) -> None:
    """Also of one bad batch among good ones."""
    job = SimpleNamespace(batch_size=4, image_size=SIDE, mean=MEAN, std=STD)
    good = (GOOD_IMAGES, GOOD_LABELS)
    assert len(check.describe([good, good, good, good], 12, job)["label"]) == 12
    with pytest.raises(ValueError, match=what):
        check.describe([good, (images, labels), good], 12, job)


# --- processes that misbehave

GOOD = """
import numpy as np
def loader(job):
    print("a library's chatter")
    while True:
        yield np.zeros((job.batch_size, 3, 4, 4), np.float32), np.zeros(job.batch_size, np.int64)
"""


def write_adapter(folder: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the adapter "fake" of the processes that are started."""
    (folder / "adapters").mkdir(exist_ok=True)
    (folder / "adapters" / "fake.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(folder))


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Child]]:
    """`child(source)` starts an adapter; all end with the test."""
    started = []

    def start(source: str) -> Child:
        write_adapter(tmp_path, source, monkeypatch)
        job = {"adapter": "fake", "package": "numpy", "prepare": False, "batch_size": 5, "image_size": 4, "workers": 1,
               "cores": sorted(os.sched_getaffinity(0)), "mean": MEAN, "std": STD}  # fmt: skip
        started.append(Child("fake", environments.python_of(OURS, tmp_path), job, tmp_path / "log.txt"))
        return started[-1]

    yield start
    for one in started:
        one.close()


def test_a_program_is_started_and_timed(child: Callable[..., Child], tmp_path: Path) -> None:
    program = child(GOOD)
    first_batch_s, version = program.answer()
    assert 0 < first_batch_s < 60
    assert version == np.__version__
    before = time.monotonic()
    assert program.run(0.2).images_per_s > 0
    assert 0.2 <= time.monotonic() - before < 5
    assert program.describe(12)["red's mean"].tolist() == [0] * 15
    assert "chatter" in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize(
    ("source", "missing", "words"),
    [
        ("raise ImportError('no module ffcv')", True, "ImportError: no module ffcv"),
        ("import no_such_package", True, "No module named 'no_such_package'"),
        ("def loader(job):\n  raise OSError('disk is full')", False, "OSError: disk is full"),
        ("import os, sys\nprint('bad alloc', file=sys.stderr)\nsys.stderr.flush()\nos._exit(3)", False,
         "ended with status 3: bad alloc"),
        ("import os\nos.kill(os.getpid(), 11)", False, "was ended by signal 11"),
        ("def loader(job):\n  return iter([])", False, "the loader gives no batch"),
    ],
)  # fmt: skip
def test_a_failure_is_one_clear_line(child: Callable[..., Child], source: str, missing: bool, words: str) -> None:
    with pytest.raises(PeerError) as caught:
        child(source).answer()
    assert caught.value.missing is missing
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.peer == "fake"


def test_a_program_that_hangs_is_given_up(child: Callable[..., Child]) -> None:
    program = child("import time\ntime.sleep(600)")
    before = time.monotonic()
    with pytest.raises(PeerError, match=r"no answer in 1 s \(see .*log.txt\)"):
        program.answer(1.0)
    program.close()
    assert time.monotonic() - before < 20


WITH_WORKER = """
import os, time
import numpy as np
def loader(job):
    if os.fork() == 0:
        held = np.ones(300_000_000 // 8)
        time.sleep(600)
    while True:
        time.sleep(0.01)
        yield np.zeros((job.batch_size, 3, 4, 4), np.float32), np.zeros(job.batch_size, np.int64)
"""


def test_memory_counts_all_processes_and_all_end(child: Callable[..., Child]) -> None:
    program = child(WITH_WORKER)
    session = program._process.pid
    program.answer()
    program.run(2.0)
    assert 300 < program.memory_mb() < 600
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
    (Path(job.prepared) / "file").write_bytes(bytes(1000))

def loader(job):
    rng = np.random.default_rng()
    files = sorted(Path(job.folder).glob("*/*.jpg"))
    sources = [np.asarray(Image.open(path).convert("RGB")) for path in files]
    while True:
        images, chosen = [], rng.integers(len(sources), size=job.batch_size)
        for i in chosen:
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
        labels = np.array([int(files[i].parent.name) for i in chosen])
        yield np.stack(images)[:, ::job.options["channels"]], labels + job.options["label"]
"""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> run.Settings:
    monkeypatch.setattr(run, "NUM_CHECKED", 300)
    return run.Settings(image_size=SIDE, batch_size=10, cores=tuple(sorted(os.sched_getaffinity(0))),
                        workers=(1, 2, 3), folder=tmp_path, seconds=0.2, repeats=2)  # fmt: skip


def enter_fake(monkeypatch: pytest.MonkeyPatch, dataset: ShardSet, settings: run.Settings, **options: int) -> Child:
    write_adapter(settings.folder, FAKE, monkeypatch)
    told: Any = {"slow": [0, 0.2, 0.0, 0.1], "channels": 1, "label": 0} | options
    monkeypatch.setitem(PEERS, "fake", Peer("numpy", "own", "fake", "a fake", told))
    data = settings.folder / "data"
    return run.enter("fake", images.lay_out(dataset, data), images.lay_out_marked(data), settings, None)


def test_a_peer_is_prepared_checked_and_given_the_best_workers(
    monkeypatch: pytest.MonkeyPatch, dataset: ShardSet, settings: run.Settings
) -> None:
    with closing(enter_fake(monkeypatch, dataset, settings)) as child:
        figures: Any = child.figures
        assert child.run(0.1).images_per_s > 0
        assert child.memory_mb() > 10
    assert figures["workers"] == 2
    assert set(figures["images_per_s_of_workers"]) == {"1", "2", "3"}
    assert figures["size_bytes"] == 1000
    assert 0 < figures["first_batch_s"] < 60


@pytest.mark.parametrize("options", [{"channels": -1}, {"label": 1}])
def test_a_peer_with_wrong_output_is_refused(
    monkeypatch: pytest.MonkeyPatch, dataset: ShardSet, settings: run.Settings, options: dict[str, int]
) -> None:
    with pytest.raises(PeerError, match=r"its output is wrong: the even blue .* comes out as"):
        enter_fake(monkeypatch, dataset, settings, **options)


def test_a_peer_without_its_environment_is_missing(settings: run.Settings, dataset: ShardSet) -> None:
    laid_out = images.lay_out(dataset, settings.folder / "data")
    with pytest.raises(PeerError, match="no environment") as caught:
        run.enter("ffcv", laid_out, laid_out, settings, None)
    assert caught.value.missing
    assert "peers --setup --only ffcv" in environments.how_to_install("ffcv")
    assert "uv pip install timm" in environments.how_to_install("timm")


class Fake:
    """A program that fails in its `fails_at`-th turn, or is not there."""

    def __init__(self, name: str, fails_at: int) -> None:
        self.name, self.fails_at, self.turns, self.seen = name, fails_at, 0, ({}, {})
        self.figures = {"workers": 1}

    def run(self, seconds: float) -> Sample:
        self.turns += 1
        if self.turns == self.fails_at:
            raise PeerError(self.name, "gave up")
        return Sample(100.0)

    def memory_mb(self) -> float:
        return 1.0

    def close(self) -> None:
        pass


def test_a_peer_that_fails_while_timed_is_left_out_and_the_others_are_timed(
    monkeypatch: pytest.MonkeyPatch, dataset: ShardSet, settings: run.Settings
) -> None:
    def enter(name: str, *_: object) -> Fake:
        if name == "ffcv":
            raise PeerError(name, "not there", missing=True)
        return Fake(name, fails_at=5 if name == "timm" else 0)

    lines: list[str] = []
    monkeypatch.setattr(run, "enter", enter)
    result = run.compare([OURS, "timm", "dali", "ffcv"], dataset, settings, lines.append)
    taken = {name: one.images_per_s for name, one in result.programs.items()}
    assert taken == {OURS: [100.0] * 2, "dali": [100.0] * 2}
    assert result.more["failed"] == {"timm": "gave up"}
    assert result.more["skipped"] == {"ffcv": "not there; install it with: python bench.py peers --setup --only ffcv"}
    assert list(result.ratios) == [f"{OURS} / dali"]
    assert lines[-1] == "timm: FAILED, gave up"


# --- images


def test_the_folder_has_the_shards_images(dataset: ShardSet, tmp_path: Path) -> None:
    made = images.lay_out(dataset, tmp_path)
    files = sorted(made.folder.glob("*/*.jpg"))
    members: dict[str, bytes] = {}
    for shard in made.packed:
        if shard.suffix == ".tar":
            with tarfile.open(shard) as tar:
                members |= {one.name: tar.extractfile(one).read() for one in tar if one.isfile()}  # type: ignore[union-attr]
    assert {path.name: path.read_bytes() for path in files} == {
        name: data for name, data in members.items() if name.endswith(".jpg")
    }
    assert all(int(path.parent.name) == int(members[path.stem + ".cls"]) for path in files)
    assert images.bytes_of([made.folder]) == sum(path.stat().st_size for path in files)
    assert images.bytes_of(made.packed) > images.bytes_of([made.folder])


def test_an_interrupted_copy_is_made_again_and_a_complete_one_kept(tmp_path: Path) -> None:
    calls = []

    def make(target: Path) -> None:
        assert list(target.iterdir()) == []
        (target / "part").touch()
        calls.append(target)
        if len(calls) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        images.make_once(tmp_path / "copy", make)
    for _ in range(2):
        images.make_once(tmp_path / "copy", make)
    assert len(calls) == 2
    assert (tmp_path / "copy" / "part").exists()


# --- the command


def test_the_table_tells_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.text.MAX_COLUMNS", 200)
    monkeypatch.setenv("COLUMNS", "200")
    slow_figures = record.Figures([400, 500, 600], version="1.2", workers=3, memory_mb=1234.5, first_batch_s=2.25,
                                  size_bytes=5_600_000)  # fmt: skip
    result = replace(
        record.build("peers", {}, {}, {}, []),
        programs={"slow": slow_figures, OURS: replace(slow_figures, images_per_s=[1000, 1100, 1200])},
        ratios={f"{OURS} / slow": Ratio(2.2, 2.0, 2.5, 2.0, 2.5)},
        more={
            "skipped": {"ffcv": "it has no environment yet; install it with: …"},
            "failed": {"timm": "its output is wrong: dtype is uint8, not float32"},
        },
    )
    head, ours, slow, *rest = peers.table(result).splitlines()
    assert head.split("  ")[1] == "program"
    assert ours.split() == [OURS, "1.2", "3", "1,100", "[1,000–1,200]", "1", "1,234", "2.2", "5.6"]
    assert slow.split() == ["slow", "1.2", "3", "500", "[400–600]", "2.20", "[2.00–2.50]", "1,234", "2.2", "5.6"]
    assert rest == [
        "  ffcv: skipped, it has no environment yet; install it with: …",
        "  timm: FAILED, its output is wrong: dtype is uint8, not float32",
    ]


def test_every_peer_has_its_files() -> None:
    folder = environments.REQUIREMENTS
    own = {PEERS[name].adapter for name in PEERS if environments.requirements(name)}
    assert {path.stem for path in folder.iterdir()} == own
    used = {peer.adapter for peer in PEERS.values()}
    assert {path.stem for path in process.CHILD.parent.glob("adapters/*.py")} == used | {"shared"}
    for path in folder.iterdir():
        lines = path.read_text().splitlines()
        assert all(">=" in line and "://" not in line and not line.startswith("-") for line in lines), path


@pytest.mark.parametrize(("threads", "tried"), [(1, (1, 2, 3, 4)), (2, (1, 2, 3, 4)), (4, (1, 2, 3, 4)),
                                                (16, (8, 16, 24, 32)), (5, (2, 5, 7, 10))])  # fmt: skip
def test_workers_go_with_the_threads(threads: int, tried: tuple[int, ...]) -> None:
    assert peers.worker_counts(threads) == tried


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
    assert f"ffcv: installed in {tmp_path}/peers/ffcv" in lines
    assert "tfdata: not installed: warning: slow No solution found" in lines
    assert lines[-1] == "Error: not installed: tfdata; the others are"
    calls = fake_uv.read_text().splitlines()
    assert len(calls) == 4, "ffcv's two files share an environment"
    python = f"{tmp_path}/peers/ffcv/bin/python"
    assert calls[1] == f"pip install --quiet --python {python} --requirement {environments.requirements('ffcv')}"


def test_setup_without_uv_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="uv is not installed"):
        environments.set_up(["ffcv"], tmp_path, print)
