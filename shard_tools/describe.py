"""Describe a dataset: as data (`info --json`), as a few lines of text, and as histograms for a terminal."""

from itertools import pairwise
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from penstock.shards.format import Samples, ShardSet
from penstock.shards.ppm import header_sizes

QUANTILES = (0, 5, 50, 95, 100)
BINS = 10
BAR_WIDTH = 40  # characters
UNTURNED = "image(s) have an EXIF orientation that is not applied, as in torchvision"
EIGHTHS = ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")


class Histogram(TypedDict):
    """`counts[i]` images (or classes) have `edges[i]` ≤ value < `edges[i + 1]`."""

    edges: list[int]
    counts: list[int]


class SplitFacts(TypedDict):
    """Sizes are in bytes, those of images (`height`, `width`, `short_side`) in pixels."""

    samples: int
    shards: int
    bytes: int
    mean_image_bytes: float
    samples_per_class: dict[str, int]  # min, max
    quantiles: dict[str, dict[str, float]]  # of height, width, bytes, by percentage
    histograms: dict[str, Histogram]  # of short_side, samples_per_class
    stored_as_pixels: dict[str, int]  # samples, bytes: of the images that are stored as pixels, not as JPEGs


class Facts(TypedDict):
    """The output of `info --json`."""

    root: str
    shards_at: str  # the URL of the shards, or "" if they are in `root`
    num_classes: int
    classes: list[str]
    splits: dict[str, SplitFacts]
    made: dict[str, object]


def describe(shard_set: ShardSet) -> Facts:
    splits: dict[str, SplitFacts] = {}
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
            "histograms": _histograms(split.samples, per_class),
            "stored_as_pixels": stored_as_pixels(split.samples, shard_set.made),
        }
    return {
        "root": shard_set.place,
        "shards_at": "" if shard_set.url else next((split.url for split in shard_set.splits.values()), ""),
        "num_classes": len(shard_set.classes),
        "classes": [info.name for info in shard_set.classes],
        "splits": splits,
        "made": shard_set.made,
    }


def stored_as_pixels(samples: Samples, made: dict[str, object]) -> dict[str, int]:
    """Count the images that are stored as pixels, as `pack --pixels` writes them, and their bytes: "samples", "bytes".

    They are recognised by their sizes. A JPEG may happen to have such a size, so this only looks at datasets that can
    have images stored as pixels.
    """
    encode, kinds = made.get("encode"), made.get("kinds")
    possible = (isinstance(encode, dict) and encode.get("pixels")) or (isinstance(kinds, dict) and "ppm" in kinds)
    sizes = samples["size"][header_sizes(samples) > 0] if possible else samples["size"][:0]
    return {"samples": len(sizes), "bytes": int(sizes.sum(dtype=np.int64))}


def _histograms(samples: Samples, per_class: NDArray[np.int64]) -> dict[str, Histogram]:
    if not len(samples):
        return {}
    values = {
        "short_side": np.minimum(samples["height"], samples["width"]),
        "samples_per_class": per_class,
    }
    found: dict[str, Histogram] = {}
    for key, numbers in values.items():
        low, high = int(numbers.min()), int(numbers.max()) + 1
        steps = np.geomspace(low, high, BINS + 1) if high > 8 * max(low, 1) > 8 else np.linspace(low, high, BINS + 1)
        edges = np.unique(np.ceil(steps).astype(int))
        counts, _ = np.histogram(numbers, edges)
        found[key] = {"edges": edges.tolist(), "counts": counts.tolist()}
    return found


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return "1 shard", "1,024 shards": a number with its noun. plural: where it is not the noun and an s."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def summary(info: Facts) -> str:
    """Format the facts as text for the terminal."""
    shown = ", ".join(info["classes"][:5]) + (", …" if info["num_classes"] > 5 else "")
    lines = [f"{info['root']}: {counted(info['num_classes'], 'class', 'classes')} ({shown})"]
    for name, split in info["splits"].items():
        balance = split["samples_per_class"]
        lines.append(
            f"  {name}: {counted(split['samples'], 'sample')} in {counted(split['shards'], 'shard')}, "
            f"{split['bytes'] / 1e6:,.1f} MB, "
            f"{split['mean_image_bytes'] / 1e3:,.1f} kB per image, {balance['min']} to {balance['max']} per class"
        )
        if "height" in split["quantiles"]:
            height, width = split["quantiles"]["height"], split["quantiles"]["width"]
            sizes = ", ".join(f"{q}% {height[str(q)]:.0f}×{width[str(q)]:.0f}" for q in QUANTILES[1:-1])
            ranges = f"{height['0']:.0f}–{height['100']:.0f} × {width['0']:.0f}–{width['100']:.0f}"
            lines.append(f"    height × width: {ranges} pixels (quantiles of each: {sizes})")
        if split["stored_as_pixels"]["samples"]:
            lines.append("    " + _pixels_line(split))
    lines += [f"  shards at {info['shards_at']}"] if info["shards_at"] else []
    made = info["made"]
    kinds = made.get("converted")
    converted = ", ".join(f"{count} {kind}" for kind, count in kinds.items()) if isinstance(kinds, dict) else ""
    details = [f"seed {made['seed']}"] if "seed" in made else []
    details += [f"converted to JPEG: {converted}"] if converted else []
    details += [f"rejected: {made['rejected']}"] if made.get("rejected") else []
    details += [f"members outside samples: {made['ignored']}"] if made.get("ignored") else []
    lines += [f"  made with {'; '.join(details)}"] if details else []
    lines += [f"  {made['unturned']} {UNTURNED}; pack --apply-orientation applies it"] if made.get("unturned") else []
    return "\n".join(lines)


def _pixels_line(split: SplitFacts) -> str:
    pixels, total = split["stored_as_pixels"], split["mean_image_bytes"] * split["samples"]
    return f"stored as pixels: {pixels['samples']:,} images, {100 * pixels['bytes'] / total:.1f}% of the images' bytes"


def histograms(info: Facts) -> str:
    """Draw each split's shorter sides and class sizes as bars."""
    titles = {"short_side": ("shorter side, pixels", "images"), "samples_per_class": ("images per class", "classes")}
    lines = []
    for name, split in info["splits"].items():
        for key, found in split["histograms"].items():
            title, unit = titles[key]
            lines += [f"{name}: {title}", *_bars(found["edges"], found["counts"], unit), ""]
    return "\n".join(lines).rstrip()


def _bars(edges: list[int], counts: list[int], unit: str) -> list[str]:
    labels = [f"{low}" if high == low + 1 else f"{low}–{high - 1}" for low, high in pairwise(edges)]
    width, most = max(map(len, labels)), max(counts)
    lines = []
    for label, count in zip(labels, counts, strict=True):
        eighths = round(8 * BAR_WIDTH * count / most)
        bar = "█" * (eighths // 8) + EIGHTHS[eighths % 8]
        if count and not bar:
            bar = EIGHTHS[1]  # few, but some
        lines.append(f"  {label:>{width}} {bar:{BAR_WIDTH}} {count:,} {unit}".rstrip())
    return lines
