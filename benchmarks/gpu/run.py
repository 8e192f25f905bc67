"""Runs stages, each in a process and a session of its own, and puts down what each has found.

The processes are forked from this one, which has imported what they need and never touches CUDA: a stage
starts in milliseconds, not in the ten seconds of a cold import. A stage that crashes or hangs costs itself: at its
limit its process group gets SIGTERM, and SIGKILL soon after.
"""

import faulthandler
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from importlib import import_module, metadata
from importlib.util import find_spec
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from penstock.benchmarks.gpu.report import BAD, NOT_ENDED, Report, Result, one_line, put, read, shown
from penstock.benchmarks.gpu.stage import Job, Stage
from penstock.training import environment

FORK = multiprocessing.get_context("fork")
PART_LIMIT_S = 480.0
LEAST_SHARE = 0.5  # of a stage's limit: with less left of the part's time it is not begun, but perhaps a shorter one
GRACE_S = 3.0  # between SIGTERM and SIGKILL
DESCRIBE_S = 120.0
TAIL_LINES = 40
# What stages import late; none of it touches CUDA, but DALI might
LATE = (
    "torch.utils.tensorboard",
    "matplotlib.backends.backend_svg",
    "penstock.training.report.page",
    "penstock.training.sheet",
)
LATE_DALI = ("nvidia.dali.fn", "nvidia.dali.plugin.pytorch", "nvidia.dali.plugin.numba")
FACTS = ("nvidia-", "triton", "timm", "pytest")  # packages whose versions a figure depends on, by their names' start


def run(stages: Sequence[Stage], job: Job) -> list[Result]:
    """The results of stages, part by part; `job` has no `work` and `env` yet. Raises ValueError where there is no GPU
    and this is no rehearsal, or where OUT has results of the other kind."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # by the way that ends the stage under way
    job.out.mkdir(parents=True, exist_ok=True)
    parts = list(dict.fromkeys(stage.part for stage in stages))
    for part in parts:  # before any work
        read(job.out / f"{part}.json", job.rehearse)
    environment.separate_streams()
    for module in (*LATE, *(LATE_DALI if job.rehearse else ())):
        with suppress(ImportError):  # what is missing is missed, if at all, by the stage that needs it
            import_module(module)
    with tempfile.TemporaryDirectory(prefix="penstock-gpu-") as folder:
        job = replace(job, work=Path(folder), env=described())
        if not job.env["cuda_available"] and not job.rehearse:
            raise ValueError("torch sees no GPU here; --rehearse runs every stage in small on the CPU")
        return [one for part in parts for one in run_part(part, [s for s in stages if s.part == part], job)]


def run_part(part: str, stages: Sequence[Stage], job: Job, limit_s: float = PART_LIMIT_S) -> list[Result]:
    """Run some of a part's stages in order, until its time is over. Returns their results. PART.json in OUT has them
    too, beside those of other stages; figures that are there are not replaced by a stage that was not run."""
    path, end, results = job.out / f"{part}.json", time.monotonic() + limit_s, []
    kept = read(path, job.rehearse)
    for stage in stages:
        left = end - time.monotonic()
        why = next((f"skipped: {why}" for need in stage.needs if (why := missing(need, job))), "")
        if not why and left < LEAST_SHARE * stage.limit_s:
            why = f"not run: no time, of the part's {limit_s:g} s {max(0, left):.0f} are left"
        results.append(begun(stage, job, why) if why else run_stage(stage, job, min(stage.limit_s, left)))
        if why and not (stage.name in kept and kept[stage.name]["figures"]):
            put(path, results[-1])
        print(shown(results[-1]), flush=True)
    return results


def missing(need: str, job: Job) -> str:
    """Why a stage cannot have what it needs, "" if it can."""
    if need == "gpu":
        return "needs a GPU" if job.rehearse else ""
    if need == "cifar":
        return "" if job.cifar or job.rehearse else "needs --cifar DIR, CIFAR-10 packed"
    try:
        return "" if find_spec(need) else f"{need} is not installed"
    except ImportError:  # nor the package that it is in
        return f"{need} is not installed"


def begun(stage: Stage, job: Job, verdict: str = NOT_ENDED) -> Result:
    return {"format": 1, "part": stage.part, "stage": stage.name, "time": time.strftime("%Y-%m-%dT%H:%M:%S"),
            "expected": stage.expected, "rehearsed": job.rehearse, "seconds": 0.0, "env": job.env,
            "settings": {"set": job.sets} if job.sets else {}, "figures": [], "verdict": verdict}  # fmt: skip


def run_stage(stage: Stage, job: Job, limit_s: float) -> Result:
    """Run one stage to its end or its limit. What it had found by then is in the result, whatever became of it."""
    path, log = job.out / f"{stage.part}.json", job.out / f"{stage.part}.log"
    log.touch()
    begin = log.stat().st_size
    put(path, begun(stage, job))
    process, started = FORK.Process(target=_in_child, args=(stage, job, path, log)), time.monotonic()
    process.start()
    try:
        process.join(limit_s)
        late = process.is_alive()
    finally:
        end(process)
    result, code = read(path, job.rehearse)[stage.name], process.exitcode or 0
    printed = log.read_bytes()[begin:].decode(errors="replace").splitlines()
    tail = [line for line in printed if line.strip()][-TAIL_LINES:]
    if late:
        result["verdict"] = f"failed (more than {limit_s:.0f} s)"
    elif code:
        ending = signal.Signals(-code).name if code < 0 else f"exit {code}: {''.join(tail[-1:])[:160]}"
        result["verdict"] = f"failed ({ending})"
    if result["verdict"].startswith(BAD):
        result["tail"] = tail
    result["seconds"] = round(time.monotonic() - started, 2)
    put(path, result)
    return result


def end(process: BaseProcess, grace_s: float = GRACE_S) -> None:
    """End a process that leads its group, and whatever is left of the group."""
    assert process.pid is not None
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.is_alive():
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, number)
            process.join(grace_s)
    with suppress(ProcessLookupError, PermissionError):  # what the stage started and left behind
        os.killpg(process.pid, signal.SIGKILL)


def _in_child(stage: Stage, job: Job, path: Path, log: Path) -> None:
    """The stage, first process of a session: default signals, no input, all output into `log`."""
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for source, target in ((os.open(os.devnull, os.O_RDONLY), 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    sys.stdout = sys.stderr = os.fdopen(1, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)
    faulthandler.enable()
    if job.rehearse:
        torch.set_num_threads(1)  # a guest on its machine; and small work is slower on several
    print(f"--- {stage.part} {stage.name}")
    report = Report(path, begun(stage, job))
    stage.run(replace(job, report=report))
    report.end()


def described() -> dict[str, object]:
    """The facts of the machine, from a process of its own, since this one must not touch CUDA. Raises ValueError where
    that process fails, as where the driver does."""
    try:
        with FORK.Pool(1) as pool:
            return pool.apply_async(describe).get(DESCRIBE_S)
    except Exception as error:
        raise ValueError(f"the machine could not be described: {one_line(error)}") from None


def describe() -> dict[str, object]:
    """Touches CUDA: only in a process that ends with it."""
    names = {one.name: one.version for one in metadata.distributions() if one.name and one.name.startswith(FACTS)}
    return environment.describe() | {"cuda_available": torch.cuda.is_available(), "versions": names}
