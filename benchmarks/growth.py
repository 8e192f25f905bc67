"""How the loader's cost grows: `bench.py loader` in a fresh process for each size of the dataset, number of threads,
image size and number of ranks; one result a run, from which `bench.py plot` draws.

    python -m benchmarks.growth DIR [--only rows]        in the repository's root

The datasets of 10³ to 10⁶ rows repeat DIR's training rows (their shards are links to DIR's) and are kept beside it, in
DIR-ROWS: so memory is that of a table of that size, and the images are the same. The time to the first batch does not
have the opening of the table in it: that takes 0.03 s at 1.28 million rows.
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
    """Write a dataset whose training table repeats the source's to `rows`; its shards are links."""
    split = source.split("train")
    table = np.resize(split.samples, rows)
    counts = Counter(table["shard"].tolist())
    shards = [replace(info, samples=counts[shard]) for shard, info in enumerate(split.shards)]
    out.mkdir(exist_ok=True)
    for shard, info in enumerate(shards):
        (out / info.file).unlink(missing_ok=True)  # of a run that was interrupted
        (out / info.file).hardlink_to(split.shard_path(shard).resolve())
    files = write_split(out, "train", table, (b"repeated\n" for _ in range(rows)))
    write_info(out, source.classes, {"train": shards}, {"repeated": str(source.root)}, files)


def command(series: str, value: int, data: Path) -> list[str]:
    """One measurement's command line, but for where its result goes. Makes the dataset that it needs."""
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
@click.option("--only", type=click.Choice(list(SERIES)), multiple=True, help="This series; several for several.")
def main(data: Path, only: tuple[str, ...]) -> None:
    """Run every series on a packed dataset, and write benchmarks/results/growth-SERIES-VALUE.json."""
    for series in only or SERIES:
        for value in SERIES[series]:
            file = f"benchmarks/results/growth-{series}-{value}.json"
            subprocess.run([*command(series, value, data), "--json", file], check=True)


if __name__ == "__main__":
    main()
