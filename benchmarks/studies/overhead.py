"""What `train.py` costs beside a bare loop of the same network on the same synthetic batches, both run in turn.

    python benchmarks/studies/overhead.py [--data DIR] [--network resnet18] [--json FILE]

The ratio is train.py's images/s in steady state (its log lines after the first fifth of the steps) over the loop's.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))


@click.command(context_settings={"show_default": True})
@click.option(
    "--data", default="data/demo", metavar="DIR", help="Packed dataset: its classes and its size count, not its images."
)
@click.option("--network", default="resnet18", help="One of torchvision's.")
@click.option("--image-size", type=int, default=64, metavar="S")
@click.option("--batch-size", type=int, default=64, metavar="B")
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32")
@click.option("--steps", type=int, default=40, metavar="N", help="Timed steps of each run.")
@click.option("--repeats", type=int, default=5, metavar="N")
@click.option("--json", "json_file", type=click.Path(path_type=Path), metavar="FILE")
def main(data: str, network: str, image_size: int, batch_size: int, precision: str, steps: int, repeats: int,
         json_file: Path | None) -> None:  # fmt: skip
    """Time `train.py` on synthetic batches and a bare loop, in turn."""
    from shard_tools.format import ShardSet
    from training import environment

    classes = len(ShardSet.open(data).classes)
    dtype = {"fp32": "float32", "bf16": "bfloat16"}[precision]
    bare = [network, classes, image_size, batch_size, dtype, steps]
    sets = {
        "data.loader": "synthetic", "data.image_size": image_size, "model.name": network, "schedule.warmup_epochs": 0,
        "train.global_batch_size": batch_size, "train.precision": precision, "train.epochs": 1000,
        "train.eval_every": 1000, "train.log_every": steps // 5,
    }  # fmt: skip
    pairs = []
    for repeat in range(repeats):
        pairs.append((train_rate(data, sets, steps + steps // 5), bare_rate(bare)))
        ours, theirs = pairs[-1]
        click.echo(f"{repeat + 1}: train.py {ours:,.1f} images/s, bare loop {theirs:,.1f}: {ours / theirs:.3f}")
    ratios = [ours / theirs for ours, theirs in pairs]
    click.echo(f"ratio {statistics.median(ratios):.3f} [{min(ratios):.3f}–{max(ratios):.3f}]")
    result: dict[str, Any] = {
        "benchmark": "overhead", "settings": {"network": network, "image_size": image_size, "batch_size": batch_size,
        "precision": precision, "steps": steps}, "train_images_per_s": [a for a, _ in pairs],
        "bare_images_per_s": [b for _, b in pairs], "ratio": statistics.median(ratios), "ratio_min": min(ratios),
        "ratio_max": max(ratios), "env": environment.describe(),
    }  # fmt: skip
    if json_file:
        json_file.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def train_rate(data: str, sets: dict[str, Any], steps: int) -> float:
    """images/s of train.py's steps after its first log interval."""
    with tempfile.TemporaryDirectory() as run_dir:
        options = [argument for name, value in sets.items() for argument in ("--set", f"{name}={value}")]
        command = [
            sys.executable,
            "train.py",
            "--data",
            data,
            "--run-dir",
            run_dir,
            "--max-steps",
            str(steps),
            *options,
        ]
        output(command)
        lines = [json.loads(line) for line in (Path(run_dir) / "metrics.jsonl").read_text().splitlines()]
    rates = [line["images_per_s"] for line in lines if line["kind"] == "step"][sets["train.log_every"] :]
    return len(rates) / sum(1 / rate for rate in rates)


def bare_rate(arguments: list[Any]) -> float:
    return float(output([sys.executable, "benchmarks/studies/bare_loop.py", *map(str, arguments)]).split()[-1])


def output(command: list[str]) -> str:
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONWARNINGS": "ignore"}, capture_output=True, text=True
    )
    if done.returncode:
        raise click.ClickException(f"{' '.join(command)}: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout


if __name__ == "__main__":
    main()
