"""Read and write the DALI index (`.idx`, version 1.2) of a WebDataset tar: the position of every member."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from penstock.shards.format import atomic_write


class Member(NamedTuple):
    """One file of a sample: `offset` and `size` (bytes) of its content in the tar."""

    extension: str
    offset: int
    size: int
    name: str


def read_index(path: Path) -> list[list[Member]]:
    """Read an index as DALI's `wds2idx` writes it: the members of each sample, in order.

    The first line is `v1.2 N`. Each other line is one sample, with `ext offset size name` for each of its members.

    Raises:
        OSError: the file cannot be read. ValueError: it is not such an index.
    """
    try:
        header, *lines = path.read_text(encoding="utf-8").splitlines()
        version, count = header.split()
        samples = []
        for line in lines:
            words = line.split()
            fields = [words[i : i + 4] for i in range(0, len(words), 4)]
            samples.append([Member(ext, int(offset), int(size), name) for ext, offset, size, name in fields])
    except (ValueError, UnicodeError):
        raise ValueError("is not an index of version 1.2") from None
    if version != "v1.2" or int(count) != len(samples):
        raise ValueError(f"its header has {version} and {count} samples, but it has {len(samples)} samples")
    return samples


def index_line(sample: Sequence[Member]) -> str:
    """The line of one sample."""
    return " ".join(f"{m.extension} {m.offset} {m.size} {m.name}" for m in sample)


def write_index(path: Path, lines: Sequence[str]) -> int:
    """Write an index with these sample lines; returns its size in bytes."""
    data = "".join(f"{line}\n" for line in (f"v1.2 {len(lines)}", *lines)).encode()
    with atomic_write(path) as stream:
        stream.write(data)
    return len(data)
