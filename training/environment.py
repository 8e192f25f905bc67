"""Where a run ran: versions, processor, GPU → a dict for `env.json`. Never fails; what is unknown is None."""

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch

PACKAGES = (
    "torch",
    "torchvision",
    "nvidia-dali-cuda120",
    "nvidia-dali-cuda130",
    "nvidia-dali-weekly-cuda120",
    "numpy",
    "webdataset",
    "pillow",
)


def describe() -> dict[str, Any]:
    """JSON-serializable facts that a measured figure depends on."""
    return {
        "git_commit": _git("rev-parse", "HEAD"),
        "git_changed": _git_changed(),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "cpu": _cpu_model(),
        "cpu_cores": _cores(),
        "cpu_quota_cores": _quota_cores(Path("/sys/fs/cgroup")),
        "torch_threads": torch.get_num_threads(),
        "gpu": _gpu(),
        "num_gpus": torch.cuda.device_count(),
        "gpu_driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "cuda": torch.version.cuda,
    }


def device_name(device: torch.device) -> str:
    """For people: the GPU's name, or the processor's and how many cores this process may use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_cpu_model() or 'CPU'} ({_cores()} cores)"


def best_precision(device: torch.device) -> Literal["bf16", "fp16", "fp32"]:
    """The fastest precision that the device has instructions for. Without AVX512-BF16 or AMX a CPU computes bf16 5 to
    10 times slower than fp32."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    try:
        flags = next(
            line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")
        ).split()
    except (OSError, StopIteration):
        return "fp32"
    return "bf16" if {"avx512_bf16", "amx_bf16"} & set(flags) else "fp32"


def _git(*arguments: str) -> str | None:
    return _output("git", "-C", str(Path(__file__).parent), *arguments)


def _git_changed() -> bool | None:
    """Whether the code differs from the commit; None without a commit."""
    if _git("rev-parse", "HEAD") is None:
        return None
    return bool(_git("status", "--porcelain", "--untracked-files=no"))


def _output(*command: str) -> str | None:
    """The first line that a command prints; None if it cannot be run, fails, or prints nothing."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return result.stdout.strip().partition("\n")[0] or None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str | None:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or None


def _cores() -> int | None:
    """Cores that this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        return os.cpu_count()


def _quota_cores(cgroup: Path) -> float | None:
    """The container's CPU quota in cores (cgroup v2, then v1); None if there is none."""
    try:
        if (cgroup / "cpu.max").exists():
            quota, period = (cgroup / "cpu.max").read_text().split()
        else:
            quota = (cgroup / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu/cpu.cfs_period_us").read_text().strip()
        return None if quota in ("max", "-1") else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _gpu() -> str | None:
    try:
        return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    except (RuntimeError, AssertionError):
        return None
