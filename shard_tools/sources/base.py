"""What a source of images is: a stream of `SourceImage`s, and what `pack` needs to know before the first.

A source lists, it does not read: names, sizes, and where the bytes lie. So 1.28 M images take seconds, in memory that
does not grow with their number.
"""

import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

Method = Literal["file", "stored", "deflate"]
MAX_OPEN = 64  # containers, in each process


class Place(NamedTuple):
    """Where an image's bytes lie.

    method: "file": the whole of `file`; "stored": `stored_bytes` at `offset` of it (a tar, a zip); "deflate": the same,
        to be inflated (raw DEFLATE, as in a zip).
    file: a path; images of one container share it.
    """

    method: Method
    file: str
    offset: int = 0
    stored_bytes: int = 0


class SourceImage(NamedTuple):
    """One image before packing.

    name: unique in its split, relative to the source, with "/": what messages, SPLIT.sources.txt and the fingerprint
        use. key: its class key (wnid, directory name, label text). size_bytes: of the image file's content.
    """

    split: str
    key: str
    name: str
    size_bytes: int
    place: Place


class Unusable(NamedTuple):
    """What the source lists as an image and `pack` cannot take: a missing file, a row without a label …

    name: as `SourceImage.name`. reason: why, in a few words, without the name or where the source lies. key: its class
        key, "" if it has none or it is not known.
    """

    split: str
    name: str
    reason: str
    key: str = ""


class Source(Protocol):
    """Input of `pack`. `open_source` finds the right one for a path.

    explained: one line for people: what was recognised, and how it will be read.
    ignored: what `images` met and left out as being no image of a class: at most 1,000 names.
    """

    format: str
    explained: str
    ignored: Sequence[str] = ()

    def images(self, work: Path) -> Iterator[SourceImage | Unusable]:
        """Every image once, in an order that is the same each time.

        `work`: an existing directory for what cannot be read in place; it lives as long as the packing does and is kept
        when that is killed.

        Raises:
            ValueError: the source contradicts itself (file, value, remedy in one line). OSError: it cannot be read.
        """

    def class_names(self) -> dict[str, str]:
        """Class key → readable name, as far as the source knows; complete only after `images` has run through."""
        return {}

    def fixed_classes(self) -> list[str] | None:
        """The class keys by label, where the source fixes the labels: label i is the i-th, whether it has images or
        not. None: the labels are the places of the sorted keys met. Complete only after `images` has run through."""
        return None

    def notes(self) -> list[str]:
        """Lines for people about what `images` met and `pack` took for granted; none if there is nothing to say."""
        return []


class ByteReader:
    """Reads image files' bytes, in any process. Containers stay open (a few of them) until `close`."""

    def __init__(self) -> None:
        self._open: dict[str, int] = {}

    def read(self, name: str, place: Place, size_bytes: int) -> bytes:
        """The content of one image file; `name` is for messages.

        Raises:
            OSError: it cannot be read. ValueError: it is not what was listed.
        """
        if place.method == "file":
            descriptor = os.open(place.file, os.O_RDONLY)
            try:
                data = _read(descriptor, size_bytes + 1)  # one more, to notice that it grew
            finally:
                os.close(descriptor)
        else:
            data = self._contained(name, place)
        if len(data) != size_bytes:
            where = place.file if place.method == "file" else f"{place.file}: {name}"
            now = f"{len(data)} now" if len(data) < size_bytes or place.method != "file" else "more now"
            raise ValueError(
                f"{where}: had {size_bytes} bytes when packing began and has {now}; "
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
            raise ValueError(f"{place.file}: {name} does not inflate ({error})") from None


def _read(descriptor: int, size: int) -> bytes:
    """`size` bytes or as many as there are; one call for nearly every file."""
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
    """A path that any terminal takes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
