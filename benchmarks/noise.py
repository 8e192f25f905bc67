"""Is the machine quiet? What else ran, and what throttled it, while something was measured → warnings, a line each.

Reads /proc/stat and the control group's cpu.stat. What cannot be read is left out.
"""

import os
import statistics
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from benchmarks.measure import Unsteady
from benchmarks.processes import tree_root, tree_ticks
from training.environment import cgroup_folders

MAX_SPREAD = 0.10  # of a program's repeats: (most - least) / median
MAX_OTHERS = 0.05  # of the time of the cores that this process may use


class CpuTime(NamedTuple):
    """Ticks so far of the cores that this process may use: in all, busy, and busy with this process's tree."""

    total: int
    busy: int
    own: int


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
    others = others_share(cpu, cpu_time())
    if others is not None and others > MAX_OTHERS:
        lines.append(f"other processes took {others:.0%} of the cores' time (more than {MAX_OTHERS:.0%})")
    if (periods := throttled_periods() - throttled) > 0:
        lines.append(f"the container's CPU quota stopped this process in {periods} periods")


def others_share(before: CpuTime | None, after: CpuTime | None) -> float | None:
    """The share of the cores' time that went to other processes, the kernel and other machines (steal); None where it
    is unknown."""
    if before is None or after is None or after.total <= before.total:
        return None
    busy, own = after.busy - before.busy, after.own - before.own
    return max(0.0, (busy - own) / (after.total - before.total))


def cpu_time(proc: Path = Path("/proc")) -> CpuTime | None:
    """As of now; None where there is no /proc/stat."""
    try:
        lines = (proc / "stat").read_text().splitlines()
    except OSError:
        return None
    allowed = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    total = busy = 0
    for line in lines:
        name, *fields = line.split()
        if name in allowed:  # user nice system idle iowait irq softirq steal; guests are in user already
            ticks = [int(field) for field in fields[:8]]
            total += sum(ticks)
            busy += sum(ticks) - ticks[3] - ticks[4]
    return CpuTime(total, busy, tree_ticks(tree_root(), proc))


def throttled_periods() -> int:
    """How often the CPU quota of this control group, or of one above it, has stopped its processes."""
    found = 0
    for folder in cgroup_folders():
        with suppress(OSError, ValueError):
            fields = dict(line.split() for line in (folder / "cpu.stat").read_text().splitlines())
            found += int(fields.get("nr_throttled", 0))
    return found
