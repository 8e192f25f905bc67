"""`bench.py env`: print the facts about this machine that a bug report needs (`facts`), as lines to paste or JSON.

Needs no GPU, no dataset and no DALI. A missing part is shown as missing, and a failure gets a line of its own.
"""

import json
from pathlib import Path

import click

from penstock.benchmarks.env.facts import DALI, Facts, Gpu, gather
from penstock.training import environment
from penstock.training.environment import BF16_FLAGS

STDOUT = Path("-")
MISSING = "not installed"
SLOW = f"slow (no {', no '.join(BF16_FLAGS)}): training uses fp32"
PACKAGES = {  # shown name → prefix of the package's names; there may be one package for each CUDA version
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
@click.option("--json", "json_file", is_flag=False, flag_value="-", metavar="[FILE]",
              help="Write JSON, to FILE or to stdout.",
              type=click.Path(path_type=Path, dir_okay=False, allow_dash=True))  # fmt: skip
def command(json_file: Path | None) -> None:
    """Show facts about the machine, for a bug report.

    Versions, processor, GPUs, JPEG decoders and limits. Paste the output into the issue.
    """
    found = gather()
    if json_file is None:
        click.echo("\n".join(lines(found)))
    elif json_file == STDOUT:
        click.echo(json.dumps(found, indent=1))
    else:
        json_file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def lines(found: Facts) -> list[str]:
    """Return lines of a name and a value, with the values aligned."""
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
        (
            "open files",
            "limit {}, hard limit {}".format(*("unlimited" if n is None else n for n in found["open_files"])),
        ),
        ("/dev/shm", "{} GB, {} free".format(*found["shm_gb"]) if found["shm_gb"] else "none"),
        *(("problem", one) for one in found["problems"]),
    ]
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {value}" for name, value in rows]


def versions(env: environment.Environment) -> list[tuple[str, str]]:
    """Return a row for each of PACKAGES."""
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
    """Return a row for each GPU, or one row with "none"."""
    rows = []
    for index, gpu in enumerate(gpus):
        parts = [gpu["name"]]
        if gpu["memory_gb"]:
            parts.append(f"{gpu['memory_gb']} GB")
        if gpu["compute_capability"]:
            parts.append(f"compute capability {gpu['compute_capability']}")
        if gpu["power_limit_w"]:
            parts.append(f"power limit {gpu['power_limit_w']:g} W")
        if not gpu["in_torch"]:
            parts.append("not seen by torch")
        rows.append((f"GPU {index}", ", ".join(parts)))
    return rows or [("GPU", "none")]


def decoders(found: Facts) -> str:
    """Return the decoders that work here and, on a machine with a GPU, those that do not."""
    there = ", ".join(DECODERS[name] for name in found["jpeg_decoders"]) or "none"
    lacking = [text for name, text in DECODERS.items() if name not in found["jpeg_decoders"]]
    return f"{there}; not working: {', '.join(lacking)}" if found["gpus"] and lacking else there


def cores(env: environment.Environment) -> str:
    quota = env["cpu_quota_cores"]
    allowed = f"{env['cpu_cores']} allowed" + (f", quota {quota:g}" if quota else "")
    governor = env["cpu_governor"]
    return allowed + (f", governor {governor}" if governor else "")


def limited(memory_gb: float | None) -> str:
    return "" if memory_gb is None else f", limited to {memory_gb} GB"
