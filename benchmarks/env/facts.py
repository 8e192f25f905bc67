"""What a bug report needs of this machine → a dict that JSON can hold. Never fails."""

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
DALI = "nvidia-dali-"  # how its packages' names begin
DECODERS_LIMIT_S = 60.0
ANSWER = "decoders:"  # how the line begins that has them, among what libraries print
NVIDIA_SMI = ("uuid", "name", "memory.total", "compute_cap", "power.limit")


class Gpu(TypedDict):
    """memory_gb: 10^9 bytes. in_torch: whether torch sees it, as CUDA_VISIBLE_DEVICES may hide some."""

    name: str
    memory_gb: float | None
    compute_capability: str | None
    power_limit_w: float | None
    in_torch: bool


class Facts(TypedDict):
    """What is shown. None for what is unknown, and `problems` says why where something failed.

    env: as in a run's env.json. memory_limit_gb: of the control groups. driver_cuda: the newest that the driver runs.
    jpeg_decoders: "hardware", "cuda", "cpu", those that decoded an image here (`pipeline.probe`). cpu_bf16: the CPU's
    instruction sets for it. open_files: how many this process may have open now, and at most; None for no limit.
    shm_gb: size of /dev/shm, and what is free of it.
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
    """Asks for facts, and keeps what went wrong."""

    problems: list[str] = field(default_factory=list)

    def __call__(self, what: str, ask: Callable[[], T], otherwise: T) -> T:
        """The answer, or `otherwise` where asking fails for whatever reason: the other facts are still of use."""
        try:
            return ask()
        except Exception as error:
            self.problems.append(f"{what}: {first_line(error)}")
            return otherwise


def gather() -> Facts:
    """Never fails."""
    ask = Asked()
    env = environment.describe()
    decoders: list[str] = ask("JPEG decoders", jpeg_decoders, []) if any(map(is_dali, env["packages"])) else []
    smi = from_nvidia_smi()
    gpus = ask("torch", lambda: with_torch(smi), smi)
    if too_old := ask("driver", environment.too_old_driver, None):
        ask.problems.append(too_old)
    if len(several := list(filter(is_dali, env["packages"]))) > 1:
        ask.problems.append(f"{' and '.join(several)}: both write into one directory; uninstall both, install one")
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
    """Asked in a process of its own: where drivers and libraries do not fit together, that may crash or hang, and CUDA
    is started there. Raises RuntimeError with what it said last where it fails."""
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
    """All GPUs by UUID; none where nvidia-smi is missing or fails."""
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
    """The same, with those that torch sees."""
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
    """None for nvidia-smi's "[N/A]" and the like."""
    try:
        return float(text)
    except ValueError:
        return None


def driver_cuda() -> str | None:
    version = environment.driver_cuda()
    return f"{version[0]}.{version[1]}" if version else None


def memory_limit_gb() -> float | None:
    """The least of this process's control group and those above it; None if there is none."""
    limits = [text_of(folder / "memory.max") or "" for folder in environment.cgroup_folders()]
    return min((round(int(limit) / 1e9, 1) for limit in limits if limit.isdecimal()), default=None)


def shm_gb() -> list[float]:
    usage = shutil.disk_usage("/dev/shm")
    return [round(size / 1e9, 3) for size in (usage.total, usage.free)]
