"""Read the list of images to pack, which `listing` writes to disk: fixed-size records, read by position in any process.

    DIR/SPLIT.records   one RECORD per image, in the source's order; DIR/SPLIT.sizes: only their sizes, u4
    DIR/names           the images' names, one after the other
    DIR/files.json      the containers, and the directories of files
    DIR/unusable        the images that the source lists but cannot provide: lines of OUT/rejected.tsv

Neither the packing process nor its workers therefore hold one object per image, and a shard's job is a few numbers. A
shuffle touches all pages of a memory map, which then count as memory, so records are read one by one instead (1 µs).
"""

import json
import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from penstock.shard_tools.sources.base import Method, Place

METHODS: tuple[Method, ...] = ("file", "stored", "deflate")
JOINED = len(METHODS)  # in the place of a method: a file whose path is its `files.json` entry and its name
RECORD = np.dtype(
    {
        "names": ["file", "method", "label", "offset", "stored", "size", "name", "name_bytes"],
        "formats": ["<u4", "u1", "<i4", "<u8", "<u8", "<u8", "<u8", "<u4"],
    }
)
PACKED = struct.Struct("<IBiQQQQI")  # a RECORD
CHUNK = 1 << 16  # records in memory at once


class Listed(NamedTuple):
    """One image of a listing."""

    name: str
    label: int
    size_bytes: int
    place: Place


class Images:
    """Reads a split's images from a listing, in any process."""

    def __init__(self, root: Path, split: str):
        with ExitStack() as stack:
            self._records = stack.enter_context(open(root / f"{split}.records", "rb", buffering=0))
            self._names = stack.enter_context(open(root / "names", "rb", buffering=0))
            self._files: list[str] = json.loads((root / "files.json").read_bytes())
            self._stack = stack.pop_all()

    def __enter__(self) -> "Images":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __getitem__(self, position: int) -> Listed:
        """The image at a position of the source's order."""
        raw = os.pread(self._records.fileno(), PACKED.size, position * PACKED.size)
        file, method, label, offset, stored, size, name_at, name_bytes = PACKED.unpack(raw)
        name = os.fsdecode(os.pread(self._names.fileno(), name_bytes, name_at))
        if method == JOINED:
            return Listed(name, label, size, Place("file", self._files[file] + name))
        return Listed(name, label, size, Place(METHODS[method], self._files[file], offset, stored))


def chunks(path: Path) -> Iterator[NDArray[np.void]]:
    """The records of a file, (≤ CHUNK,) RECORD at a time."""
    with open(path, "rb") as stream:
        while raw := stream.read(CHUNK * RECORD.itemsize):
            yield np.frombuffer(bytearray(raw), RECORD)
