"""The machine's hardware: its processor, the cores that this process may use, its GPU. None for what is unknown."""

import os
import platform
from pathlib import Path

from penstock.pipeline.memory import cgroup_folders as cgroup_folders  # part of this module's interface


def cpu_model() -> str | None:
    """The processor's name."""
    for line in (text_of(Path("/proc/cpuinfo")) or "").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or None


def cores_allowed() -> float | None:
    """The number of cores that this process can use, by its affinity and its control group's quota."""
    allowed, quota = cpu_cores(), quota_cores()
    return allowed if allowed is None or quota is None else min(allowed, quota)


def cpu_cores() -> int | None:
    """The number of cores on which this process may run."""
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        return os.cpu_count()


def quota_cores() -> float | None:
    """The lowest CPU quota, in cores, of this process's control group and its parents; None if there is none."""
    return min(filter(None, map(_quota_cores, cgroup_folders())), default=None)


def _quota_cores(cgroup: Path) -> float | None:
    """The CPU quota of one control group in cores; None if it has none."""
    try:
        if (cgroup / "cpu.max").exists():
            quota, period = (cgroup / "cpu.max").read_text().split()
        else:
            quota = (cgroup / "cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu.cfs_period_us").read_text().strip()
        return None if quota in ("max", "-1") else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def gpu_name() -> str | None:
    """The first GPU's name in torch."""
    import torch

    try:
        return torch.cuda.get_device_name() if torch.cuda.is_available() else None
    except (RuntimeError, AssertionError):
        return None


def text_of(path: Path) -> str | None:
    """The text of a small file, such as one of the kernel's; None if it cannot be read."""
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
