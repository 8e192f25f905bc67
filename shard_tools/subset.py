"""Which of a source's images are packed, and into which splits: arrays over one split, no object an image.

The choices are draws from (seed, split): the same source gives the same ones, in any order of use.
"""

import re
from dataclasses import dataclass

import numpy as np

from pipeline.permutation import permute, philox_key


@dataclass(frozen=True, kw_only=True)
class Subset:
    """What to pack. The default is everything, in the source's splits.

    fractions: new splits of a source that has one, as (name, fraction) pairs that add up to 1; each class is split
        alike. per_class, limit: at most so many images of each class, and in all, of each split. only_classes: class
        keys; () for all. Labels are places among the classes of `only_classes`; the others do not change them.
    """

    fractions: tuple[tuple[str, float], ...] = ()
    per_class: int | None = None
    limit: int | None = None
    only_classes: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.fractions:
            names = [name for name, _ in self.fractions]
            if any(not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", name) for name in names) or len(set(names)) < len(
                names
            ):
                raise ValueError(f"split: the names {', '.join(names)} must differ and be letters, digits, - and _")
            if (
                any(not 0 < fraction < 1 for _, fraction in self.fractions)
                or abs(sum(dict(self.fractions).values()) - 1) > 1e-6
            ):
                raise ValueError(f"split: {parts_text(self)} are not positive fractions that add up to 1")
        for name in ("per_class", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")


def parts_text(subset: Subset) -> str:
    return ",".join(f"{name}={fraction:g}" for name, fraction in subset.fractions)


def parse_fractions(text: str) -> tuple[tuple[str, float], ...]:
    """`train=0.8,val=0.1,test=0.1` → pairs. Raises ValueError if it is none."""
    parts = [part.partition("=") for part in text.split(",")]
    try:
        return tuple((name.strip(), float(fraction)) for name, _, fraction in parts)
    except ValueError:
        raise ValueError(f"split: {text!r} is not like train=0.8,val=0.1,test=0.1") from None


def choose(subset: Subset, split: str, labels: np.ndarray, seed: int) -> dict[str, np.ndarray | None]:
    """New split → (n,) bool of the images that go into it. `labels`: (n,) int32 of one split of the source."""
    masks = {split: np.ones(len(labels), bool)}
    if subset.fractions:
        masks = _stratified(subset.fractions, labels, philox_key(seed, 0, "split"))
    for name, mask in masks.items():
        if subset.per_class:
            mask[mask] = _rank_in_class(labels[mask], philox_key(seed, 0, f"per class {name}")) < subset.per_class
        if subset.limit:
            count = int(mask.sum())
            mask[mask] = permute(np.arange(count), max(1, count), philox_key(seed, 0, f"limit {name}")) < subset.limit
    return dict(masks)


def _rank_in_class(labels: np.ndarray, key: np.ndarray) -> np.ndarray:
    """(n,) the place of each image in a random order of its class."""
    order = np.lexsort((np.random.Philox(key=key).random_raw(len(labels)), labels))
    starts = np.concatenate([[0], np.cumsum(np.bincount(labels))])
    rank = np.empty(len(labels), np.int64)
    rank[order] = np.arange(len(labels)) - starts[labels[order]]
    return rank


def _stratified(fractions: tuple[tuple[str, float], ...], labels: np.ndarray, key: np.ndarray) -> dict[str, np.ndarray]:
    """Each class is cut alike. What rounding leaves is carried to the next class, so that the totals are right too.

    The first split gets what the others leave, and at least one image of each class.
    """
    counts = np.bincount(labels)
    ends = np.cumsum(counts)
    rank = _rank_in_class(labels, key)
    left = counts.copy()  # ranks below are not taken yet
    masks: dict[str, np.ndarray] = {}
    for name, fraction in reversed(fractions[1:]):
        share = np.diff(np.floor(fraction * ends + 0.5), prepend=0).astype(np.int64)
        share = np.minimum(share, np.maximum(left - 1, 0))
        masks[name] = (rank < left[labels]) & (rank >= (left - share)[labels])
        left -= share
    masks[fractions[0][0]] = rank < left[labels]
    return {name: masks[name] for name, _ in fractions}
