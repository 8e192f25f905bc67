"""A rank of a run with faults: `train.py` with its functions wrapped, which needs no test hooks in the program.

Input: the environment variable FAULTS, a JSON list of `Fault`s. Each happens once in a run, over all its restarts. A
marker file records that it has happened.
"""

import errno
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch._inductor.compile_fx

import penstock.training.evaluate
import penstock.training.run
import penstock.training.step
import penstock.training.validation
from penstock import train
from penstock.pipeline.reader import ShardReader
from penstock.training import checkpoint
from penstock.training.metrics import MetricsLog

ALWAYS = -1


@dataclass(frozen=True)
class Fault:
    """`do` happens `at` a place on `rank` (ALWAYS: on each), before `step` is made (ALWAYS: each time).

    at: "start" (the network is being built), "step", "compile" (in the midst of it), "stepped" (the step is done,
        nothing is logged), "scoring" (validation of that step, in its first batch), "validation" (in its second),
        "saving" (half a checkpoint is written, in that step or later), "linking" (last.pt is not yet the new one),
        "reading" (the loader asks for a batch), "logging" (a line of metrics.jsonl).
    do: a signal's name, for this rank; "launcher SIGNAL", for its parent; "hang"; "sleep"; "nan" (weights); "memory"
        (ask for 2^60 bytes); "truncate"; "fill" (the disk); "remount read-only"; "EROFS" (fail as on a
        read-only file system).
    on: the file, or folder, that is truncated, filled or remounted. seconds: of sleep.
    """

    at: str
    do: str
    rank: int = 0
    step: int = ALWAYS
    on: str = ""
    seconds: float = 0.0
    marker: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Injector:
    """The faults of this rank. `step`: the current step, or the next."""

    def __init__(self, faults: list[Fault], recovered: Path | None) -> None:
        rank = int(os.environ.get("RANK", 0))
        self._faults = [fault for fault in faults if fault.rank in (rank, ALWAYS)]
        come = any(Path(fault.marker).exists() for fault in faults)
        self._recovered = recovered if come else None
        self.step = 0
        self.learner: Any = None

    def reached(self, at: str) -> None:
        for fault in self._faults:
            # Checkpoints are written in a thread, lines after several steps.
            now = (
                self.step >= fault.step if at in ("saving", "linking", "logging") else fault.step in (self.step, ALWAYS)
            )
            if fault.at == at and now and (fault.do == "sleep" or _first(fault)):
                self._do(fault)

    def recovered(self) -> None:
        """A step is done; in a process that was started after the fault this is the end of the interruption."""
        if self._recovered:
            self._recovered.touch()
            self._recovered = None

    def _do(self, fault: Fault) -> None:
        words = fault.do.split()
        match words:
            case ["hang"]:
                time.sleep(1e6)
            case ["sleep"]:
                time.sleep(fault.seconds)
            case ["nan"]:
                with torch.no_grad():
                    next(self.learner.net.parameters()).fill_(float("nan"))
            case ["memory"]:
                torch.empty(1 << 60, dtype=torch.uint8)
            case ["truncate"]:
                os.truncate(fault.on, 4096)
            case ["fill"]:
                _fill(Path(fault.on))
            case ["remount", _]:
                _run("mount", "--bind", fault.on, fault.on)
                _run("mount", "-o", "remount,ro,bind", fault.on)
            case ["EROFS"]:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))
            case ["launcher", name]:
                os.kill(os.getppid(), signal.Signals[name])
            case [name]:
                os.kill(os.getpid(), signal.Signals[name])


def _first(fault: Fault) -> bool:
    try:
        os.close(os.open(fault.marker, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _fill(folder: Path) -> None:
    """Leave no byte free on the file system."""
    with open(folder / "filler", "wb", buffering=0) as file:
        for size in (1 << 16, 1 << 10, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                pass


def _run(*command: str) -> None:
    code = os.spawnvp(os.P_WAIT, command[0], command)
    assert code == 0, command


def main(arguments: list[str]) -> None:
    with open(os.environ["FAULT_PIDS"], "a") as file:
        file.write(f"{os.getpid()}\n")
    for limit, value in json.loads(os.environ["FAULT_LIMITS"]):
        resource.setrlimit(limit, (value, value))
    faults = [Fault(**fields) for fields in json.loads(os.environ.get("FAULTS", "[]"))]
    recovered = os.environ.get("FAULT_RECOVERED")
    injector = Injector(faults, Path(recovered) if recovered else None)
    torch.set_num_threads(1)
    _wrap(injector)
    train.main(arguments, prog_name="train.py")


def _wrap(injector: Injector) -> None:
    def wrap(owner: Any, name: str, around: Callable[..., Any]) -> None:
        original = getattr(owner, name)
        setattr(owner, name, lambda *args, **kwargs: around(original, *args, **kwargs))

    def build(original: Callable[..., Any], *args: Any) -> Any:
        injector.learner = original(*args)
        injector.reached("start")
        return injector.learner

    def start_or_resume(original: Callable[..., Any], *args: Any) -> Any:
        at = original(*args)
        injector.step = at.step
        return at

    def step(original: Callable[..., Any], *args: Any) -> Any:
        injector.reached("step")
        result = original(*args)
        injector.reached("stepped")
        injector.step += 1
        injector.recovered()
        return result

    batches = 0

    def predict(original: Callable[..., Any], *args: Any) -> Any:
        nonlocal batches
        batches += 1
        injector.reached("scoring")
        if batches % 2 == 0:
            injector.reached("validation")
        return original(*args)

    def torch_save(original: Callable[..., Any], content: Any, file: Any) -> None:
        original(content, file)
        size = file.tell()
        file.flush()
        os.ftruncate(file.fileno(), size // 2)
        injector.reached("saving")
        file.seek(0)
        original(content, file)

    def duplicate(original: Callable[..., Any], *args: Any) -> None:
        injector.reached("linking")
        original(*args)

    def views(original: Callable[..., Any], *args: Any) -> Any:
        injector.reached("reading")
        return original(*args)

    def write(original: Callable[..., Any], *args: Any, **fields: Any) -> None:
        injector.reached("logging")
        original(*args, **fields)

    def compile_frame(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        injector.reached("compile")
        return original(*args, **kwargs)

    wrap(penstock.training.run, "build_learner", build)
    wrap(penstock.training.run, "start_or_resume", start_or_resume)
    wrap(penstock.training.step, "train_step", step)
    wrap(penstock.training.run, "write_report", lambda original, run_dir: (run_dir, run_dir))  # pictures take seconds
    wrap(penstock.training.validation, "show_worst", lambda original, *args: None)
    wrap(torch._inductor.compile_fx, "compile_fx", compile_frame)
    wrap(penstock.training.evaluate, "predict_logits", predict)
    wrap(checkpoint, "duplicate", duplicate)
    wrap(ShardReader, "views", views)
    wrap(MetricsLog, "write", write)
    if any(fault.at == "saving" for fault in injector._faults):
        wrap(torch, "save", torch_save)


if __name__ == "__main__":
    main(sys.argv[1:])
