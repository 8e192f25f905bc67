"""Is the machine quiet? What else ran, and what throttled it, while something was measured → warnings, a line each.

What cannot be read of the control group is left out.
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

MAX_SPREAD = 0.10  # of a program's repeats: (most - least) / median
MAX_OTHERS = 0.05  # of the time of the cores that this process may use


class CpuTime(NamedTuple):
    """Seconds so far of the cores that this process may use: in all, busy, and busy with this process's tree."""

    total: float
    busy: float
    own: float


def spread_warnings(rates: Mapping[str, Sequence[float]]) -> list[str]:
    """A line for each program whose repeats differ by more than 10 %. `rates`: name → images/s of the repeats."""
    found = []
    for name, values in rates.items():
        spread = (max(values) - min(values)) / statistics.median(values)
        if spread > MAX_SPREAD:
            found.append(f"{name}: the repeats differ by {spread:.0%} of their median (more than {MAX_SPREAD:.0%})")
    return found


@contextmanager
def watched() -> Iterator[list[str]]:
    """Around a measurement: a list that has its warnings after the end, of the machine and of unsteady programs."""
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
        lines.append(f"other processes took {others:.0%} of the cores' time (more than {MAX_OTHERS:.0%})")
    if (periods := throttled_periods() - throttled) > 0:
        lines.append(f"the container's CPU quota stopped this process in {periods} periods")


def others_share(before: CpuTime, after: CpuTime) -> float:
    """The share of the cores' time that went to other processes, the kernel and other machines (steal)."""
    busy, own = after.busy - before.busy, after.own - before.own
    return max(0.0, (busy - own) / max(after.total - before.total, 1e-9))


def cpu_time() -> CpuTime:
    """As of now; children that have ended and were waited for are ours, too."""
    cores = psutil.cpu_times(percpu=True)
    allowed = [cores[core] for core in psutil.Process().cpu_affinity()]
    total = sum(sum(core[:8]) for core in allowed)  # without the time of guests, which is in user already
    own = 0.0
    for process in family():
        with suppress(psutil.Error):  # it has ended meanwhile
            own += sum(process.cpu_times()[:4])
    return CpuTime(total, total - sum(core.idle + core.iowait for core in allowed), own)


def throttled_periods() -> int:
    """How often the CPU quota of this control group, or of one above it, has stopped its processes."""
    found = 0
    for folder in cgroup_folders():
        with suppress(OSError, ValueError):
            fields = dict(line.split() for line in (folder / "cpu.stat").read_text().splitlines())
            found += int(fields.get("nr_throttled", 0))
    return found
