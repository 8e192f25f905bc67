"""Describe where a run takes place: versions, processor, GPU → a dict for `env.json`. Never fails; unknown values are
None.

`bench.py env` shows these and further facts (`benchmarks/env/`).
"""

import ctypes
import os
import platform
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict, cast

import psutil

from penstock.recipes.hardware import cgroup_folders as cgroup_folders  # benchmarks ask for these three here
from penstock.recipes.hardware import cores_allowed as cores_allowed
from penstock.recipes.hardware import cpu_cores, gpu_name, quota_cores, text_of
from penstock.recipes.hardware import cpu_model as cpu_model

if TYPE_CHECKING:  # functions import torch when they need it, so importing this module does not
    import torch

PACKAGES = (
    "torch",
    "torchvision",
    "nvidia-dali-cuda120",
    "nvidia-dali-cuda130",
    "nvidia-dali-weekly-cuda120",
    "nvidia-nvimgcodec-cu12",
    "nvidia-nvimgcodec-cu13",
    "numpy",
    "webdataset",
    "pillow",
    "simplejpeg",
    "numba",
    "timm",
)
CHECKOUT = Path(__file__).resolve().parents[1]  # or the package, if it is installed
GPU_QUERY = {  # nvidia-smi's name → ours
    "driver_version": "gpu_driver",
    "clocks.current.sm": "gpu_clock_mhz",
    "clocks.max.sm": "gpu_max_clock_mhz",
    "clocks.max.memory": "gpu_max_memory_clock_mhz",
    "power.limit": "gpu_power_limit_w",
}
BF16_FLAGS = ("avx512_bf16", "amx_bf16")  # as /proc/cpuinfo names them
DALI = {"nvidia-dali-cuda130": 13, "nvidia-dali-cuda120": 12}  # package → the CUDA it is built for


def too_old_driver() -> str | None:
    """A line with the remedy if the GPU's driver is too old for the CUDA that torch or DALI is built for; else None.

    A driver supports its own CUDA major version and earlier ones (CUDA Compatibility, "minor version").
    """
    if (driver := driver_cuda()) is None:
        return None
    import torch

    built = {"torch": int((torch.version.cuda or "0").partition(".")[0])}
    built["DALI"] = max((cuda for package, cuda in DALI.items() if _version(package)), default=0)
    newer = " and ".join(f"{name} needs CUDA {cuda}" for name, cuda in built.items() if cuda > driver[0])
    if not newer:
        return None
    return (
        f"the GPU's driver supports CUDA {driver[0]}.{driver[1]}, but {newer}. "
        "Install a newer driver, or torch and DALI for CUDA 12 (docs/installation.md)"
    )


def driver_cuda() -> tuple[int, int] | None:
    """The CUDA version that the GPU's driver supports; None without a driver."""
    version = ctypes.c_int()
    try:
        failed = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return None
    return None if failed or not version.value else (version.value // 1000, version.value % 1000 // 10)


def separate_streams() -> None:
    """Request 32 hardware queues for CUDA streams instead of 8, unless the user has set a number. Call this before the
    first work on a GPU. Streams that share a queue wait for each other: with 8 queues, decoding stopped while a step
    ran (docs/gpu.md)."""
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")


def choose_kernels(deterministic: bool = False) -> None:
    """Set how torch chooses kernels, the same for training and benchmarks. Call this before the first work on a GPU.

    cuDNN times its algorithms for each new shape, and float32 products use TF32. `deterministic`: neither timings
    nor anything else may change a result. cuBLAS then needs a fixed workspace size, which it reads at first use.
    """
    import torch

    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = not deterministic
    torch.use_deterministic_algorithms(deterministic)
    torch.set_float32_matmul_precision("high")


class GpuSettings(TypedDict):
    """Settings of the first GPU, from nvidia-smi: numbers as strings, without their units."""

    gpu_driver: str | None
    gpu_clock_mhz: str | None
    gpu_max_clock_mhz: str | None
    gpu_max_memory_clock_mhz: str | None
    gpu_power_limit_w: str | None


class TorchFacts(TypedDict):
    """Facts from torch. cuda: the version that torch is built for."""

    torch_threads: int | None
    gpu: str | None
    num_gpus: int
    cuda: str | None
    cudnn: int | None


class Environment(GpuSettings, TorchFacts):
    """The facts that a measurement depends on, as in `env.json` and in results. Unknown values are None.

    penstock: its version. cpu_cores: the cores that this process may run on. cpu_quota_cores: the smallest quota of its
    control groups. cores_allowed: the smaller of the two. memory_gb: the machine's memory, 10^9 bytes.
    """

    penstock: str | None
    git_commit: str | None
    git_changed: bool | None
    command: list[str]
    python: str
    platform: str
    packages: dict[str, str]
    cpu: str | None
    cpu_cores: int | None
    cpu_quota_cores: float | None
    cores_allowed: float | None
    cpu_governor: str | None
    memory_gb: float


def describe() -> Environment:
    """Collect the facts as a dict that JSON can hold."""
    return {
        "penstock": penstock_version(),
        "git_commit": _git("rev-parse", "HEAD"),
        "git_changed": _git_changed(),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "cpu": cpu_model(),
        "cpu_cores": cpu_cores(),
        "cpu_quota_cores": quota_cores(),
        "cores_allowed": cores_allowed(),
        "cpu_governor": text_of(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        **_torch_facts(),
        **_gpu_settings(),
    }


def _torch_facts() -> TorchFacts:
    try:
        import torch
    except (ImportError, OSError):  # torch, or a library that it needs, is not installed
        return {"torch_threads": None, "gpu": None, "num_gpus": 0, "cuda": None, "cudnn": None}
    return {
        "torch_threads": torch.get_num_threads(),
        "gpu": gpu_name(),
        "num_gpus": torch.cuda.device_count(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.cuda.is_available() else None,
    }


def penstock_version() -> str | None:
    """This project's version, from the checkout's pyproject.toml, or of the installed package."""
    try:
        project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))
        return str(project["project"]["version"])
    except (OSError, ValueError, KeyError):
        return _version("penstock")


def device_name(device: "torch.device") -> str:
    """A name to print: the GPU's, or the processor's with the number of cores that this process may use."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    return f"{cpu_model() or 'CPU'} ({cpu_cores()} cores)"


def best_precision(device: "torch.device") -> Literal["bf16", "fp16", "fp32"]:
    """The half precision that the device has instructions for, bf16 first, which needs no loss scaling; whether fp16 is
    faster on a GPU, `benchmarks.gpu` measures. Without AVX512-BF16 or AMX a CPU computes bf16 5 to 10 times slower than
    fp32, which it then is."""
    if device.type == "cuda":
        import torch

        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if cpu_bf16() else "fp32"


def cpu_bf16() -> list[str]:
    """Which of the instruction sets that make bf16 fast this CPU has."""
    lines = (text_of(Path("/proc/cpuinfo")) or "").splitlines()
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    return [name for name in BF16_FLAGS if name in flags]


def _git(*arguments: str) -> str | None:
    if not (
        CHECKOUT / "pyproject.toml"
    ).exists():  # an installed package: a surrounding repository is another project's
        return None
    return _output("git", "-C", str(CHECKOUT), *arguments)


def _git_changed() -> bool | None:
    """Whether the code differs from the commit; None without a commit."""
    if _git("rev-parse", "HEAD") is None:
        return None
    return bool(_git("status", "--porcelain", "--untracked-files=no"))


def _output(*command: str) -> str | None:
    """The first line that a command prints; None if there is none."""
    return (printed(*command) or "").partition("\n")[0] or None


def printed(*command: str) -> str | None:
    """What a command prints; None if it cannot be run, fails, or prints nothing."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return result.stdout.strip() or None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _gpu_settings() -> GpuSettings:
    """Driver, clocks and power limit of the first GPU, as nvidia-smi has them; strings without units, or None."""
    line = _output("nvidia-smi", f"--query-gpu={','.join(GPU_QUERY)}", "--format=csv,noheader,nounits")
    values: list[str | None] = [value.strip() for value in line.split(",")] if line else []
    if len(values) != len(GPU_QUERY):
        values = [None for _ in GPU_QUERY]
    return cast(GpuSettings, dict(zip(GPU_QUERY.values(), values, strict=True)))
