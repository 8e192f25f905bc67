"""`bench.py env`: what a bug report needs of this machine (`facts`) → lines to paste, or JSON.

Needs no GPU, no dataset and no DALI. What is missing is said so, and what fails becomes a line of its own.
"""

import json
from pathlib import Path

import click

from penstock.benchmarks.env.facts import DALI, Facts, Gpu, gather
from penstock.training import environment
from penstock.training.environment import BF16_FLAGS

STDOUT = Path("-")
MISSING = "not installed"
SLOW = f"slow (no {', no '.join(BF16_FLAGS)}): training takes fp32"
PACKAGES = {  # shown name → how its packages' names begin; there may be one for each CUDA
    "torch": "torch",
    "torchvision": "torchvision",
    "DALI": DALI,
    "nvImageCodec": "nvidia-nvimgcodec-",
    "webdataset": "webdataset",
    "numpy": "numpy",
    "numba": "numba",
    "timm": "timm",
    "Pillow": "pillow",
    "simplejpeg": "simplejpeg",
}
DECODERS = {"hardware": "the GPU's JPEG engine", "cuda": "CUDA (nvJPEG)", "cpu": "CPU (libjpeg-turbo)"}


@click.command(name="env")
@click.option("--json", "json_file", is_flag=False, flag_value="-", metavar="[FILE]", help="JSON, to stdout or FILE.",
              type=click.Path(path_type=Path, dir_okay=False, allow_dash=True))  # fmt: skip
def command(json_file: Path | None) -> None:
    """What a bug report needs: versions, processor, GPUs, JPEG decoders, limits. Paste it into the issue."""
    found = gather()
    if json_file is None:
        click.echo("\n".join(lines(found)))
    elif json_file == STDOUT:
        click.echo(json.dumps(found, indent=1))
    else:
        json_file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def lines(found: Facts) -> list[str]:
    """For people: a name and a value a line, the values below each other."""
    env = found["env"]
    commit = env["git_commit"] and f"commit {env['git_commit'][:12]}{', changed' if env['git_changed'] else ''}"
    rows = [
        ("Penstock", f"{env['penstock'] or 'unknown version'}, {commit or 'no git commit'}"),
        ("OS", " / ".join(filter(None, (found["os"], env["platform"])))),
        ("Python", env["python"]),
        *versions(env),
        ("GPU driver", driver(found)),
        *gpu_rows(found["gpus"]),
        ("JPEG decoders", decoders(found)),
        ("CPU", env["cpu"] or "unknown"),
        ("cores", cores(env)),
        ("bf16 on the CPU", f"fast ({', '.join(found['cpu_bf16'])})" if found["cpu_bf16"] else SLOW),
        ("memory", f"{env['memory_gb']} GB" + limited(found["memory_limit_gb"])),
        ("open files", "{}, at most {}".format(*("unlimited" if n is None else n for n in found["open_files"]))),
        ("/dev/shm", "{} GB, {} free".format(*found["shm_gb"]) if found["shm_gb"] else "none"),
        *(("problem", one) for one in found["problems"]),
    ]
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {value}" for name, value in rows]


def versions(env: environment.Environment) -> list[tuple[str, str]]:
    """A row for each of PACKAGES."""
    rows = []
    for name, prefix in PACKAGES.items():
        exact = not prefix.endswith("-")
        there = [one for one in env["packages"] if (one == prefix if exact else one.startswith(prefix))]
        value = ", ".join(env["packages"][one] + ("" if exact else f" ({one})") for one in there) or MISSING
        rows.append((name, value + (f", for CUDA {env['cuda'] or 'none'}" if name == "torch" and there else "")))
    return rows


def driver(found: Facts) -> str:
    version, cuda = found["env"]["gpu_driver"], found["driver_cuda"]
    if not version and not cuda:
        return "none"
    return f"{version or 'unknown version'}, for CUDA {cuda or 'unknown'}"


def gpu_rows(gpus: list[Gpu]) -> list[tuple[str, str]]:
    """A row for each GPU; one that says that there is none."""
    rows = []
    for index, gpu in enumerate(gpus):
        told = [gpu["name"]]
        if gpu["memory_gb"]:
            told.append(f"{gpu['memory_gb']} GB")
        if gpu["compute_capability"]:
            told.append(f"compute capability {gpu['compute_capability']}")
        if gpu["power_limit_w"]:
            told.append(f"power limit {gpu['power_limit_w']:g} W")
        if not gpu["in_torch"]:
            told.append("not seen by torch")
        rows.append((f"GPU {index}", ", ".join(told)))
    return rows or [("GPU", "none")]


def decoders(found: Facts) -> str:
    """Those that decode here; where there is a GPU also those that do not."""
    there = ", ".join(DECODERS[name] for name in found["jpeg_decoders"]) or "none"
    lacking = [text for name, text in DECODERS.items() if name not in found["jpeg_decoders"]]
    return f"{there}; not {', '.join(lacking)}" if found["gpus"] and lacking else there


def cores(env: environment.Environment) -> str:
    quota = env["cpu_quota_cores"]
    allowed = f"{env['cpu_cores']} allowed" + (f", quota {quota:g}" if quota else "")
    governor = env["cpu_governor"]
    return allowed + (f", governor {governor}" if governor else "")


def limited(memory_gb: float | None) -> str:
    return "" if memory_gb is None else f", limited to {memory_gb} GB"
