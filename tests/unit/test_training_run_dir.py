"""The run directory: who may write there, what is moved aside; and a run's small files when a write was cut off."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from engine import learner as learners
from engine.failure import Failure
from engine.learner import Standing, start_or_resume
from training import checkpoint, distributed, quarantine, run_dir
from training.distributed import World

WORLD = World(0, 0, 1, 1, torch.device("cpu"))


def test_two_runs_do_not_share_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_dir, "LOCK_WAIT_S", 0.2)
    aside, lock = run_dir.prepare(tmp_path / "run", None)
    assert aside is None
    with pytest.raises(ValueError, match=rf"run: another run writes there \(process {os.getpid()} on .*--run-dir"):
        run_dir.prepare(tmp_path / "run", None)
    lock.close()
    run_dir.prepare(tmp_path / "run", None)[1].close()


def test_an_earlier_run_is_moved_aside_and_both_stay_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_dir, "LOCK_WAIT_S", 0.2)
    path = tmp_path / "run"
    run_dir.prepare(path, None)[1].close()
    run_dir.note(path, "a = 1", "a = 0")
    aside, lock = run_dir.prepare(path, None)
    assert aside == tmp_path / "run.1"
    assert (aside / "config.toml").read_text() == "a = 1"
    assert not (path / "config.toml").exists()
    with pytest.raises(ValueError, match="another run writes there"):
        run_dir.prepare(path, None)
    lock.close()


def test_a_run_that_goes_on_by_another_name_is_not_moved(tmp_path: Path) -> None:
    path = tmp_path / "run"
    (path / "checkpoints").mkdir(parents=True)
    run_dir.note(path, "a = 1", "a = 0")
    (tmp_path / "link").symlink_to(path)
    aside, lock = run_dir.prepare(path, tmp_path / "link/checkpoints/last.pt")
    lock.close()
    assert aside is None
    assert (path / "config.toml").read_text() == "a = 1"


def test_ranks_that_read_other_checkpoints_do_not_train(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learners, "restore", lambda *arguments: Standing(step=6))
    monkeypatch.setattr(distributed, "of_all", lambda value, world: [value, value, 3])
    nothing: Any = None
    with pytest.raises(ValueError, match=r"rank 0 would go on at step 6, rank 2 at step 3, .*the same run directory"):
        start_or_resume([Path("x")], nothing, nothing, nothing, WORLD, print)
    monkeypatch.setattr(distributed, "of_all", lambda value, world: [value] * 3)
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
    error = failure.at_step(feed, "the loss is nan", step=3, epoch=0, start=6)
    assert (
        "step 3 (epoch 0, position 6): the loss is nan; samples 4, 5; the state before it cannot be written (No space"
        in (str(error))
    )
    assert "replay" not in str(error)


def test_a_line_of_the_quarantine_that_was_cut_off_is_met_again(tmp_path: Path) -> None:
    quarantine.append(tmp_path, {"sample_id": 3, "epoch": 0, "position": 1})
    whole = (tmp_path / "quarantine.jsonl").read_bytes()
    (tmp_path / "quarantine.jsonl").write_bytes(whole + whole[:20])
    assert quarantine.read(tmp_path) == {3}
    quarantine.append(tmp_path, {"sample_id": 9, "epoch": 1, "position": 1})
    assert quarantine.read(tmp_path) == {3, 9}
