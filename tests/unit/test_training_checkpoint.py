"""Checkpoints: reading back, refusals, and that a half-written file is never visible."""

import os
import pickle
from pathlib import Path

import pytest
import torch

from penstock.training import checkpoint


def _state(step: int = 3) -> dict:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "best": 0.5,
        "recipe": "demo",
        "rng": torch.get_rng_state(),
    }


def test_round_trip(tmp_path: Path) -> None:
    state = _state()
    assert checkpoint.candidates(tmp_path) == []
    checkpoint.save(checkpoint.last_path(tmp_path), state)
    (path,) = checkpoint.candidates(tmp_path)
    assert path == tmp_path / "checkpoints" / "last.pt"
    loaded = checkpoint.load(path)
    for name in ("model", "rng"):
        torch.testing.assert_close(loaded[name], state[name], rtol=0, atol=0)
    momentum = [entry["momentum_buffer"] for entry in loaded["optimizer"]["state"].values()]
    expected = [entry["momentum_buffer"] for entry in state["optimizer"]["state"].values()]
    torch.testing.assert_close(momentum, expected, rtol=0, atol=0)
    assert loaded["optimizer"]["param_groups"] == state["optimizer"]["param_groups"]
    assert (loaded["step"], loaded["best"], loaded["recipe"]) == (3, 0.5, "demo")


def test_best_is_the_same_file_until_the_next_save(tmp_path: Path) -> None:
    last, best = checkpoint.last_path(tmp_path), checkpoint.best_path(tmp_path)
    checkpoint.save(last, _state(1))
    checkpoint.duplicate(last, best)
    assert last.samefile(best)
    checkpoint.save(last, _state(2))
    assert (checkpoint.load(best)["step"], checkpoint.load(last)["step"]) == (1, 2)
    checkpoint.duplicate(last, best)
    assert checkpoint.load(best)["step"] == 2
    assert sorted(p.name for p in last.parent.iterdir()) == ["best.pt", "last.pt"]


def test_best_without_hard_links_is_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(source: Path, target: Path) -> None:
        raise PermissionError("no hard links here")

    monkeypatch.setattr(os, "link", no_links)
    last, best = checkpoint.last_path(tmp_path), checkpoint.best_path(tmp_path)
    checkpoint.save(last, _state(1))
    checkpoint.duplicate(last, best)
    assert not last.samefile(best)
    assert checkpoint.load(best)["step"] == 1


def test_a_write_that_breaks_off_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = checkpoint.last_path(tmp_path)
    checkpoint.save(path, _state(1))

    def full_disk(content: object, file: object) -> None:
        file.write(b"half a checkpoint")  # type: ignore[attr-defined]
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(path, _state(2))
    assert checkpoint.load(path)["step"] == 1
    assert [p.name for p in path.parent.iterdir()] == ["last.pt"]


class _Foreign:
    """A class that a checkpoint must not make its reader import."""


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    "kind", ["missing", "directory", "empty", "half", "text", "pickle", "state dict", "object", "no state"]
)
def test_what_is_not_a_checkpoint_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.pt"
    checkpoint.save(path, _state())
    data = path.read_bytes()
    match kind:
        case "missing":
            path.unlink()
        case "directory":
            path.unlink()
            path.mkdir()
        case "empty":
            path.write_bytes(b"")
        case "half":
            path.write_bytes(data[: len(data) // 2])
        case "text":
            path.write_text("not a checkpoint\n")
        case "pickle":
            path.write_bytes(pickle.dumps({"model": 1}))
        case "state dict":
            torch.save(torch.nn.Linear(1, 1).state_dict(), path)
        case "no state":
            torch.save({"format": checkpoint.FORMAT}, path)
        case "object":
            torch.save({"format": checkpoint.FORMAT, "state": _Foreign()}, path)
    with pytest.raises(ValueError, match=r"x\.pt: .*checkpoint") as caught:
        checkpoint.load(path)
    assert "\n" not in str(caught.value)
