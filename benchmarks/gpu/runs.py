"""Runs of `train.py` for the stages, in processes of their own."""

import json
import os
import signal
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from benchmarks.gpu.run import redirect
from benchmarks.gpu.stage import Job
from training import checkpoint

POLL_S = 0.002


def start(job: Job, arguments: list[str], log: Path) -> BaseProcess:
    """`python train.py ARGUMENTS`, its output in `log`. It belongs to the stage's process group, and ends with it."""
    process = job.process(_train, arguments, log)
    process.start()
    return process


def _train(arguments: list[str], log: Path) -> None:
    redirect(log)
    import train

    train.main(args=arguments, prog_name="train.py")


def evaluated(job: Job, arguments: list[str], log: Path, run_dir: Path) -> Iterator[dict[str, Any]]:
    """Run to the end, and give each validation's line when it is there. Raises RuntimeError as `to_end`."""
    process, seen = start(job, arguments, log), 0
    while True:
        running = process.is_alive()
        for line in lines(run_dir, "eval")[seen:]:
            seen += 1
            yield line
        if not running:
            break
        process.join(0.5)
    if process.exitcode:
        raise RuntimeError(f"train.py ended with {process.exitcode}: {last_line(log)}")


def to_end(job: Job, arguments: list[str], log: Path) -> None:
    """Run to the end. Raises RuntimeError with the run's last line where it fails."""
    process = start(job, arguments, log)
    process.join()
    if process.exitcode:
        raise RuntimeError(f"train.py ended with {process.exitcode}: {last_line(log)}")


def stopped(
    job: Job, arguments: list[str], log: Path, run_dir: Path, number: signal.Signals, after: int, epoch: int
) -> int:
    """Run until `after` steps of an epoch are in the metrics, send a signal, and wait for the end. Returns how many
    steps were there. Raises RuntimeError where the run ended before."""
    process = start(job, arguments, log)
    while process.is_alive():
        steps = [line for line in lines(run_dir, "step") if line["epoch"] == epoch]
        if len(steps) >= after:
            assert process.pid is not None
            os.kill(process.pid, number)
            break
        time.sleep(POLL_S)
    process.join()
    expected = {-number, 128 + number}
    if process.exitcode not in expected:
        raise RuntimeError(f"train.py ended with {process.exitcode} before {number.name}: {last_line(log)}")
    return len(lines(run_dir, "step"))


def last_line(log: Path) -> str:
    found = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return found[-1] if found else "no output"


def lines(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl of a kind; one that is being written does not count yet."""
    try:
        text = (run_dir / "metrics.jsonl").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    found = []
    for line in text.splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return [line for line in found if line.get("kind") == kind]


def digests(run_dir: Path) -> dict[tuple[int, int], str]:
    """(epoch, position) → the digest of the samples of the step that ends there."""
    return {(line["epoch"], line["position"]): line["samples"] for line in lines(run_dir, "step")}


def difference(run_dir: Path, other: Path) -> float:
    """The largest difference between two runs' last weights and statistics; 0 where they agree to the bit."""
    ours, theirs = (checkpoint.load(checkpoint.last_path(folder))["net"] for folder in (run_dir, other))
    if ours.keys() != theirs.keys():
        return float("inf")
    return max(float((ours[name].double() - theirs[name].double()).abs().max()) for name in ours)
