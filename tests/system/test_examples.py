"""Each file of examples/ runs, in small, as it stands: its constants, the data and what it saves are the test's."""

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.common import forked

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
SMALL = {"EPOCHS": 2, "BATCH": 12, "SIZE": 32}  # 7 steps an epoch


def load(name: str, monkeypatch: pytest.MonkeyPatch, *words: object, **constants: Any) -> ModuleType:
    """An example with the words of its command line and other constants; `main()` is still to be called."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for constant, value in (SMALL | constants).items():
        assert hasattr(module, constant)
        setattr(module, constant, value)
    return module


def test_there_is_a_test_for_each() -> None:
    text = Path(__file__).read_text() + (ROOT / "tests" / "nightly" / "test_finetune.py").read_text()
    for file in EXAMPLES.iterdir():
        if file.suffix in (".py", ".sh"):
            assert f'"{file.stem}"' in text or f'"{file.name}"' in text, file


def test_bare_loop(dataset_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    load("bare_loop", monkeypatch, dataset_dir).main()
    assert re.fullmatch(r"(epoch \d: loss \d\.\d{3}, top-1 \d\.\d{3}\n){2}", capsys.readouterr().out)
    lines = [line for line in (EXAMPLES / "bare_loop.py").read_text().splitlines() if line]
    assert len(lines) <= 55, "the loop is to be 40 lines, with a docstring and imports"


def test_resume_in_mid_epoch(
    dataset_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Stopped(Exception):
        pass

    load("resume", monkeypatch, dataset_dir, tmp_path / "a.pt").main()
    undisturbed = capsys.readouterr().out.splitlines()
    assert len(undisturbed) == 14
    example = load("resume", monkeypatch, dataset_dir, tmp_path / "b.pt", SAVE_EVERY=3)
    original = example.save

    def save(state: dict[str, Any]) -> None:
        original(state)
        if state["loader"]["position"] == 72:
            raise Stopped

    monkeypatch.setattr(example, "save", save)
    with pytest.raises(Stopped):
        example.main()
    before = capsys.readouterr().out.splitlines()
    load("resume", monkeypatch, dataset_dir, tmp_path / "b.pt").main()
    first, *after = capsys.readouterr().out.splitlines()
    assert first == "resumed at 72 samples of epoch 0"
    assert before + after == undisturbed


def test_accelerate_loop(
    dataset_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    load("accelerate_loop", monkeypatch, dataset_dir, folder, EPOCHS=1).main()
    load("accelerate_loop", monkeypatch, dataset_dir, folder).main()
    assert [line[:9] for line in capsys.readouterr().out.splitlines()] == ["epoch 0: ", "epoch 1: "]


LIGHTNING = """
import importlib.util, json, os, signal, sys
spec = importlib.util.spec_from_file_location("lightning_fit", sys.argv[3])
example = importlib.util.module_from_spec(spec)
spec.loader.exec_module(example)
example.EPOCHS, example.BATCH, example.SIZE, example.SAVE_EVERY = 2, 12, 32, 3
log, stop = open(sys.argv[4], "a"), int(sys.argv[5])
step = example.Classifier.training_step
def training_step(self, batch, batch_idx):
    print(json.dumps([self.current_epoch, self.global_step, batch.sample_ids.tolist()]), file=log, flush=True)
    if self.global_step == stop:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batch, batch_idx)
example.Classifier.training_step = training_step
example.main()
"""


def test_lightning_killed_in_mid_epoch_and_resumed(dataset_dir: Path, tmp_path: Path) -> None:
    def run(name: str, stop: int = -1) -> tuple[int, dict[int, list[Any]]]:
        """The exit status, and of each step its epoch and sample ids, as they were trained on last."""
        log = tmp_path / f"{name}.jsonl"
        words = ["-c", LIGHTNING, dataset_dir, tmp_path / name, EXAMPLES / "lightning_fit.py", log, stop]
        done = forked.run(words, timeout=180, cwd=tmp_path)
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        return done.returncode, {step: [epoch, ids] for epoch, step, ids in lines}

    status, expected = run("undisturbed")
    assert (status, sorted(expected)) == (0, list(range(14)))
    assert run("killed", stop=4)[0] == -9  # the last checkpoint is after step 2, of an epoch of 7
    assert run("killed", stop=11)[0] == -9  # and in the second epoch
    assert run("killed") == (0, expected)
    states = [
        torch.load(tmp_path / name / "last.ckpt", weights_only=True)["state_dict"] for name in ("undisturbed", "killed")
    ]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
