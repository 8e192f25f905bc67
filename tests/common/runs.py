"""Shared by the tests of `train.py`: a small run, in this process or its own, and the files that it writes."""

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import penstock.training.run
from penstock import train
from tests.common import forked

ROOT = Path(train.__file__).resolve().parent
STEPS_PER_EPOCH, EPOCHS, NUM_VAL = 7, 2, 19  # 90 training images in global batches of 12
SMALL = {
    "data.image_size": 32, "data.val_image_size": 32, "data.val_resize_size": 32, "model.name": "cifar_resnet8",
    "train.global_batch_size": 12, "train.epochs": EPOCHS, "train.log_every": 1, "train.eval_every": 1,
    "schedule.warmup_epochs": 0.5, "augment.brightness": 0.2, "train.precision": "fp32",
}  # fmt: skip


def arguments(data: Path, run_dir: Path, *more: str, **overrides: Any) -> list[str]:
    settings = SMALL | {name.replace("__", "."): value for name, value in overrides.items()}
    sets = [arg for key, value in settings.items() for arg in ("--set", f"{key}={value}")]
    return ["--data", str(data), "--run-dir", str(run_dir), "--device", "cpu", *sets, *more]


def run(data: Path, run_dir: Path, *more: str, report: bool = False, **overrides: Any) -> Result:
    """Run `train.py` in this process, without the report, which would take two of the three seconds."""
    with pytest.MonkeyPatch.context() as patch:
        if not report:
            patch.setattr(penstock.training.run, "write_report", lambda run_dir: (run_dir, run_dir))
        return CliRunner().invoke(train.main, arguments(data, run_dir, *more, **overrides))


def start(data: Path, run_dir: Path, *more: str, ranks: int = 1, **overrides: Any) -> forked.Forked:
    """Start a run in its own processes. Its results are bit-identical to those of `run`."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    words = [*launcher, ROOT / "train.py", *arguments(data, run_dir, *more, **overrides)]
    return forked.start(words, log=Path(tempfile.mkstemp(prefix="run-", suffix=".log")[1]))


def lines(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    text = (run_dir / "metrics.jsonl").read_text()
    return [line for line in map(json.loads, text.splitlines()) if line["kind"] == kind]


def by_step(run_dir: Path, key: str) -> dict[int, Any]:
    """A field of each training step, as last logged."""
    return {line["step"]: line[key] for line in lines(run_dir, "step")}


def wait_for(process: forked.Forked, condition: Callable[[], bool], timeout_s: float = 90) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise AssertionError(f"the run ended or hung too early:\n{process.output}")
        time.sleep(0.02)


def lines_safely(run_dir: Path) -> list[dict[str, Any]]:
    """The steps of a run that is still writing, so its last line may be incomplete."""
    text = (run_dir / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
