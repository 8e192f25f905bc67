"""What `pack` leaves out: the table OUT/rejected.tsv, and the error where nothing may be left out."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO

from shards.format import atomic_write, escape, tsv_line

REJECTED_FILE = "rejected.tsv"
SHOWN = 10  # images in a message
MAX_NAME = 500  # characters: a column that is taken for paths may hold whole images as text


@dataclass(frozen=True)
class Rejected:
    """The images that cannot be used: how many, and the first of them as (name, reason)."""

    count: int = 0
    first: tuple[tuple[str, str], ...] = ()


class BadImages(ValueError):
    """Some images cannot be used and `on_bad` is "fail"."""


@dataclass
class RejectedRows:
    """Writes rows of the table as they come; only the first stay in memory."""

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


def write_rejected(out: Path, listed: Path, from_listing: Rejected, bad: Iterable[tuple[str, str]]) -> Rejected:
    """OUT/rejected.tsv, if there is anything to write: the rows of the file `listed`, then `bad` (name, reason)."""
    rest = iter(bad)
    first = list(islice(rest, 1))
    if not first and not from_listing.count:
        (out / REJECTED_FILE).unlink(missing_ok=True)
        return Rejected()
    with atomic_write(out / REJECTED_FILE) as stream, open(listed, "rb") as lines:
        stream.write(tsv_line("name", "reason"))
        stream.writelines(lines)
        rows = RejectedRows(stream, from_listing.count, list(from_listing.first))
        for row in chain(first, rest):
            rows.add(*row)
    return rows.rejected()


def refusal(what: str, rejected: Rejected, more: str, remedy: str) -> BadImages:
    """The error: `what` begins it, the first images follow, and `more` says where the others are."""
    lines = [f"{escape(name)}: {reason}" for name, reason in rejected.first]
    if rejected.count > len(lines):
        lines.append(f"… {rejected.count - len(lines)} more{more}")
    return BadImages(f"{what} cannot be used:\n  " + "\n  ".join(lines) + f"\n{remedy}")
