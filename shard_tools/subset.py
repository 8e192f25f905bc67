"""Choose which of a source's images are packed, and into which splits. Works on arrays over one split.

The choices are random draws that depend only on (seed, split), so the same source always gives the same choices.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from penstock.pipeline.permutation import permute, philox_key
from penstock.shard_tools.option import Option

SPLIT_NAME = re.compile("[A-Za-z0-9_][A-Za-z0-9_-]*")  # a split name becomes part of file names
Mask = NDArray[np.bool_]  # (n,) of one split's images


def parse_fractions(text: str) -> tuple[tuple[str, float], ...]:
    """`train=0.8,val=0.1,test=0.1` → pairs. Raises ValueError for any other form."""
    parts = [part.partition("=") for part in text.split(",")]
    try:
        return tuple((name.strip(), float(fraction)) for name, _, fraction in parts)
    except ValueError:
        raise ValueError(f"--split: {text!r} is not in the form train=0.8,val=0.1,test=0.1") from None


def parse_class_keys(text: str) -> frozenset[str]:
    """Parse class keys: `A,B`, or a file with one key per line. From `WNID NAME`, as in ImageNet's lists, use the wnid.

    Raises:
        ValueError: the file has no keys. OSError: it cannot be read.
    """
    path = Path(text)
    if not text or not path.is_file():
        return frozenset(key.strip() for key in text.split(",") if key.strip())
    lines = map(str.strip, path.read_text(encoding="utf-8-sig").splitlines())
    keys = frozenset(re.sub(r"^(n[0-9]{8})\s.*", r"\1", line) for line in lines if line)
    if not keys:
        raise ValueError(f"{path}: the file for --only-classes is empty; write one class key per line")
    return keys


@dataclass(frozen=True, kw_only=True)
class Subset:
    """What to pack. The default is everything, in the source's splits.

    fractions: new splits for a source that has only one, as (name, fraction) pairs that add up to 1. Each class is
        divided in the same proportions.
    per_class, limit: the maximum number of images of each class in each split, and of all images in each split.
    only_classes: class keys, or () for all. Labels are then indices among these classes. The other settings do not
        change labels.
    """

    fractions: Annotated[
        tuple[tuple[str, float], ...],
        Option(
            "Divide a source that has only one split, e.g. train=0.8,val=0.1,test=0.1.",
            flag="--split",
            kind=parse_fractions,
        ),
    ] = ()
    per_class: Annotated[int | None, Option("Maximum number of images of each class in each split.", least=1)] = None
    limit: Annotated[int | None, Option("Maximum number of images in each split.", least=1)] = None
    only_classes: Annotated[
        frozenset[str],
        Option("Pack only these classes: keys A,B,… or a file with one class key per line.", kind=parse_class_keys),
    ] = frozenset()

    def __post_init__(self) -> None:
        if self.fractions:
            names = [name for name, _ in self.fractions]
            if not all(map(SPLIT_NAME.fullmatch, names)) or len(set(names)) < len(names):
                raise ValueError(
                    f"--split: the names {', '.join(names)} must be unique and have only letters, digits, - and _"
                )
            parts = [fraction for _, fraction in self.fractions]
            if not all(0 < part < 1 for part in parts) or abs(sum(parts) - 1) > 1e-6:
                raise ValueError(f"--split: the fractions {parts_text(self)} must be positive and add up to 1")
        for name in ("per_class", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")


def parts_text(subset: Subset) -> str:
    return ",".join(f"{name}={fraction:g}" for name, fraction in subset.fractions)


def choose(subset: Subset, split: str, labels: NDArray[np.int32], seed: int) -> dict[str, Mask]:
    """Choose images: new split → (n,) bool. `labels`: (n,) int32 of one split of the source."""
    masks = {split: np.ones(len(labels), bool)}
    if subset.fractions:
        masks = _stratified(subset.fractions, labels, philox_key(seed, 0, "split"))
    for name, mask in masks.items():
        if subset.per_class:
            mask[mask] = _rank_in_class(labels[mask], philox_key(seed, 0, f"per class {name}")) < subset.per_class
        if subset.limit:
            count = int(mask.sum())
            mask[mask] = permute(np.arange(count), max(1, count), philox_key(seed, 0, f"limit {name}")) < subset.limit
    return masks


def _rank_in_class(labels: NDArray[np.int32], key: NDArray[np.uint64]) -> NDArray[np.int64]:
    """(n,) the position of each image in a random order of its class."""
    order = np.lexsort((np.random.Philox(key=key).random_raw(len(labels)), labels))
    starts = np.concatenate([[0], np.cumsum(np.bincount(labels))])
    rank = np.empty(len(labels), np.int64)
    rank[order] = np.arange(len(labels)) - starts[labels[order]]
    return rank


def _stratified(
    fractions: tuple[tuple[str, float], ...], labels: NDArray[np.int32], key: NDArray[np.uint64]
) -> dict[str, Mask]:
    """Divide each class in the same proportions. Rounding errors carry over to the next class, to keep totals right.

    The first split gets the images that the others leave, and at least one image of each class.
    """
    counts = np.bincount(labels)
    ends = np.cumsum(counts)
    rank = _rank_in_class(labels, key)
    left = counts.copy()  # the ranks below this are still free
    masks: dict[str, Mask] = {}
    for name, fraction in reversed(fractions[1:]):
        share = np.diff(np.floor(fraction * ends + 0.5), prepend=0).astype(np.int64)
        share = np.minimum(share, np.maximum(left - 1, 0))
        masks[name] = (rank < left[labels]) & (rank >= (left - share)[labels])
        left -= share
    masks[fractions[0][0]] = rank < left[labels]
    return {name: masks[name] for name, _ in fractions}
