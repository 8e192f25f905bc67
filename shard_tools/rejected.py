"""Images that `pack` and `index` reject: the table OUT/rejected.tsv, and the error if `on_bad` is "fail"."""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO, Literal, get_args

from penstock.shards.format import atomic_write, escape, tsv_line

REJECTED_FILE = "rejected.tsv"
OnBad = Literal["fail", "skip"]
ON_BAD = get_args(OnBad)
SHOWN = 10  # images in a message
MAX_NAME = 500  # characters: a column mistaken for paths may contain whole images as text


@dataclass(frozen=True)
class Rejected:
    """The images that cannot be used: their number, and the first few as (name, reason)."""

    count: int = 0
    first: tuple[tuple[str, str], ...] = ()


NOTHING = Rejected()


class BadImages(ValueError):
    """Some images cannot be used and `on_bad` is "fail"."""


@dataclass
class RejectedRows:
    """Write rows of the table one by one; keep only the first few in memory."""

    stream: BinaryIO
    _count: int = 0
    _first: list[tuple[str, str]] = field(default_factory=list)

    def add(self, name: str, reason: str) -> None:
        name = name if len(name) <= MAX_NAME else name[:MAX_NAME] + "…"
        self.stream.write(tsv_line(name, reason))
        self._count += 1
        if len(self._first) < SHOWN:
            self._first.append((name, reason))

    def rejected(self) -> Rejected:
        return Rejected(self._count, tuple(self._first))


def check_on_bad(on_bad: str) -> None:
    """Raises ValueError for an unknown value of `on_bad`."""
    if on_bad not in ON_BAD:
        raise ValueError(f'on_bad is {on_bad!r}; use "fail" or "skip"')


def write_rejected(
    out: Path, bad: Iterable[tuple[str, str]], listed: Path | None = None, from_listing: Rejected = NOTHING
) -> Rejected:
    """Write OUT/rejected.tsv if there are rejected images: the rows of the file `listed`, then `bad` (name, reason)."""
    rest = iter(bad)
    first = list(islice(rest, 1))
    if not first and not from_listing.count:
        (out / REJECTED_FILE).unlink(missing_ok=True)
        return NOTHING
    with atomic_write(out / REJECTED_FILE) as stream:
        stream.write(tsv_line("name", "reason"))
        if listed:
            with open(listed, "rb") as lines:
                shutil.copyfileobj(lines, stream)
        rows = RejectedRows(stream, from_listing.count, list(from_listing.first))
        for row in chain(first, rest):
            rows.add(*row)
    return rows.rejected()


def refusal(what: str, rejected: Rejected, more: str, remedy: str) -> BadImages:
    """Build the error: `what`, then the first images, then `more` to say where the others are listed."""
    lines = [f"{escape(name)}: {reason}" for name, reason in rejected.first]
    if rejected.count > len(lines):
        lines.append(f"… {rejected.count - len(lines)} more{more}")
    return BadImages(f"{what} cannot be used:\n  " + "\n  ".join(lines) + f"\n{remedy}")
