"""How the loader's cost grows: `bench.py loader` in a fresh process for each size of the dataset, number of threads,
image size and number of ranks; one result a run, from which `bench.py plot` draws.

    python -m benchmarks.growth --data DIR [--out benchmarks/results] [--only rows]

The datasets of 10³ to 10⁶ rows repeat DIR's training rows (their shards are links to DIR's) and are kept beside it, in
DIR-ROWS (`bench.py plot` takes results of such names for one line): so memory is that of a table of that size, and the
images are the same. The time to the first batch does not have the opening of the table in it: that takes 0.03 s at 1.28
million rows.
"""

import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import click
import numpy as np

from shards.format import INFO_FILE, ShardSet, write_info, write_split

ROOT = Path(__file__).parents[1]
SERIES: dict[str, tuple[int, ...]] = {
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
    for shard, info in enumerate(shards):
        (out / info.file).unlink(missing_ok=True)  # of a run that was interrupted
        (out / info.file).symlink_to(split.shard_path(shard).resolve())
    files = write_split(out, "train", table, (b"repeated\n" for _ in range(rows)))
    write_info(out, source.classes, {"train": shards}, {"repeated": str(source.root)}, files)


def of_rows(data: Path, rows: int) -> Path:
    """The dataset that repeats `data` to so many rows, made where it is not there yet."""
    out = data.with_name(f"{data.name}-{rows}")
    if not (out / INFO_FILE).exists():
        out.mkdir(exist_ok=True)
        repeated_dataset(ShardSet.open(data), rows, out)
    return out


def arguments(series: str, value: int, data: Path) -> list[str]:
    """The command line after `python`, or after `torchrun`."""
    line = ["--data", str(of_rows(data, value) if series == "rows" else data)]
    if series in ("threads", "image-size"):
        line += [f"--{series}", str(value)]
    if series == "ranks":
        line += ["--threads", "1"]
    return ["bench.py", "loader", *line, "--batch-size", "100"]


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True, help="Packed dataset.")
@click.option("--out", type=click.Path(path_type=Path), default=ROOT / "benchmarks/results", help="For the results.")
@click.option("--only", type=click.Choice(list(SERIES)), multiple=True, help="This series; several for several.")
@click.option("--seconds", default=5.0, show_default=True)
@click.option("--repeats", default=5, show_default=True)
def main(data: Path, out: Path, only: tuple[str, ...], seconds: float, repeats: int) -> None:
    """Run every series and write growth-SERIES-VALUE.json files."""
    data, out = (Path(os.path.relpath(path, ROOT)) for path in (data, out))
    os.chdir(ROOT)
    for series in only or SERIES:
        for value in SERIES[series]:
            launcher = [sys.executable]
            if series == "ranks" and value > 1:
                launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(value)]
            file = str(out / f"growth-{series}-{value}.json")
            timing = ["--seconds", str(seconds), "--repeats", str(repeats), "--json", file]
            subprocess.run([*launcher, *arguments(series, value, data), *timing], check=True)


if __name__ == "__main__":
    main()
