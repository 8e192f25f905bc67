"""Each file of examples/ runs unchanged at a small scale, with the test's own constants, data and output paths."""

import importlib.util
import json
import os
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
    load("bare_loop", monkeypatch, dataset_dir, EPOCHS=1).main()
    assert re.fullmatch(r"epoch 0: loss \d\.\d{3}, top-1 \d\.\d{3}\n", capsys.readouterr().out)
    lines = [line for line in (EXAMPLES / "bare_loop.py").read_text().splitlines() if line]
    assert len(lines) <= 55, "the loop is to be 40 lines, with a docstring and imports"


def test_resume_in_mid_epoch(
    dataset_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Stopped(Exception):
        pass

    load("resume", monkeypatch, dataset_dir, tmp_path / "a.pt", EPOCHS=1).main()
    undisturbed = capsys.readouterr().out.splitlines()
    assert len(undisturbed) == 7
    example = load("resume", monkeypatch, dataset_dir, tmp_path / "b.pt", EPOCHS=1, SAVE_EVERY=3)
    original = example.save

    def save(state: dict[str, Any]) -> None:
        original(state)
        if state["loader"]["position"] == 36:
            raise Stopped

    monkeypatch.setattr(example, "save", save)
    with pytest.raises(Stopped):
        example.main()
    before = capsys.readouterr().out.splitlines()
    load("resume", monkeypatch, dataset_dir, tmp_path / "b.pt", EPOCHS=1).main()
    first, *after = capsys.readouterr().out.splitlines()
    assert first == "resumed at 36 samples of epoch 0"
    assert before + after == undisturbed


def test_accelerate_loop(
    dataset_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    load("accelerate_loop", monkeypatch, dataset_dir, folder, EPOCHS=1).main()
    load("accelerate_loop", monkeypatch, dataset_dir, folder).main()
    assert [line[:9] for line in capsys.readouterr().out.splitlines()] == ["epoch 0: ", "epoch 1: "]


def test_accelerate_on_two_ranks_resumed_on_one(dataset_dir: Path, tmp_path: Path) -> None:
    text = (EXAMPLES / "accelerate_loop.py").read_text()
    printed = []
    for epochs, batch_size, launcher in ((1, 6, ["-m", "torch.distributed.run", "--nproc-per-node", 2]), (2, 12, [])):
        script = tmp_path / f"{epochs}.py"
        script.write_text(text.replace("SIZE = 5, 64, 32", f"SIZE = {epochs}, {batch_size}, 32"))
        env = os.environ | {"ACCELERATE_USE_CPU": "true"}  # otherwise each rank trains alone on a CPU
        done = forked.run([*launcher, script, dataset_dir, tmp_path / "run"], timeout=120, env=env)
        assert done.returncode == 0, done.stderr
        printed += [line[:9] for line in done.stdout.splitlines()]
        loader = torch.load(tmp_path / "run" / "custom_checkpoint_0.pkl", weights_only=True)
        assert (loader["epoch"], loader["position"]) == (epochs, 0)
    assert printed == ["epoch 0: ", "epoch 1: "]  # one line an epoch: the two ranks are one run


LIGHTNING = """
import importlib.util, json, os, signal, sys
spec = importlib.util.spec_from_file_location("lightning_fit", sys.argv[3])
example = importlib.util.module_from_spec(spec)
spec.loader.exec_module(example)
example.EPOCHS, example.BATCH, example.SIZE, example.SAVE_EVERY = 2, 12, 32, 3
step, nn = example.Classifier.training_step, example.torch.nn
example.resnet18 = lambda num_classes: nn.Sequential(  # whose checkpoints are small
    nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, num_classes))

def run(name, stop):
    example.FOLDER = f"{sys.argv[2]}/{name}"
    log = open(f"{sys.argv[2]}/{name}.jsonl", "a")
    def training_step(self, batch, batch_idx):
        print(json.dumps([self.current_epoch, self.global_step, batch.sample_ids.tolist()]), file=log, flush=True)
        if self.global_step == stop:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, batch, batch_idx)
    example.Classifier.training_step = training_step
    example.main()

for name, stop in ("undisturbed", None), ("killed", 11), ("killed", None):  # each in a process of its own
    if not (pid := os.fork()):
        run(name, stop)
        sys.stdout.flush()
        os._exit(0)
    print(name, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), file=sys.stderr)
"""


def test_lightning_killed_in_mid_epoch_and_resumed(dataset_dir: Path, tmp_path: Path) -> None:
    done = forked.run(
        ["-c", LIGHTNING, dataset_dir, tmp_path, EXAMPLES / "lightning_fit.py"], timeout=180, cwd=tmp_path
    )
    ends = [line for line in done.stderr.splitlines() if line.startswith(("undisturbed", "killed"))]
    # the last checkpoint is after step 8, the second of the second epoch's seven
    assert ends == ["undisturbed 0", "killed -9", "killed 0"], done.stderr
    steps = []
    for name in ("undisturbed", "killed"):  # each step's epoch and sample ids, as it was made last
        lines = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        steps.append({step: [epoch, ids] for epoch, step, ids in lines})
    assert sorted(steps[0]) == list(range(14))
    assert steps[1] == steps[0]
    files = [tmp_path / name / "last.ckpt" for name in ("undisturbed", "killed")]
    states = [torch.load(file, weights_only=True)["state_dict"] for file in files]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
