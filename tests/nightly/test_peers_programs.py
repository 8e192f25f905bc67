"""`bench.py peers`: programs that misbehave, a peer's start, its images, and the environments."""

import os
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from penstock.benchmarks.measure import Sample
from penstock.benchmarks.peers import command, environments, images, run
from penstock.benchmarks.peers.process import Child, PeerError
from penstock.benchmarks.peers.registry import OURS, PEERS, Peer
from penstock.shards.format import ShardSet

SIDE = 32
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
GOOD = """
import numpy as np
def loader(job):
    print("a library's chatter")
    while True:
        yield np.zeros((job.batch_size, 3, 4, 4), np.float32), np.zeros(job.batch_size, np.int64)
"""


def write_adapter(folder: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the adapter "fake" for the started processes."""
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
        ("import os\nos.kill(os.getpid(), 11)", False, "ended by signal 11"),
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
    program.run(0.5)
    for _ in range(600):  # the worker fills its memory as fast as it can
        if program.memory_mb() > 300:
            break
        time.sleep(0.1)
    assert 300 < program.memory_mb() < 600
    program.close()
    command = ["ps", "-o", "stat=", "-s", str(session)]
    for _ in range(100):
        states = subprocess.run(command, capture_output=True, text=True).stdout.split()
        if all(state.startswith("Z") for state in states):  # ended, but not yet reaped by its new parent
            break
        time.sleep(0.1)
    else:
        pytest.fail(f"still there: {states}")


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
    given: Any = {"slow": [0, 0.2, 0.0, 0.1], "channels": 1, "label": 0} | options
    monkeypatch.setitem(PEERS, "fake", Peer("numpy", "own", "fake", "a fake", given))
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
    with pytest.raises(PeerError, match=r"its output is wrong: blue should be .* but is"):
        enter_fake(monkeypatch, dataset, settings, **options)


def test_a_peer_without_its_environment_is_missing(settings: run.Settings, dataset: ShardSet) -> None:
    laid_out = images.lay_out(dataset, settings.folder / "data")
    with pytest.raises(PeerError, match="its environment does not exist") as caught:
        run.enter("ffcv", laid_out, laid_out, settings, None)
    assert caught.value.missing
    assert "peers --setup --only ffcv" in environments.how_to_install("ffcv")
    assert "uv pip install timm" in environments.how_to_install("timm")


class Fake:
    """A program that fails in its `fails_at`-th turn; 0: never."""

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
    assert result.more["skipped"] == {"ffcv": "not there. Install it with: python bench.py peers --setup --only ffcv"}
    assert list(result.ratios) == [f"{OURS} / dali"]
    assert lines[-1] == "timm: FAILED: gave up"


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


@pytest.fixture
def fake_uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `uv` that records its calls and cannot install tensorflow. Returns the record."""
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
    assert lines[-1] == "Error: not installed: tfdata. The others are installed."
    calls = fake_uv.read_text().splitlines()
    assert len(calls) == 4, "ffcv's two files share an environment"
    python = f"{tmp_path}/peers/ffcv/bin/python"
    assert calls[1] == f"pip install --quiet --python {python} --requirement {environments.requirements('ffcv')}"
