"""Runs stages, each in a process and a session of its own, and puts down what each has found.

The processes are forked from this one, which has imported what they need (`preload`) and never touches CUDA: a stage
starts in milliseconds, not in the ten seconds of a cold import. Should an import have touched CUDA, they are spawned.
A stage that crashes or hangs costs itself: at its limit its process group gets SIGTERM, and SIGKILL soon after.
"""

import faulthandler
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.expected import worst
from benchmarks.gpu.report import FORMAT, NOT_ENDED, Report, Skipped, write_json
from benchmarks.gpu.stage import Job, Stage, describe
from training import environment

PART_LIMIT_S = 480.0
LEAST_SHARE = 0.5  # of a stage's limit: with less left of the part's time it is not begun, but perhaps a shorter one
GRACE_S = 3.0  # between SIGTERM and SIGKILL
TAIL_LINES = 40
DESCRIBE_S = 120.0


def installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ImportError:
        return False


# What a stage may need: name → why it is not there, "" if it is.
NEEDS: dict[str, Callable[[Job], str]] = {
    "gpu": lambda job: "" if job.on_gpu else "needs a GPU",
    "dali": lambda job: "" if installed("nvidia.dali") else "DALI is not installed",
    "simplejpeg": lambda job: "" if installed("simplejpeg") else "simplejpeg is not installed",
    "pytest": lambda job: "" if installed("pytest") else "pytest is not installed",
    "cifar": lambda job: "" if job.cifar or job.rehearse else "needs --cifar DIR, CIFAR-10 packed",
}


def run_part(
    part: str, stages: Sequence[Stage], job: Job, limit_s: float = PART_LIMIT_S, order: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Run some of a part's stages in order, until its time is over. Returns their results. PART.json in OUT has them
    too, beside those of other stages that were there, in the `order` of stages' names; figures that are there are not
    replaced by a stage that was not run."""
    end = time.monotonic() + limit_s
    results = []
    kept = earlier(job, part)
    for stage in stages:
        why = next((why for need in stage.needs if (why := NEEDS[need](job))), "")
        left = end - time.monotonic()
        if why:
            result = not_run(stage, job, f"skipped: {why}")
        elif left < LEAST_SHARE * stage.limit_s:
            result = not_run(stage, job, f"not run: no time, of the part's {limit_s:g} s {max(0, left):.0f} are left")
        else:
            result = run_stage(stage, job, min(stage.limit_s, left))
        results.append(result)
        if not result["verdict"].startswith(("skipped", "not run")) or not kept.get(stage.name, {}).get("figures"):
            kept[stage.name] = result
            write_json(result_path(stage, job), result)
        names = [*(name for name in order if name in kept), *(name for name in kept if name not in order)]
        write_json(part_path(job, part), [kept[name] for name in names])
    return results


def part_path(job: Job, part: str) -> Path:
    return job.out / f"{part}.json"


def earlier(job: Job, part: str) -> dict[str, dict[str, Any]]:
    """A part's results in OUT by their stage. Raises ValueError where they are rehearsed and these shall not be, or the
    other way round."""
    path = part_path(job, part)
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    for result in found:
        if result["rehearsed"] != job.rehearse:
            raise ValueError(f"{path} holds {'measured' if job.rehearse else 'rehearsed'} results: give another --out")
    return {result["stage"]: result for result in found}


def about(stage: Stage, job: Job) -> dict[str, Any]:
    return {
        "format": FORMAT, "part": stage.part, "stage": stage.name, "time": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "expected": stage.expected, "rehearsed": job.rehearse, "seconds": 0.0, "env": job.env,
    }  # fmt: skip


def result_path(stage: Stage, job: Job) -> Path:
    return job.out / f"{stage.part}-{stage.name}.json"


def not_run(stage: Stage, job: Job, why: str) -> dict[str, Any]:
    return about(stage, job) | {"settings": {}, "figures": [], "verdict": why}


def run_stage(stage: Stage, job: Job, limit_s: float) -> dict[str, Any]:
    """Run one stage to its end or its limit. What it had found by then is in the result, whatever became of it."""
    print(f"{stage.part} {stage.name} (at most {limit_s:.0f} s)", flush=True)
    path, log = result_path(stage, job), job.out / f"{stage.part}.log"
    path.unlink(missing_ok=True)
    begin = log.stat().st_size if log.exists() else 0
    process = job.process(_in_child, stage, job, path, log)
    started = time.monotonic()
    process.start()
    try:
        process.join(limit_s)
        late = process.is_alive()
    finally:
        end(process)
    seconds = time.monotonic() - started
    result = (
        json.loads(path.read_text(encoding="utf-8"))
        if path.exists()
        else about(stage, job) | {"settings": {}, "figures": []}
    )
    tail = _tail(log, begin)
    crash = _crash(process.exitcode, limit_s if late else None, tail)
    if crash or result.get("verdict", NOT_ENDED) == NOT_ENDED:
        result |= {"verdict": crash or NOT_ENDED}
    if result["verdict"].startswith(("failed", "wrong")):
        result["tail"] = tail
    result |= {"seconds": round(seconds, 2), "limit_s": limit_s}
    write_json(path, result)
    print(f"  {result['verdict']}, {seconds:.1f} s", flush=True)
    return result


def _crash(code: int | None, limit_s: float | None, tail: list[str]) -> str:
    """What became of a process that did not end well; "" for one that did."""
    if limit_s is not None:
        return f"failed (more than {limit_s:.0f} s)"
    if code is not None and code < 0:
        return f"failed ({signal.Signals(-code).name})"
    if code:
        return f"failed (exit {code}: {tail[-1][:160] if tail else 'no output'})"
    return ""


def _tail(log: Path, begin: int) -> list[str]:
    with suppress(OSError), open(log, "rb") as stream:
        stream.seek(begin)
        lines = stream.read().decode(errors="replace").splitlines()
        return [line for line in lines if line.strip()][-TAIL_LINES:]
    return []


def end(process: BaseProcess, grace_s: float = GRACE_S) -> None:
    """End a process that leads its group, and whatever is left of the group."""
    assert process.pid is not None
    for number, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, grace_s)):
        if process.is_alive():
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, number)
            process.join(wait_s)
    with suppress(ProcessLookupError, PermissionError):  # what the stage started and left behind
        os.killpg(process.pid, signal.SIGKILL)


def detach(log: Path) -> None:
    """Make this forked process the first of a session: default signals, no input, all output into `log`."""
    os.setsid()
    redirect(log)
    faulthandler.enable()


def redirect(log: Path) -> None:
    """In a forked process: default signals, no input, all output into `log`."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    text: dict[str, Any] = {"buffering": 1, "encoding": "utf-8", "errors": "backslashreplace", "closefd": False}
    sys.stdout, sys.stderr = (os.fdopen(number, "w", **text) for number in (1, 2))


def _in_child(stage: Stage, job: Job, path: Path, log: Path) -> None:
    terminal = os.dup(1)
    detach(log)
    environment.separate_streams()
    if job.rehearse:
        torch.set_num_threads(1)  # a guest on its machine; and small work is slower on several
    report = Report(path, about(stage, job), job.rehearse, terminal)
    print(f"--- {stage.part} {stage.name}")
    try:
        stage.run(replace(job, report=report))
    except Skipped as skipped:
        report.result["verdict"] = f"skipped: {skipped}"
    else:
        default = "rehearsed" if job.rehearse else "ok"
        report.result["verdict"] = worst([row["verdict"] for row in report.result["figures"]] or [default])
    report.write()


def preload(with_dali: bool) -> None:
    """Import what stages import late, once for all. None of it touches CUDA; DALI might."""
    late = ["torch.utils.tensorboard", "matplotlib.backends.backend_svg", "training.report.page", "training.sheet"]
    late += ["pipeline.resize"]
    late += ["nvidia.dali.fn", "nvidia.dali.plugin.pytorch", "nvidia.dali.plugin.numba"] * with_dali
    for module in late:
        with suppress(ImportError):  # what is missing is missed, if at all, by the stage that needs it
            import_module(module)


def described(job: Job) -> dict[str, Any]:
    """`stage.describe`, from a process of its own, since this one must not touch CUDA. Raises ValueError where that
    process fails, as where the driver does."""
    path, log = job.work / "env.json", job.work / "env.log"
    path.unlink(missing_ok=True)
    process = job.process(_describe, path, log)
    process.start()
    process.join(DESCRIBE_S)
    end(process)
    if not path.exists():
        raise ValueError(f"the machine could not be described: {(_tail(log, 0) or ['no output'])[-1]}")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _describe(path: Path, log: Path) -> None:
    detach(log)
    environment.separate_streams()
    write_json(path, describe())
