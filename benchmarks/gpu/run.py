"""Run stages, each in its own process and session, and write down their results.

The processes are forked from this one, which has imported the modules that they need and never touches CUDA. So a stage
starts in milliseconds, not in the ten seconds of a cold import. A stage that crashes or hangs does not affect the
others: at its limit its process group gets SIGTERM, and SIGKILL soon after.
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
LEAST_SHARE = 0.5  # of a stage's limit: with less of the part's time left it does not run, but a shorter one may
GRACE_S = 3.0  # between SIGTERM and SIGKILL
DESCRIBE_S = 120.0
TAIL_LINES = 40
# Modules that stages import late. None of them touches CUDA, except perhaps DALI's.
LATE = (
    "torch.utils.tensorboard",
    "matplotlib.backends.backend_svg",
    "penstock.training.report.page",
    "penstock.training.sheet",
)
LATE_DALI = ("nvidia.dali.fn", "nvidia.dali.plugin.pytorch", "nvidia.dali.plugin.numba")
FACTS = ("nvidia-", "triton", "timm", "pytest")  # prefixes of packages that a figure may depend on


def run(stages: Sequence[Stage], job: Job) -> list[Result]:
    """Run stages, part by part, and return their results. `job` has no `work` and `env` yet.

    Raises ValueError without a GPU unless this is a rehearsal, and if OUT mixes measured and rehearsed results.
    """
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # exit in a way that ends the running stage
    job.out.mkdir(parents=True, exist_ok=True)
    parts = list(dict.fromkeys(stage.part for stage in stages))
    for part in parts:  # before any work
        read(job.out / f"{part}.json", job.rehearse)
    environment.separate_streams()
    for module in (*LATE, *(LATE_DALI if job.rehearse else ())):
        with suppress(ImportError):  # a missing module only affects the stages that need it
            import_module(module)
    with tempfile.TemporaryDirectory(prefix="penstock-gpu-") as folder:
        job = replace(job, work=Path(folder), env=described())
        if not job.env["cuda_available"] and not job.rehearse:
            raise ValueError("torch sees no GPU. Add --rehearse to run every stage at a small size on the CPU.")
        return [one for part in parts for one in run_part(part, [s for s in stages if s.part == part], job)]


def run_part(part: str, stages: Sequence[Stage], job: Job, limit_s: float = PART_LIMIT_S) -> list[Result]:
    """Run some of a part's stages in order, until its time is over. Returns their results.

    The results also go to PART.json in OUT, beside those of other stages. A stage that did not run does not replace
    earlier figures.
    """
    path, end, results = job.out / f"{part}.json", time.monotonic() + limit_s, []
    kept = read(path, job.rehearse)
    for stage in stages:
        left = end - time.monotonic()
        why = next((f"skipped: {why}" for need in stage.needs if (why := missing(need, job))), "")
        if not why and left < LEAST_SHARE * stage.limit_s:
            why = f"not run: no time ({max(0, left):.0f} s of the part's {limit_s:g} s are left)"
        results.append(begun(stage, job, why) if why else run_stage(stage, job, min(stage.limit_s, left)))
        if why and not (stage.name in kept and kept[stage.name]["figures"]):
            put(path, results[-1])
        print(shown(results[-1]), flush=True)
    return results


def missing(need: str, job: Job) -> str:
    """Return why a stage's need is not met, or "" if it is."""
    if need == "gpu":
        return "needs a GPU" if job.rehearse else ""
    if need == "cifar":
        return "" if job.cifar or job.rehearse else "needs packed CIFAR-10, given by --cifar DIR"
    try:
        return "" if find_spec(need) else f"{need} is not installed"
    except ImportError:  # its package is missing too
        return f"{need} is not installed"


def begun(stage: Stage, job: Job, verdict: str = NOT_ENDED) -> Result:
    return {"format": 1, "part": stage.part, "stage": stage.name, "time": time.strftime("%Y-%m-%dT%H:%M:%S"),
            "expected": stage.expected, "rehearsed": job.rehearse, "seconds": 0.0, "env": job.env,
            "settings": {"set": job.sets} if job.sets else {}, "figures": [], "verdict": verdict}  # fmt: skip


def run_stage(stage: Stage, job: Job, limit_s: float) -> Result:
    """Run one stage to its end or its limit. The result keeps its figures so far, however it ends."""
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
    """End a process that leads its group, and everything left of the group."""
    assert process.pid is not None
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.is_alive():
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, number)
            process.join(grace_s)
    with suppress(ProcessLookupError, PermissionError):  # processes that the stage left running
        os.killpg(process.pid, signal.SIGKILL)


def _in_child(stage: Stage, job: Job, path: Path, log: Path) -> None:
    """Run the stage as the first process of a session: default signals, no input, all output to `log`."""
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for source, target in ((os.open(os.devnull, os.O_RDONLY), 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    sys.stdout = sys.stderr = os.fdopen(1, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)
    faulthandler.enable()
    if job.rehearse:
        torch.set_num_threads(1)  # leaves the machine to others, and small work is slower on several threads
    print(f"--- {stage.part} {stage.name}")
    report = Report(path, begun(stage, job))
    stage.run(replace(job, report=report))
    report.end()


def described() -> dict[str, object]:
    """Describe the machine in a separate process, since this one must not touch CUDA.

    Raises ValueError if that process fails, for example because of the driver.
    """
    try:
        with FORK.Pool(1) as pool:
            return pool.apply_async(describe).get(DESCRIBE_S)
    except Exception as error:
        raise ValueError(f"the machine could not be described: {one_line(error)}") from None


def describe() -> dict[str, object]:
    """Describe the machine. Touches CUDA, so call it only in a process that then ends."""
    names = {one.name: one.version for one in metadata.distributions() if one.name and one.name.startswith(FACTS)}
    return environment.describe() | {"cuda_available": torch.cuda.is_available(), "versions": names}
