"""How shards are processed if worker processes are unavailable, and with one worker, which is a thread."""

import errno
import multiprocessing.synchronize
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from penstock.shard_tools import demo
from penstock.shard_tools.__main__ import main
from penstock.shard_tools.shard import write_shard
from penstock.shard_tools.workers import OneThread, process_pool


def cli(*arguments: object) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)))


@pytest.fixture
def no_semaphores(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where /dev/shm is read-only: sem_open fails."""

    def fail(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(multiprocessing.synchronize._multiprocessing, "SemLock", fail)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for i in range(12):
        path = tmp_path / "source" / f"class{i % 2}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    return tmp_path / "source"


def files(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.iterdir()}


@pytest.mark.usefixtures("no_semaphores")
def test_without_semaphores_the_cause_is_named_and_one_worker_does_it_all(source: Path, tmp_path: Path) -> None:
    out, foreign = tmp_path / "out", tmp_path / "foreign"
    pack = ("pack", source, out, "--samples-per-shard", 3)
    assert cli(*pack, "--workers", 1).exit_code == 0
    foreign.mkdir()
    for path in out.glob("*.tar"):
        (foreign / path.name).write_bytes(path.read_bytes())
    assert cli("index", foreign, "--workers", 1).exit_code == 0
    broken = next(foreign.glob("*.idx"))
    broken.write_text("")
    commands = {
        "pack": ("pack", source, tmp_path / "two", "--samples-per-shard", 3),
        "index": ("index", foreign),
        "verify": ("verify", out),
        "verify --fix": ("verify", foreign, "--fix"),
        "demo": ("demo", tmp_path / "demo", "--num-train", 10, "--num-val", 10),
    }
    for name, command in commands.items():
        refused = cli(*command, "--workers", 2)
        lines = refused.stderr.splitlines()
        assert (refused.exit_code, len(lines)) == (1, 1), (name, refused.output)
        assert lines[-1].startswith(
            "Error: /dev/shm: cannot create the semaphores that several worker processes need (Read-only file system)"
        ), name
        assert "--workers 1" in lines[-1]
        assert cli(*command, "--workers", 1).exit_code == 0, name
    assert files(tmp_path / "two") == files(out)


def test_a_pool_of_processes_writes_what_one_worker_does(source: Path, tmp_path: Path) -> None:
    for workers in (1, 2):
        result = cli("pack", source, tmp_path / str(workers), "--samples-per-shard", 5, "--workers", workers)
        assert result.exit_code == 0, result.output
    assert files(tmp_path / "1") == files(tmp_path / "2")


@pytest.mark.usefixtures("no_semaphores")
def test_training_makes_its_demo_with_one_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = []

    def run(command: list[str], **_: object) -> object:
        commands.append(command)
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr(demo.subprocess, "run", run)
    demo.ensure_demo(tmp_path / "demo", lambda line: None)
    assert commands[0][-2:] == ["--workers", "1"]


def test_a_demo_that_cannot_be_made_here_is_made_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo.subprocess, "run", lambda *_, **__: type("Done", (), {"returncode": 1}))
    with pytest.raises(ValueError, match=r"python -m shard_tools demo DIR, and use --data DIR"):
        demo.ensure_demo(tmp_path / "demo", lambda line: None)


def test_no_place_for_temporary_files_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr("penstock.shard_tools.workers.forkserver.ensure_running", fail)
    complaint = r"cannot be started \(No usable temporary directory .* use --workers 1"
    with pytest.raises(ValueError, match=complaint), process_pool(2):
        pass


def test_one_thread_runs_in_order_and_passes_errors_on() -> None:
    main_thread, seen = threading.get_ident(), []
    with OneThread() as pool:
        assert list(pool.map(lambda i: seen.append(i) or (i, threading.get_ident() != main_thread), range(4))) == [
            (i, True) for i in range(4)
        ]
        with pytest.raises(ZeroDivisionError):
            pool.submit(lambda: 1 // 0).result()
        waiting = pool.submit(time.sleep, 0.05), pool.submit(seen.append, 9)
        assert waiting[1].cancel()
    assert seen == [0, 1, 2, 3]


def test_an_interrupt_ends_the_shard_that_one_thread_is_writing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard may take minutes, so it is dropped, and the rest continues from its place."""
    started, slow = threading.Event(), [True]

    def write_slowly(job: object) -> None:
        if job.shard < 2:  # type: ignore[attr-defined]
            return write_shard(job)  # type: ignore[arg-type]
        started.set()
        while slow[0]:
            time.sleep(0.001)
        return write_shard(job)  # type: ignore[arg-type]

    monkeypatch.setattr("penstock.shard_tools.execute.write_shard", write_slowly)
    threading.Thread(target=lambda: started.wait(20) and os.kill(os.getpid(), signal.SIGINT), daemon=True).start()
    before = threading.active_count()
    command = ("pack", source, tmp_path / "out", "--samples-per-shard", 3, "--workers", 1)
    stopped = cli(*command)
    assert stopped.exit_code == 130, stopped.output
    assert "kept 2 of 4 shards" in stopped.stderr
    assert threading.active_count() < before
    slow[0] = False
    assert cli(*command).exit_code == 0
    assert cli("pack", source, tmp_path / "whole", "--samples-per-shard", 3, "--workers", 1).exit_code == 0
    assert files(tmp_path / "out") == files(tmp_path / "whole")
