"""The interface of a source of images: a stream of `SourceImage`s, and what `pack` needs to know before the first one.

A source only lists images, without reading them: their names, their sizes and the places of their bytes. Listing 1.28 M
images therefore takes seconds, and memory does not grow with their number.
"""

import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

Method = Literal["file", "stored", "deflate"]
MAX_OPEN = 64  # open containers per process


class Place(NamedTuple):
    """The place of an image's bytes.

    method: "file": the whole of `file`; "stored": `stored_bytes` at `offset` in it (a tar, a zip); "deflate": the same,
        but compressed (raw DEFLATE, as in a zip).
    file: a path; images of one container share it.
    """

    method: Method
    file: str
    offset: int = 0
    stored_bytes: int = 0


class SourceImage(NamedTuple):
    """One image before packing.

    name: unique in its split, relative to the source, with "/"; messages, SPLIT.sources.txt and the fingerprint use it.
    key: its class key (wnid, directory name, label text). size_bytes: the size of the image file's content.
    """

    split: str
    key: str
    name: str
    size_bytes: int
    place: Place


class Unusable(NamedTuple):
    """An image that the source lists but `pack` cannot use: a missing file, a row without a label …

    name: as `SourceImage.name`. reason: why, in a few words, without the image's name or the source's path. key: its
    class key; "" if it has none or it is unknown.
    """

    split: str
    name: str
    reason: str
    key: str = ""


class Source(Protocol):
    """Input of `pack`. `open_source` finds the right one for a path.

    explained: one line for the user: what was recognised, and how it will be read.
    ignored: the names that `images` skipped because they are not images of a class, at most 1,000.
    """

    format: str
    explained: str
    ignored: Sequence[str] = ()

    def images(self, work: Path) -> Iterator[SourceImage | Unusable]:
        """Yield every image once, always in the same order.

        `work`: an existing directory for data that cannot be read in place. It exists until packing is complete; it is
        kept if packing is killed.

        Raises:
            ValueError: the source contradicts itself (file, value and remedy in one line). OSError: it cannot be read.
        """

    def class_names(self) -> dict[str, str]:
        """Class key → readable name, for the names that the source has; complete only after `images` is exhausted."""
        return {}

    def fixed_classes(self) -> list[str] | None:
        """The class keys by label, if the source fixes the labels: label i is the i-th key, with or without images.
        None: labels are positions among the sorted keys of the images. Complete only after `images` is exhausted."""
        return None

    def notes(self) -> list[str]:
        """Messages for the user about assumptions that `images` made; may be empty."""
        return []


class ByteReader:
    """Read the bytes of image files, in any process. A limited number of containers stays open until `close`."""

    def __init__(self) -> None:
        self._open: dict[str, int] = {}

    def read(self, name: str, place: Place, size_bytes: int) -> bytes:
        """Read the content of one image file; `name` is for messages.

        Raises:
            OSError: it cannot be read. ValueError: it differs from the listing.
        """
        if place.method == "file":
            descriptor = os.open(place.file, os.O_RDONLY)
            try:
                data = _read(descriptor, size_bytes + 1)  # one byte more, to notice that the file grew
            finally:
                os.close(descriptor)
        else:
            data = self._contained(name, place)
        if len(data) != size_bytes:
            where = place.file if place.method == "file" else f"{place.file}: {name}"
            now = f"{len(data)}" if len(data) < size_bytes or place.method != "file" else "more"
            raise ValueError(
                f"{where}: had {size_bytes} bytes when packing began, but now has {now}; "
                "pack again when nothing writes to the source"
            )
        return data

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])

    def _contained(self, name: str, place: Place) -> bytes:
        descriptor = self._open.get(place.file)
        if descriptor is None:
            if len(self._open) >= MAX_OPEN:
                self.close()
            descriptor = self._open[place.file] = os.open(place.file, os.O_RDONLY)
        data = os.pread(descriptor, place.stored_bytes, place.offset)
        if place.method == "stored":
            return data
        try:
            return zlib.decompress(data, wbits=-zlib.MAX_WBITS)
        except zlib.error as error:
            raise ValueError(f"{place.file}: cannot decompress {name} ({error})") from None


def _read(descriptor: int, size: int) -> bytes:
    """Read `size` bytes, or as many as there are, with a single call for nearly every file."""
    data = os.read(descriptor, size)
    while len(data) < size - 1 and (more := os.read(descriptor, size - len(data))):
        data += more
    return data


def read_bytes(image_name: str, place: Place, size_bytes: int) -> bytes:
    """`ByteReader.read` for one image."""
    reader = ByteReader()
    try:
        return reader.read(image_name, place, size_bytes)
    finally:
        reader.close()


def printable(path: str | os.PathLike[str]) -> str:
    """A path that any terminal can print."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
