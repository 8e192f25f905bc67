"""The record of one finished shard: OUT/.pack/SPLIT-SHARD.part. When all shards are finished, the parts are merged.

A part consists of one line of JSON, the sample table's rows with a hash of each source, and the source names as lines.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from penstock.shards.format import SAMPLE_DTYPE, ShardInfo, atomic_write

HASH_BYTES = 16  # of sha256
PART_DTYPE = np.dtype([*SAMPLE_DTYPE.descr, ("hash_low", "<u8"), ("hash_high", "<u8")])  # of the source's bytes


@dataclass(frozen=True)
class Part:
    """The first line of a part. `info` is None if no image was usable; then there is no tar."""

    info: ShardInfo | None
    index_bytes: int
    samples: int
    kinds: dict[str, int]  # number of images by kind: "jpeg", or the kind that was converted
    bad: list[tuple[str, str]]  # name, reason
    unturned: int = 0  # images with an EXIF orientation other than 1 that was not applied


def write_part(path: Path, part: Part, rows: bytes, names: bytes) -> None:
    """Write a part. `rows`: `part.samples` rows of PART_DTYPE with `shard` 0. `names`: one escaped line per sample."""
    with atomic_write(path) as stream:
        stream.write(json.dumps(asdict(part)).encode() + b"\n" + rows + names)


def read_part(path: Path) -> Part:
    """Read the first line. Raises OSError, ValueError, KeyError or TypeError if the part is missing or damaged."""
    with open(path, "rb") as stream:
        return _header(stream.readline())


def read_rows(path: Path) -> NDArray[np.void]:
    """(samples,) PART_DTYPE."""
    with open(path, "rb") as stream:
        samples = _header(stream.readline()).samples
        return np.frombuffer(bytearray(stream.read(samples * PART_DTYPE.itemsize)), PART_DTYPE)


def read_names(path: Path) -> bytes:
    with open(path, "rb") as stream:
        samples = _header(stream.readline()).samples
        stream.seek(samples * PART_DTYPE.itemsize, os.SEEK_CUR)
        return stream.read()


def _header(line: bytes) -> Part:
    fields = json.loads(line)
    info = fields.pop("info")
    bad = [(str(name), str(reason)) for name, reason in fields.pop("bad")]
    return Part(ShardInfo(**info) if info else None, bad=bad, **fields)
