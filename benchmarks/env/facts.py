"""Gather the facts about this machine that a bug report needs, as a dict that JSON can hold. Never fails."""

import platform
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict, TypeVar

from penstock.recipes.hardware import text_of
from penstock.training import environment
from penstock.training.refusal import first_line

T = TypeVar("T")
DALI = "nvidia-dali-"  # prefix of its packages' names
DECODERS_LIMIT_S = 60.0
ANSWER = "decoders:"  # prefix of the answer's line, which sets it apart from the libraries' output
NVIDIA_SMI = ("uuid", "name", "memory.total", "compute_cap", "power.limit")


class Gpu(TypedDict):
    """A GPU. memory_gb: 10^9 bytes. in_torch: whether torch sees it, since CUDA_VISIBLE_DEVICES may hide it."""

    name: str
    memory_gb: float | None
    compute_capability: str | None
    power_limit_w: float | None
    in_torch: bool


class Facts(TypedDict):
    """The facts. None means unknown. `problems` has the reasons for failures.

    env: as in a run's env.json. memory_limit_gb: the control groups' limit. driver_cuda: the newest CUDA version that
    the driver supports. jpeg_decoders: those of "hardware", "cuda" and "cpu" that decoded an image here
    (`pipeline.probe`). cpu_bf16: the CPU's instruction sets for bf16. open_files: the soft and hard limit of open
    files; None for no limit. shm_gb: the size of /dev/shm and its free space.
    """

    env: environment.Environment
    os: str | None
    memory_limit_gb: float | None
    driver_cuda: str | None
    gpus: list[Gpu]
    jpeg_decoders: list[str]
    cpu_bf16: list[str]
    open_files: list[int | None]
    shm_gb: list[float] | None
    problems: list[str]


@dataclass
class Asked:
    """Collects facts, and remembers failures."""

    problems: list[str] = field(default_factory=list)

    def __call__(self, what: str, ask: Callable[[], T], otherwise: T) -> T:
        """Return the answer, or `otherwise` if `ask` fails for any reason, since the other facts are still useful."""
        try:
            return ask()
        except Exception as error:
            self.problems.append(f"{what}: {first_line(error)}")
            return otherwise


def gather() -> Facts:
    """Gather all facts. Never fails."""
    ask = Asked()
    env = environment.describe()
    decoders: list[str] = ask("JPEG decoders", jpeg_decoders, []) if any(map(is_dali, env["packages"])) else []
    smi = from_nvidia_smi()
    gpus = ask("torch", lambda: with_torch(smi), smi)
    if too_old := ask("driver", environment.too_old_driver, None):
        ask.problems.append(too_old)
    if len(several := list(filter(is_dali, env["packages"]))) > 1:
        ask.problems.append(f"{' and '.join(several)}: both write into one directory. Uninstall both, install one.")
    return {
        "env": env,
        "os": ask("OS", lambda: platform.freedesktop_os_release()["PRETTY_NAME"], None),
        "memory_limit_gb": memory_limit_gb(),
        "driver_cuda": ask("driver", driver_cuda, None),
        "gpus": list(gpus.values()),
        "jpeg_decoders": decoders,
        "cpu_bf16": environment.cpu_bf16(),
        "open_files": [None if n == resource.RLIM_INFINITY else n for n in resource.getrlimit(resource.RLIMIT_NOFILE)],
        "shm_gb": ask("/dev/shm", shm_gb, None),
        "problems": list(dict.fromkeys(ask.problems)),
    }


def is_dali(package: str) -> bool:
    return package.startswith(DALI)


def jpeg_decoders() -> list[str]:
    """Probe the JPEG decoders in a separate process.

    The probe starts CUDA, and may crash or hang if drivers and libraries do not match. Raises RuntimeError with the
    last line of its output if it fails.
    """
    code = f"from penstock.pipeline.probe import jpeg_decoders; print('\\n{ANSWER}', *jpeg_decoders())"
    command, root = [sys.executable, "-c", code], Path(__file__).parents[3]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, timeout=DECODERS_LIMIT_S)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"no answer in {DECODERS_LIMIT_S:.0f} s") from None
    answers = [line for line in done.stdout.decode(errors="replace").splitlines() if line.startswith(ANSWER)]
    if answers:
        return answers[0].split()[1:]
    status = done.returncode
    how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    said = done.stderr.decode(errors="replace").strip().splitlines()
    raise RuntimeError(": ".join([how, *said[-1:]]))


def from_nvidia_smi() -> dict[str, Gpu]:
    """Return all GPUs by UUID, none if nvidia-smi is missing or fails."""
    found: dict[str, Gpu] = {}
    query = f"--query-gpu={','.join(NVIDIA_SMI)}"
    for line in (environment.printed("nvidia-smi", query, "--format=csv,noheader,nounits") or "").splitlines():
        values = [value.strip() for value in line.split(",")]
        if len(values) != len(NVIDIA_SMI):
            continue
        uuid, name, memory, capability, power = values
        memory_mib = number(memory)
        found[uuid.removeprefix("GPU-")] = {
            "name": name, "memory_gb": memory_mib and round(memory_mib * 2**20 / 1e9, 1),
            "compute_capability": capability if number(capability) else None,
            "power_limit_w": number(power), "in_torch": False,
        }  # fmt: skip
    return found


def with_torch(gpus: dict[str, Gpu]) -> dict[str, Gpu]:
    """Return the GPUs with those added that only torch sees, and mark all that torch sees."""
    import torch

    gpus = dict(gpus)
    for index in range(torch.cuda.device_count()):
        its = torch.cuda.get_device_properties(index)
        gpu: Gpu = {
            "name": its.name, "memory_gb": round(its.total_memory / 1e9, 1),
            "compute_capability": f"{its.major}.{its.minor}", "power_limit_w": None, "in_torch": True,
        }  # fmt: skip
        uuid = str(getattr(its, "uuid", index))
        gpus[uuid] = {**gpus[uuid], "in_torch": True} if uuid in gpus else gpu
    return gpus


def number(text: str) -> float | None:
    """Parse a number. Returns None for nvidia-smi's "[N/A]" and the like."""
    try:
        return float(text)
    except ValueError:
        return None


def driver_cuda() -> str | None:
    version = environment.driver_cuda()
    return f"{version[0]}.{version[1]}" if version else None


def memory_limit_gb() -> float | None:
    """Return the lowest limit of this process's control group and those above it, or None without a limit."""
    limits = [text_of(folder / "memory.max") or "" for folder in environment.cgroup_folders()]
    return min((round(int(limit) / 1e9, 1) for limit in limits if limit.isdecimal()), default=None)


def shm_gb() -> list[float]:
    usage = shutil.disk_usage("/dev/shm")
    return [round(size / 1e9, 3) for size in (usage.total, usage.free)]
