"""Warn if the machine was busy or throttled during a measurement: one line per warning.

Facts about the control group that cannot be read are ignored.
"""

import statistics
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

import psutil

from penstock.benchmarks.measure import Unsteady
from penstock.benchmarks.processes import family
from penstock.training.environment import cgroup_folders

MAX_SPREAD = 0.10  # (most - least) / median of a program's repeats
MAX_OTHERS = 0.05  # share of the time of the cores that this process may use


class CpuTime(NamedTuple):
    """Seconds so far on the cores that this process may use: total, busy, and busy with this process's tree."""

    total: float
    busy: float
    own: float


def spread_warnings(rates: Mapping[str, Sequence[float]]) -> list[str]:
    """Return a line for each program with repeats that differ by more than 10%. rates: name → images/s per repeat."""
    found = []
    for name, values in rates.items():
        spread = (max(values) - min(values)) / statistics.median(values)
        if spread > MAX_SPREAD:
            found.append(f"{name}: the repeats differ by {spread:.0%} of their median (threshold {MAX_SPREAD:.0%})")
    return found


@contextmanager
def watched() -> Iterator[list[str]]:
    """Collect warnings during a measurement, about the machine and unsteady programs. The list is filled at the end."""
    lines: list[str] = []
    cpu, throttled = cpu_time(), throttled_periods()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", Unsteady)
        yield lines
    for one in caught:
        if issubclass(one.category, Unsteady):
            lines.append(str(one.message))
        else:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    if (others := others_share(cpu, cpu_time())) > MAX_OTHERS:
        lines.append(f"other processes used {others:.0%} of the CPU time (threshold {MAX_OTHERS:.0%})")
    if (periods := throttled_periods() - throttled) > 0:
        lines.append(f"the container's CPU quota throttled this process in {periods} periods")


def others_share(before: CpuTime, after: CpuTime) -> float:
    """Return the share of CPU time used by other processes, the kernel and other virtual machines (steal)."""
    busy, own = after.busy - before.busy, after.own - before.own
    return max(0.0, (busy - own) / max(after.total - before.total, 1e-9))


def cpu_time() -> CpuTime:
    """Read the CPU time used so far. Children that have ended and were waited for count as our own."""
    cores = psutil.cpu_times(percpu=True)
    allowed = [cores[core] for core in psutil.Process().cpu_affinity()]
    total = sum(sum(core[:8]) for core in allowed)  # without guest time, which user time already includes
    own = 0.0
    for process in family():
        with suppress(psutil.Error):  # the process has ended meanwhile
            own += sum(process.cpu_times()[:4])
    return CpuTime(total, total - sum(core.idle + core.iowait for core in allowed), own)


def throttled_periods() -> int:
    """Count how often the CPU quota of this control group, or of one above it, has throttled its processes."""
    found = 0
    for folder in cgroup_folders():
        with suppress(OSError, ValueError):
            fields = dict(line.split() for line in (folder / "cpu.stat").read_text().splitlines())
            found += int(fields.get("nr_throttled", 0))
    return found
