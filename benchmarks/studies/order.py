"""How well `block` order shuffles, and what it asks of the disk, beside the full permutation and the stored order.

    python benchmarks/studies/order.py [--data DIR] [--json FILE]

No image is read: a table of `--rows` samples is laid out as `pack` would, with the sizes of the images in DIR (110 KB
each without). For every order:

- autocorrelation of stored positions at some lags. A true permutation has -1/(N-1), with a standard deviation of 1/√N;
- distinct classes in a batch, where the table is sorted by class (the worst case) and where it is shuffled, as `pack`
  makes it. A true permutation has the hypergeometric expectation Σ_c 1 - C(N-N_c, B) / C(N, B). The spread of the class
  counts is χ² over its expectation: 1 for a true permutation;
- the requests that come of reading ahead a batch, the loader's `read_ahead` batches, or a whole window: neighbouring
  samples become one request. How long a request is, the share of bytes in long ones, the shards touched at a time.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))  # run as a script, from anywhere

from pipeline.config import DataConfig
from pipeline.plan import EpochPlan
from shard_tools.format import SAMPLE_DTYPE, ShardSet

LAGS = (1, 2, 16, 256, 4096)
TAR_BLOCK = 512
LABEL_MEMBER = 2 * TAR_BLOCK  # the .cls file of each sample: a header and a block
SHARD_SIZE = 1 << 30
LONG_REQUEST = 1 << 20  # bytes from which a disk or an object store gives its full rate
SAMPLED = 200  # batches and windows looked at, spread over the epoch


@dataclass(frozen=True)
class Case:
    """One order to look at."""

    order: Any
    block_size: int = 1
    window_blocks: int = 1

    @property
    def name(self) -> str:
        return f"block {self.block_size} × {self.window_blocks}" if self.order == "block" else self.order


def laid_out(sizes: np.ndarray, num_classes: int) -> np.ndarray:
    """A sample table sorted by class: the rows that `pack` would write for images of these sizes in bytes."""
    table = np.zeros(len(sizes), SAMPLE_DTYPE)
    member = -(-(sizes + TAR_BLOCK) // TAR_BLOCK) * TAR_BLOCK + LABEL_MEMBER
    start = np.cumsum(member) - member
    table["shard"], table["size"] = start // SHARD_SIZE, sizes
    first = np.searchsorted(table["shard"], table["shard"])  # of its shard
    table["offset"] = start - start[first] + LABEL_MEMBER + TAR_BLOCK
    table["label"] = np.arange(len(sizes)) * num_classes // len(sizes)
    return table


def autocorrelation(ids: np.ndarray, lag: int) -> float:
    """Pearson's, of the stored positions of samples that come `lag` apart."""
    return float(np.corrcoef(ids[:-lag], ids[lag:])[0, 1])


def expected_classes(counts: np.ndarray, batch_size: int) -> float:
    """Distinct classes in a batch drawn without replacement; counts: samples of each class."""
    n = counts.sum()
    steps = np.arange(batch_size)
    missing = np.clip(n - counts[:, None] - steps, 0, None) / (n - steps)  # no draw hits the class
    return float((1 - missing.prod(axis=1)).sum())


def class_mix(labels: np.ndarray, batch_size: int, num_classes: int) -> dict[str, float]:
    """labels: in the order of the epoch. Means over batches spread over it."""
    counts = np.bincount(labels, minlength=num_classes)
    n, expected = len(labels), counts * (batch_size / len(labels))
    distinct, spread = [], []
    for start in spread_out(n - batch_size, batch_size):
        seen = np.bincount(labels[start : start + batch_size], minlength=num_classes)
        distinct.append(int((seen > 0).sum()))
        spread.append(float(((seen - expected) ** 2 / expected).sum()))
    by_chance = (num_classes - 1) * (n - batch_size) / (n - 1)
    return {
        "classes": float(np.mean(distinct)),
        "classes_expected": expected_classes(counts, batch_size),
        "spread": float(np.mean(spread)) / by_chance,
    }


def spread_out(last: int, step: int) -> list[int]:
    """Up to SAMPLED multiples of `step` in 0…last, evenly spread."""
    starts = np.arange(0, last + 1, step)
    return starts[np.linspace(0, len(starts) - 1, min(SAMPLED, len(starts))).astype(int)].tolist()


def requests(rows: np.ndarray) -> tuple[np.ndarray, int]:
    """What reading these samples asks of the disk: bytes of each contiguous request, and shards touched.

    Samples that are neighbours in a shard, with nothing but their own tar headers between, are one request.
    """
    rows = rows[np.lexsort((rows["offset"], rows["shard"]))]
    begins, ends = rows["offset"].astype(np.int64), (rows["offset"] + rows["size"]).astype(np.int64)
    gap = begins[1:] - ends[:-1]
    new = np.append(True, (rows["shard"][1:] != rows["shard"][:-1]) | (gap > LABEL_MEMBER + 2 * TAR_BLOCK))
    first = np.flatnonzero(new)
    last = np.append(first[1:], len(rows)) - 1
    return ends[last] - begins[first], len(np.unique(rows["shard"]))


def io_pattern(table: np.ndarray, ids: np.ndarray, ahead: int) -> dict[str, float]:
    """Requests where `ahead` consecutive samples of the epoch are asked for together."""
    sizes, shards = [], []
    for start in spread_out(len(ids) - ahead, ahead)[:: max(1, ahead // 4096)]:
        lengths, touched = requests(table[ids[start : start + ahead]])
        sizes.append(lengths)
        shards.append(touched)
    lengths = np.concatenate(sizes)
    return {
        "samples": ahead,
        "request_bytes": float(lengths.mean()),
        "long_share": float(lengths[lengths >= LONG_REQUEST].sum() / lengths.sum()),
        "shards": float(np.mean(shards)),
        "gigabytes": float(lengths.sum() / len(shards) / 1e9),
    }


def look_at(case: Case, table: np.ndarray, num_classes: int, batch_size: int, read_ahead: int) -> dict[str, Any]:
    """All figures of one order, in epoch 0."""
    n = len(table)
    plan = EpochPlan(num_samples=n, order=case.order, block_size=case.block_size, window_blocks=case.window_blocks)
    ids = plan.sample_ids(0, n)
    if not np.array_equal(np.sort(ids), np.arange(n)):
        raise RuntimeError(f"{case.name}: not every sample comes once")
    shuffled = np.random.default_rng(0).permutation(table["label"])  # as pack stores it
    aheads = {"batch": batch_size, "read_ahead": batch_size * (read_ahead + 1)}
    if case.order == "block":
        aheads["window"] = min(n, case.block_size * case.window_blocks)
    return {
        "order": case.name,
        "autocorrelation": {str(lag): autocorrelation(ids, lag) for lag in LAGS if lag < n},
        "sorted": class_mix(table["label"][ids], batch_size, num_classes),
        "shuffled": class_mix(shuffled[ids], batch_size, num_classes),
        "requests": {name: io_pattern(table, ids, min(ahead, n)) for name, ahead in aheads.items()},
    }


def show(found: list[dict[str, Any]], n: int) -> None:
    lags = list(found[0]["autocorrelation"])
    expected = found[0]["sorted"]["classes_expected"]
    click.echo(f"{n:,} rows. A true permutation: autocorrelation {-1 / (n - 1):.1e} ± {n**-0.5:.1e}, "
               f"{expected:.1f} classes a batch, spread 1")  # fmt: skip
    click.echo(f"{'order':<18}" + "".join(f"{'lag ' + lag:>10}" for lag in lags)
               + f"{'classes: sorted':>17}{'(spread)':>10}{'shuffled':>10}{'(spread)':>10}")  # fmt: skip
    for line in found:
        click.echo(
            f"{line['order']:<18}"
            + "".join(f"{line['autocorrelation'][lag]:>10.4f}" for lag in lags)
            + "".join(
                f"{line[k]['classes']:>{w}.1f}{line[k]['spread']:>10.2f}" for k, w in (("sorted", 17), ("shuffled", 10))
            )
        )
    click.echo(f"{'asked together':<30}{'samples':>9}{'KB a request':>14}{'in ≥ 1 MiB':>12}{'shards':>8}{'GB':>8}")
    for line in found:
        for name, r in line["requests"].items():
            click.echo(f"{line['order'] + ', ' + name:<30}{r['samples']:>9,}{r['request_bytes'] / 1e3:>14,.0f}"
                       f"{r['long_share']:>12.1%}{r['shards']:>8.1f}{r['gigabytes']:>8.2f}")  # fmt: skip


@click.command(context_settings={"show_default": True})
@click.option("--data", type=click.Path(path_type=Path), help="A packed dataset, for the sizes of its images.")
@click.option("--rows", default=1_281_167, type=click.IntRange(min=2))
@click.option("--classes", default=1000, type=click.IntRange(min=1))
@click.option("--batch-size", default=256, type=click.IntRange(min=1))
@click.option("--blocks", default="1024x64,1024x16,256x64,256x16,64x16", help="block_size x window_blocks, …")
@click.option("--json", "json_file", type=click.Path(path_type=Path))
def main(data: Path | None, rows: int, classes: int, batch_size: int, blocks: str, json_file: Path | None) -> None:
    """Measure, print a table, write JSON."""
    try:
        sizes = ShardSet.open(data).split("train").samples["size"].astype(np.int64) if data else np.array([110_000])
        pairs = [tuple(map(int, pair.split("x"))) for pair in blocks.split(",")]
        cases = [Case("global"), *(Case("block", size, window) for size, window in pairs), Case("sequential")]
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    if batch_size >= rows:
        raise click.ClickException(f"--batch-size {batch_size} must be below --rows {rows}")
    table = laid_out(np.resize(sizes, rows), classes)
    read_ahead = DataConfig().read_ahead
    found = [look_at(case, table, classes, batch_size, read_ahead) for case in cases]
    show(found, rows)
    if json_file:
        settings = {"rows": rows, "classes": classes, "batch_size": batch_size, "read_ahead": read_ahead,
                    "data": data.name if data else None}  # fmt: skip
        json_file.write_text(json.dumps({"settings": settings, "results": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
