"""Shared by the cases: a small dataset, runs with faults, and the comparison with an undisturbed run."""

import json
import random
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from penstock.shard_tools.writer import PackOptions, pack
from tests.common.images import write_tree
from tests.nightly.faults.inject import Fault
from tests.nightly.faults.launch import Launched, launch

STEPS_PER_EPOCH, EPOCHS = 7, 2  # 90 training images in global batches of 12
LAST_STEP = STEPS_PER_EPOCH * EPOCHS - 1
SETTINGS: dict[str, Any] = {
    "data.image_size": 32, "data.val_image_size": 32, "data.val_resize_size": 32, "data.threads": 1,
    "model.name": "cifar_resnet8", "augment.brightness": 0.2, "schedule.warmup_epochs": 0.5, "ema.decay": 0.9,
    "train.precision": "fp32", "train.global_batch_size": 12, "train.epochs": EPOCHS, "train.log_every": 1,
    "train.eval_every": 1, "train.checkpoint_every": 2, "train.timeout_s": 120,
}  # fmt: skip
END_S = 180.0  # no run takes longer, on a busy machine and with a restart


class Bench:
    """A folder with a dataset and runs. `rng` chooses the places of the faults."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.folder, self.rng = folder, rng
        self.data = folder / "data"
        if not self.data.exists():
            write_tree(folder / "images")
            self._pack(self.data)
        self._whole: dict[str, Path] = {}
        self._count = 0

    def new(self, name: str = "run") -> Path:
        """A folder for one round."""
        self._count += 1
        folder = self.folder / f"{self._count:03}-{name}"
        folder.mkdir()
        return folder

    def _pack(self, out: Path, **settings: Any) -> None:
        with ThreadPoolExecutor(1) as executor:
            pack(self.folder / "images", out, PackOptions(samples_per_shard=25, **settings), executor=executor)

    def data_of_another_seed(self) -> Path:
        """The same images in another order."""
        out = self.folder / "other-data"
        if not out.exists():
            self._pack(out, seed=1)
        return out

    def data_copy(self, round_dir: Path) -> Path:
        return Path(shutil.copytree(self.data, round_dir / "data"))

    def start(
        self, round_dir: Path, *faults: Fault, ranks: int = 2, restarts: int = 0, data: Path | None = None,
        more: tuple[str, ...] = (), settings: dict[str, Any] | None = None, log: str = "log",
        run_dir: Path | None = None, env: dict[str, str] | None = None, **launching: Any,
    ) -> Launched:  # fmt: skip
        """A run in `round_dir/run`. Each fault occurs once, however often the run is restarted there."""
        marked = [replace(fault, marker=str(round_dir / f"fault-{i}")) for i, fault in enumerate(faults)]
        env = (env or {}) | {"FAULTS": json.dumps([fault.to_json() for fault in marked])}
        env["FAULT_RECOVERED"] = str(round_dir / "recovered")
        sets = [f"--set={name}={json.dumps(value)}" for name, value in (SETTINGS | (settings or {})).items()]
        run_dir = run_dir or round_dir / "run"
        arguments = ["--data", str(data or self.data), "--run-dir", str(run_dir), "--device", "cpu", *sets, *more]
        return launch(arguments, round_dir / log, ranks=ranks, restarts=restarts, env=env, **launching)

    def whole(self, ranks: int = 2, **settings: Any) -> Path:
        """The run directory of an undisturbed run."""
        key = json.dumps([ranks, settings])
        if key not in self._whole:
            round_dir = self.new("whole")
            run = self.start(round_dir, ranks=ranks, settings=settings)
            assert run.wait(END_S) == 0, run.output
            assert len(steps(round_dir / "run")) == LAST_STEP + 1
            self._whole[key] = round_dir / "run"
        return self._whole[key]


def lines(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    """The complete lines of a metrics.jsonl that may still be growing."""
    path = run_dir / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    whole = [line for line in text.splitlines(keepends=True) if line.endswith("}\n")]
    return [line for line in map(json.loads, whole) if line["kind"] == kind]


def steps(run_dir: Path) -> list[int]:
    return [line["step"] for line in lines(run_dir, "step")]


def steps_again(run_dir: Path) -> int:
    """The number of repeated steps, each of which was logged again: the cost of the faults."""
    return len(steps(run_dir)) - len(set(steps(run_dir)))


def wrong_samples(run_dir: Path, whole: Path) -> int:
    """Samples of the steps whose samples are not those of the undisturbed run, as they were logged last; and of epochs
    whose digest of all samples is another."""
    found, expected = ({line["step"]: line["samples"] for line in lines(d, "step")} for d in (run_dir, whole))
    batch = SETTINGS["train.global_batch_size"]
    wrong = sum(batch for step in found.keys() | expected.keys() if found.get(step) != expected.get(step))
    found, expected = ({line["epoch"]: line["samples"] for line in lines(d, "epoch")} for d in (run_dir, whole))
    return wrong + sum(
        batch * STEPS_PER_EPOCH for e in found.keys() | expected.keys() if found.get(e) != expected.get(e)
    )


def differences(run_dir: Path, whole: Path) -> list[str]:
    """The names of the tensors of the last checkpoint that are not, bit for bit, those of the undisturbed run."""
    states = [torch.load(d / "checkpoints/last.pt", weights_only=True)["state"] for d in (run_dir, whole)]
    first, second = ({part: state[part] for part in ("net", "ema", "optimizer")} for state in states)
    flat, expected = dict(_flat(first)), dict(_flat(second))
    return [name for name in flat.keys() | expected.keys() if not _equal(flat.get(name), expected.get(name))]


def _flat(state: Any, name: str = "") -> list[tuple[str, Any]]:
    if isinstance(state, dict | list | tuple):
        items = state.items() if isinstance(state, dict) else enumerate(state)
        return [leaf for key, value in items for leaf in _flat(value, f"{name}.{key}")]
    return [(name, state)]


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return torch.equal(first, second)
    return type(first) is type(second) and bool(first == second)


def until(condition: Any, run: Launched, timeout_s: float = END_S) -> None:
    """Wait while a run continues. Raises AssertionError if it ends or takes too long before `condition` holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if not run.running or time.monotonic() > deadline:
            run.end()
            raise AssertionError(f"the run ended or hung too early:\n{run.output}")
        time.sleep(0.02)
