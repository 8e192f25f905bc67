"""The run directory: who may write there, files moved aside, and small files after an interrupted write."""

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from penstock.pipeline.holes import BadSample
from penstock.training import checkpoint, distributed, quarantine, run_dir
from penstock.training import learner as learners
from penstock.training.distributed import World
from penstock.training.failure import Failure
from penstock.training.learner import RunState, start_or_resume
from penstock.training.run_dir import Claim

WORLD = World(0, 0, 1, 1, torch.device("cpu"))


FILES = {"config.toml": "a = 1", "defaults.toml": "a = 0"}


def begin(path: Path, resume_from: Path | None = None, files: dict[str, str] = FILES) -> tuple[Path | None, Claim]:
    """A run that has started and continues until its claim is released."""
    claim = Claim(path)
    aside = claim.take(resume_from, files)
    claim.settle()
    return aside, claim


def contents(folder: Path) -> dict[str, bytes | None]:
    """The directory's content by path: the files' bytes, None for folders."""
    paths = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes() for path in paths}


def test_two_runs_do_not_share_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_dir, "LOCK_WAIT_S", 0.2)
    aside, claim = begin(tmp_path / "run")
    assert aside is None
    with pytest.raises(ValueError, match=rf"run: another run is writing there \(process {os.getpid()} on .*--run-dir"):
        Claim(tmp_path / "run")
    with claim:
        pass
    begin(tmp_path / "run")


def test_of_two_starts_at_once_in_a_new_directory_one_is_refused(tmp_path: Path) -> None:
    first, second = Claim(tmp_path / "run"), Claim(tmp_path / "run")
    first.take(None, FILES)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="another run has started there in the meantime"), second:
        second.take(None, {"config.toml": "b = 1"})
    assert contents(tmp_path) == before


def test_an_earlier_run_is_moved_aside_and_both_stay_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_dir, "LOCK_WAIT_S", 0.2)
    path = tmp_path / "run"
    with begin(path)[1]:
        pass
    aside, claim = begin(path, files={"config.toml": "a = 2"})
    assert aside == tmp_path / "run.1"
    assert (aside / "config.toml").read_text() == "a = 1"
    assert (path / "config.toml").read_text() == "a = 2"
    with pytest.raises(ValueError, match="another run is writing there"):
        Claim(path)
    with claim:
        pass


def test_a_run_that_others_lie_in_is_not_moved_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (tmp_path / "a", tmp_path / "a/b", tmp_path / "c"):
        with begin(path)[1]:
            pass
    monkeypatch.chdir(tmp_path / "c")
    before = contents(tmp_path)
    for path, inside in ((tmp_path / "a", tmp_path / "a/b"), (Path(), tmp_path / "c"), (tmp_path / "c", tmp_path)):
        with (
            pytest.raises(ValueError, match=rf"not moved aside because {inside}.* in it\. Give another"),
            Claim(path) as claim,
        ):
            claim.take(None, FILES)
    assert contents(tmp_path) == before


def test_the_lock_of_a_run_that_is_moved_aside_is_not_taken_for_the_new_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who comes meanwhile has opened the file that goes aside, and locks it when nobody holds it any more."""
    monkeypatch.setattr(run_dir, "LOCK_WAIT_S", 0.2)
    path, flock = tmp_path / "run", fcntl.flock
    with begin(path)[1]:
        pass
    mover = Claim(path)

    def moved_before(stream: Any, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        mover.take(None, FILES)
        mover.settle()
        flock(stream, how)

    monkeypatch.setattr(fcntl, "flock", moved_before)
    with pytest.raises(ValueError, match="another run is writing there"):
        Claim(path)
    with mover:
        pass


def test_a_run_that_goes_on_by_another_name_is_not_moved(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with begin(path)[1]:
        pass
    (path / "checkpoints").mkdir()
    (tmp_path / "link").symlink_to(path)
    aside, claim = begin(path, tmp_path / "link/checkpoints/last.pt", {"config.toml": "a = 3"})
    with claim:
        assert aside is None
    assert (path / "config.toml").read_text() == "a = 3"
    assert not (tmp_path / "run.1").exists()


def start_and_fail(claim: Claim, resume_from: Path | None, when: str) -> None:
    files: Any = FILES | {"config.toml": "b = 1", "new.txt": "x"}
    if when == "before":
        raise KeyError
    if when == "in":
        files["x/y"] = "no such folder: as a full disk would end it, in the midst"
    claim.take(resume_from, files)
    if not resume_from:
        (claim.run_dir / "metrics.jsonl").write_text("")
        (claim.run_dir / "tensorboard").mkdir()
    raise KeyError


@pytest.mark.parametrize("there", ["nothing", "an empty folder", "an earlier run", "its own run"])
@pytest.mark.parametrize("fails", ["before", "in", "after"])
def test_a_start_that_fails_leaves_all_as_it_was(there: str, fails: str, tmp_path: Path) -> None:
    path, resumed = tmp_path / "runs/a/run", None
    if there == "an empty folder":
        path.mkdir(parents=True)
    elif there != "nothing":
        with begin(path)[1]:
            (path / "checkpoints").mkdir()
            (path / "metrics.jsonl").write_text("{}")
        resumed = path / "checkpoints/last.pt" if there == "its own run" else None
    before = contents(tmp_path)
    with suppress(OSError, KeyError), Claim(path) as claim:
        start_and_fail(claim, resumed, fails)
        raise AssertionError("it does fail")
    assert contents(tmp_path) == before


def test_where_no_run_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir.check_place(tmp_path / "a/b")
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file/run"):
        with pytest.raises(ValueError, match="file: is not a directory"):
            run_dir.check_place(path)
    (tmp_path / "dataset.json").touch()
    with pytest.raises(ValueError, match=r"is a packed dataset\. Give another --run-dir"):
        run_dir.check_place(tmp_path)
    with pytest.raises(ValueError, match="MB free, but a checkpoint needs"):
        run_dir.check_place(tmp_path / "run", need_bytes=1 << 60)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/checkpoints").touch()
    with pytest.raises(ValueError, match="run/checkpoints: is not a directory"):
        run_dir.check_place(tmp_path / "run")
    (tmp_path / "run/checkpoints").unlink()
    (tmp_path / "run/checkpoints").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: path.name != "checkpoints")  # root may write everywhere
    with pytest.raises(ValueError, match="run/checkpoints: cannot be written to"):
        run_dir.check_place(tmp_path / "run")
    (tmp_path / "run/checkpoints").rmdir()
    (tmp_path / "run").rmdir()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ValueError, match=f"{tmp_path}: cannot be written to"):
        run_dir.check_place(tmp_path / "run")


def test_whose_settings_are_taken_without_a_recipe(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        (tmp_path / name / "config.toml").touch()
    (tmp_path / "b/checkpoints/last.pt").touch()
    (tmp_path / "b/failed-step-00000001.pt").touch()
    (tmp_path / "lone.pt").touch()
    own, other = tmp_path / "a", tmp_path / "b"
    assert run_dir.config_of_run("auto", own) == run_dir.config_of_run("never", own) == own / "config.toml"
    assert run_dir.config_of_run("auto", tmp_path / "new") is run_dir.config_of_run("auto", None) is None
    for path in (other, other / "checkpoints/last.pt", other / "failed-step-00000001.pt"):
        assert run_dir.config_of_run(str(path), own) == other / "config.toml"
    with pytest.raises(ValueError, match=r"lone\.pt: is not in a run directory.*Give --recipe"):
        run_dir.config_of_run(str(tmp_path / "lone.pt"), own)
    with pytest.raises(ValueError, match="no checkpoint there"):
        run_dir.config_of_run(str(tmp_path / "nowhere"), own)


def test_ranks_that_read_other_checkpoints_do_not_train(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learners, "restore", lambda *arguments: RunState(step=6))
    monkeypatch.setattr(distributed, "gather", lambda value, world: [value, value, 3])
    nothing: Any = None
    with pytest.raises(
        ValueError, match=r"rank 0 would resume at step 6, but rank 2 at step 3, .*share the run directory"
    ):
        start_or_resume([Path("x")], nothing, nothing, nothing, WORLD, print)
    monkeypatch.setattr(distributed, "gather", lambda value, world: [value] * 3)
    assert start_or_resume([Path("x")], nothing, nothing, nothing, WORLD, print).step == 6
    assert start_or_resume([], nothing, nothing, nothing, WORLD, print).step == 0


def test_a_restart_has_the_first_starts_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that torchrun's restarts find the run directory that is named after it."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for name, value in {"TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_ADDR": "127.0.0.1", "RANK": "0",
                        "WORLD_SIZE": "1", "MASTER_PORT": str(store.port)}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    first = distributed.first_start(WORLD)
    assert abs(first - time.time()) < 60
    monkeypatch.setattr(time, "time", lambda: 7.0)
    assert distributed.first_start(WORLD) == first
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE")
    assert distributed.first_start(WORLD) == 7.0


def test_a_failed_step_is_told_though_its_state_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OneBatch:
        global_batch_size = batch_size = 2

        def sample_ids(self, epoch: int, spans: Any) -> torch.Tensor:
            return torch.tensor([4, 5])

    def full(path: Path, state: Any) -> None:
        raise OSError(28, "No space left on device")

    feed: Any = OneBatch()
    failure = Failure(tmp_path, WORLD, dict, {})
    failure.all_is_well()
    monkeypatch.setattr(checkpoint, "save", full)
    error = failure.error(feed, "the loss is nan", step=3, epoch=0, end=8)
    assert "step 3 (epoch 0, position 6): the loss is nan; samples 4, 5; " in str(error)
    assert "the state before the step cannot be written (No space" in str(error)
    assert "replay" not in str(error)


def test_a_line_of_the_quarantine_that_was_cut_off_is_met_again(tmp_path: Path) -> None:
    quarantine.append(tmp_path, BadSample(3, 0, 1, "a.tar", "cut"))
    whole = (tmp_path / "quarantine.jsonl").read_bytes()
    (tmp_path / "quarantine.jsonl").write_bytes(whole + whole[:20])
    assert quarantine.read(tmp_path) == {3}
    quarantine.append(tmp_path, BadSample(9, 1, 1, "a.tar", "cut"))
    assert quarantine.read(tmp_path) == {3, 9}
