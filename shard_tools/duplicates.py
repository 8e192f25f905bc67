"""Find duplicate images: parts with a hash of every source → counts, and OUT/duplicates.tsv.

Duplicates waste a little time. Duplicates with two labels, or in both training and validation, distort the measured
accuracy. These are the conflicts, and the file lists them. Memory is constant: each `ROWS` images need one pass over
the parts.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from penstock.shard_tools.part import read_names, read_rows
from penstock.shards.format import atomic_write, tsv_line, unescape

DUPLICATES_FILE = "duplicates.tsv"
ROWS = 1 << 18  # images examined in one pass
SHOWN = 5  # conflicts in a message, and images of one conflict
FOUND = np.dtype([("split", "u1"), ("label", "<i4"), ("sample", "<u8"), ("high", "<u8"), ("low", "<u8")])


@dataclass
class Duplicates:
    """copies: images that repeat an earlier one. Conflicts count distinct contents, not images."""

    copies: int = 0
    label_conflicts: int = 0
    split_conflicts: int = 0
    shown: list[str] = field(default_factory=list)  # the first conflicts, for messages


@dataclass(frozen=True)
class PartFile:
    """A part, and the position of its samples in its split."""

    path: Path
    split: str
    first: int
    samples: int


def find_duplicates(out: Path, parts: list[PartFile], keys: list[str]) -> Duplicates:
    """Count the duplicates among all parts and write conflicts to OUT/duplicates.tsv. `keys`: label → class key."""
    found = Duplicates()
    path = out / DUPLICATES_FILE
    lines = _lines(parts, keys, found)
    first = next(lines, None)
    if first is None:
        path.unlink(missing_ok=True)
        return found
    with atomic_write(path) as stream:
        stream.write(tsv_line("hash", "conflict", "split", "sample", "class", "name"))
        for line in chain([first], lines):
            stream.write(line)
    return found


def _lines(parts: list[PartFile], keys: list[str], found: Duplicates) -> Iterator[bytes]:
    splits = list(dict.fromkeys(part.split for part in parts))
    passes = max(1, -(-sum(part.samples for part in parts) // ROWS))
    for number in range(passes):
        rows = np.concatenate([_rows(part, splits, number, passes) for part in parts])
        rows = rows[np.lexsort((rows["sample"], rows["split"], rows["low"], rows["high"]))]
        starts = np.flatnonzero(_differs(rows["high"]) | _differs(rows["low"]))
        found.copies += len(rows) - len(starts)
        differ = {name: np.maximum.reduceat(rows[name], starts) > np.minimum.reduceat(rows[name], starts)
                  for name in ("label", "split")} if len(starts) else {}  # fmt: skip
        if not differ or not (differ["label"] | differ["split"]).any():
            continue
        found.label_conflicts += int(differ["label"].sum())
        found.split_conflicts += int(differ["split"].sum())
        group = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(rows))))
        in_conflict = (differ["label"] | differ["split"])[group]
        rows, group = rows[in_conflict], group[in_conflict]
        names = _names(rows, parts, splits)
        last, is_shown, num_named = np.int64(-1), False, 0
        for row, in_group in zip(rows, group, strict=True):
            split, sample, key = splits[row["split"]], int(row["sample"]), keys[row["label"]]
            what = "+".join(name for name in differ if differ[name][in_group])
            name = names[split, sample]
            if in_group != last:
                last, is_shown, num_named = in_group, len(found.shown) < SHOWN, 0
                if is_shown:
                    found.shown.append("")
            num_named += 1
            if is_shown and num_named <= SHOWN + 1:
                comma, here = ", " if num_named > 1 else "", f"{name} ({key}, {split})"
                found.shown[-1] += comma + (here if num_named <= SHOWN else "…")
            yield tsv_line(f"{row['high']:016x}{row['low']:016x}", what, split, str(sample), key, name)


def _differs(values: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """(n,) bool: whether each value differs from the one before; True for the first."""
    return np.append(True, values[1:] != values[:-1])[: len(values)]


def _rows(part: PartFile, splits: list[str], number: int, passes: int) -> NDArray[np.void]:
    """The rows of a part with hashes that belong to pass `number`. (n,) FOUND."""
    rows = read_rows(part.path)
    mine = np.flatnonzero(rows["hash_low"] % np.uint64(passes) == number)
    found = np.empty(len(mine), FOUND)
    found["split"], found["sample"] = splits.index(part.split), part.first + mine
    found["label"], found["high"], found["low"] = rows["label"][mine], rows["hash_high"][mine], rows["hash_low"][mine]
    return found


def _names(rows: NDArray[np.void], parts: list[PartFile], splits: list[str]) -> dict[tuple[str, int], str]:
    """(split, sample) → source name of the given rows; reads all names of the parts that contain them."""
    names = {}
    for part in parts:
        here = rows["sample"][rows["split"] == splits.index(part.split)]
        here = here[(here >= part.first) & (here < part.first + part.samples)]
        lines = read_names(part.path).split(b"\n") if len(here) else []
        for sample in here.tolist():
            names[part.split, sample] = unescape(lines[sample - part.first].decode("utf-8", "surrogateescape"))
    return names
