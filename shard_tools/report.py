"""What the commands show: a progress display, and a description of a dataset as data and as text."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from shard_tools.format import ShardSet
from shard_tools.writer import Progress

QUANTILES = (0, 5, 50, 95, 100)


@contextmanager
def progress_bar(every_s: float = 10.0) -> Iterator[Callable[[Progress], None]]:
    """A bar on a terminal, a line now and then elsewhere; both on stderr."""
    if not sys.stderr.isatty():
        yield _lines(every_s)
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("packing"), BarColumn(), TextColumn("{task.fields[text]}"), TextColumn("ETA"))
    with Bar(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("packing", total=None, text="")
        start = time.monotonic()

        def show(now: Progress) -> None:
            text = _rates(now, time.monotonic() - start)
            bar.update(task, total=max(1, now.bytes), completed=now.seen_bytes, text=text)

        yield show


def _lines(every_s: float) -> Callable[[Progress], None]:
    start = last = time.monotonic()

    def show(now: Progress) -> None:
        nonlocal last
        if time.monotonic() - last >= every_s:
            last = time.monotonic()
            print(f"packing: {_rates(now, last - start)}", file=sys.stderr, flush=True)

    return show


def _rates(now: Progress, elapsed_s: float) -> str:
    elapsed_s = max(elapsed_s, 1e-3)
    share = now.seen_bytes / max(1, now.bytes)
    images_per_s = (now.images * share - now.kept_images) / elapsed_s
    mb_per_s = (now.seen_bytes - now.kept_bytes) / elapsed_s / 1e6
    return (
        f"{share:4.0%}, {now.done_shards}/{now.shards} shards, "
        f"{max(0, images_per_s):,.0f} images/s, {max(0, mb_per_s):,.1f} MB/s"
    )


def describe(shard_set: ShardSet) -> dict[str, Any]:
    """What `info --json` prints. Sizes are in bytes, image sizes in pixels; quantiles are keyed by percentage."""
    splits = {}
    for name, split in shard_set.splits.items():
        per_class = np.bincount(split.samples["label"], minlength=len(shard_set.classes))
        sizes = {key: split.samples[key] for key in ("height", "width")} | {"bytes": split.samples["size"]}
        splits[name] = {
            "samples": len(split),
            "shards": len(split.shards),
            "bytes": sum(shard.bytes for shard in split.shards),
            "mean_image_bytes": float(split.samples["size"].mean()) if len(split) else 0.0,
            "samples_per_class": {"min": int(per_class.min()), "max": int(per_class.max())},
            "quantiles": {
                key: {str(q): float(v) for q, v in zip(QUANTILES, np.percentile(values, QUANTILES), strict=True)}
                for key, values in sizes.items()
                if len(split)
            },
        }
    return {
        "root": str(shard_set.root),
        "num_classes": len(shard_set.classes),
        "classes": [info.name for info in shard_set.classes],
        "splits": splits,
        "made": shard_set.made,
    }


def summary(info: dict[str, Any]) -> str:
    """The same for people."""
    shown = ", ".join(info["classes"][:5]) + (", …" if info["num_classes"] > 5 else "")
    lines = [f"{info['root']}: {info['num_classes']} classes ({shown})"]
    for name, split in info["splits"].items():
        balance = split["samples_per_class"]
        lines.append(
            f"  {name}: {split['samples']:,} samples in {split['shards']} shard(s), {split['bytes'] / 1e6:,.1f} MB, "
            f"{split['mean_image_bytes'] / 1e3:,.1f} kB an image, {balance['min']} to {balance['max']} a class"
        )
        if "height" in split["quantiles"]:
            height, width = split["quantiles"]["height"], split["quantiles"]["width"]
            sizes = ", ".join(f"{q} % {height[str(q)]:.0f}×{width[str(q)]:.0f}" for q in QUANTILES[1:-1])
            ranges = f"{height['0']:.0f}–{height['100']:.0f} × {width['0']:.0f}–{width['100']:.0f}"
            lines.append(f"    height × width: {ranges} pixels (quantiles of each: {sizes})")
    made = info["made"]
    converted = ", ".join(f"{count} {kind}" for kind, count in made.get("converted", {}).items())
    details = [f"seed {made['seed']}"] if "seed" in made else []
    details += [f"converted to JPEG: {converted}"] if converted else []
    details += [f"rejected: {made['rejected']}"] if made.get("rejected") else []
    return "\n".join([*lines, *([f"  made with {'; '.join(details)}"] if details else [])])
