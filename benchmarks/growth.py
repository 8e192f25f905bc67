"""Measure how the loader's cost grows with dataset size, threads, image size and ranks.

    python -m benchmarks.growth DIR [--only rows]        in the repository's root

Each value is measured by `bench.py loader` in a fresh process. Each run writes one result, and `bench.py plot` draws
them.

The datasets of 10³ to 10⁶ rows repeat DIR's training rows. They are kept beside DIR, in DIR-ROWS, and their shards are
hard links to DIR's. So the images stay the same while the table in memory grows. The time to the first batch does not
include opening the table, which takes 0.03 s at 1.28 million rows.
"""

import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import click
import numpy as np

from penstock.shards.format import INFO_FILE, ShardSet, write_info, write_split

SERIES = {
    "rows": (1_000, 10_000, 100_000, 1_000_000),
    "threads": (1, 2, 3, 4),
    "image-size": (64, 128, 224, 288, 384),
    "ranks": (1, 2),
}


def repeated_dataset(source: ShardSet, rows: int, out: Path) -> None:
    """Write a dataset that repeats the source's training table to `rows`. Its shards are hard links."""
    split = source.split("train")
    table = np.resize(split.samples, rows)
    counts = Counter(table["shard"].tolist())
    shards = [replace(info, samples=counts[shard]) for shard, info in enumerate(split.shards)]
    out.mkdir(exist_ok=True)
    for shard, info in enumerate(shards):
        (out / info.file).unlink(missing_ok=True)  # left by an interrupted run
        (out / info.file).hardlink_to(split.shard_path(shard).resolve())
    files = write_split(out, "train", table, (b"repeated\n" for _ in range(rows)))
    write_info(out, source.classes, {"train": shards}, {"repeated": str(source.root)}, files)


def command(series: str, value: int, data: Path) -> list[str]:
    """Return the command line of one measurement, without --json. Makes the dataset that it needs."""
    program, options = [sys.executable], [f"--{series}={value}"]
    if series == "rows":
        source, data, options = data, data.with_name(f"{data.name}-{value}"), []
        if not (data / INFO_FILE).exists():
            repeated_dataset(ShardSet.open(source), value, data)
    elif series == "ranks":
        program, options = [*program, "-m", "torch.distributed.run", f"--nproc-per-node={value}"], ["--threads=1"]
    return [*program, "bench.py", "loader", f"--data={data}", *options, "--batch-size=100"]


@click.command()
@click.argument("data", type=click.Path(path_type=Path, exists=True), metavar="DIR")
@click.option("--only", type=click.Choice(list(SERIES)), multiple=True,
              help="Run only this series. May be repeated. [default: all]")  # fmt: skip
def main(data: Path, only: tuple[str, ...]) -> None:
    """Measure how the loader's cost grows with dataset size, threads, image size and ranks.

    DIR is a packed dataset. Runs `bench.py loader` once per value, and writes
    benchmarks/results/growth-SERIES-VALUE.json. Run it in the repository's root.
    """
    for series in only or SERIES:
        for value in SERIES[series]:
            file = f"benchmarks/results/growth-{series}-{value}.json"
            subprocess.run([*command(series, value, data), "--json", file], check=True)


if __name__ == "__main__":
    main()
