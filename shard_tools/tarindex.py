"""What lies where in a WebDataset tar, from the tar itself or from its DALI index (`.idx`, version 1.2)."""

import tarfile
from pathlib import Path
from typing import NamedTuple


class Member(NamedTuple):
    """One file of a sample: `offset` and `size` (bytes) of its content in the tar."""

    extension: str
    offset: int
    size: int
    name: str


def scan_tar(path: Path) -> list[list[Member]]:
    """The members of each sample, in order. Raises ValueError if the tar is damaged or cut short."""
    samples: list[list[Member]] = []
    last = None
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                if key != last:
                    samples.append([])
                    last = key
                samples[-1].append(Member(extension, member.offset_data, member.size, member.name))
                tar.members.clear()  # type: ignore[attr-defined]
            end = tar.offset
        if path.stat().st_size < end + 2 * tarfile.BLOCKSIZE:
            raise ValueError(f"is not a whole tar (ends at byte {path.stat().st_size})")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ValueError(f"is not a whole tar ({error})") from None
    return samples


def read_index(path: Path) -> list[list[Member]]:
    """The same, as DALI's `wds2idx` records it: `v1.2 N`, then a line a sample of `ext offset size name` each.

    Raises:
        OSError: it cannot be read. ValueError: it is not such an index.
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
        raise ValueError(f"says {version}, {count} samples; has {len(samples)}")
    return samples
