"""Scan one existing WebDataset tar: the table rows of its samples, its .idx, and the samples that cannot be used."""

import hashlib
import io
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from penstock.shard_tools.encode import FORMATS, MAX_PIXELS, MAX_SIDE, BadImage, reason
from penstock.shard_tools.jpeg import SOI, has_end, read_header
from penstock.shard_tools.orientation import UPRIGHT, jpeg_orientation, orientation_of
from penstock.shard_tools.sources.classnames import NamesMet
from penstock.shard_tools.sources.naming import MAX_CLASSES, Ignored
from penstock.shard_tools.sources.tarsamples import (
    FIND_OUT,
    Fields,
    Unlabelled,
    image_of,
    iterate_samples,
    no_image,
    read_label,
)
from penstock.shard_tools.tarindex import Member, index_line, write_index
from penstock.shard_tools.trainable import check_trains
from penstock.shards.format import SAMPLE_DTYPE, Samples, ShardInfo, index_path, inside


@dataclass
class Scanned:
    """The scan of one shard. `rows` have shard 0; their label is the number itself or a position in `texts`."""

    info: ShardInfo
    rows: Samples
    names: list[str] = field(default_factory=list)
    texts: dict[str, int] = field(default_factory=dict)  # class → its position
    worded: str = ""  # name of the first sample with a text label
    numbered: str = ""  # name of the sample with the largest numeric label
    highest: int = -1  # this largest label
    class_names: NamesMet = field(default_factory=NamesMet)
    kinds: Counter[str] = field(default_factory=Counter)
    unturned: int = 0  # images with an EXIF orientation other than 1
    extensions: set[str] = field(default_factory=set)
    bad: list[tuple[str, str]] = field(default_factory=list)  # name, reason
    ignored: Ignored = field(default_factory=Ignored)  # members that do not belong to any sample

    def number(self, label: int | str, name: str) -> int:
        """The number that represents the label of the sample `name` in the table."""
        if isinstance(label, str):
            self.worded = self.worded or name
            return self.texts.setdefault(label, len(self.texts))
        if label > self.highest:
            self.highest, self.numbered = label, name
        return label


def scan_shard(path: Path, fields: Fields = FIND_OUT) -> Scanned:
    """Read one shard once, and write its .idx.

    Raises:
        ValueError: the tar is damaged, or a link to a place outside its directory; a sample has several images or
            labels to choose from; an .idx cannot contain a name.
    """
    rows: list[tuple[int, ...]] = []
    lines: list[str] = []
    with open(inside(path.parent, path.name), "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        scanned = Scanned(ShardInfo(path.name, 0, path.stat().st_size, digest), np.empty(0, SAMPLE_DTYPE))
        for sample in iterate_samples(path, scanned.ignored):
            _check_names(sample, path)
            lines.append(index_line(sample))
            image = image_of(sample, path, fields)
            name = f"{path.name}/{(image or sample[0]).name}"
            if image is None:
                scanned.bad.append((name, no_image(sample, fields)))
                continue
            try:
                label, about = read_label(sample, stream, path, fields)
                stream.seek(image.offset)
                found = examine(stream.read(image.size))
            except (Unlabelled, BadImage) as error:
                scanned.bad.append((name, str(error)))
                continue
            scanned.class_names.add(label, about, image.name)
            rows.append((0, image.offset, image.size, scanned.number(label, name), found.height, found.width))
            scanned.names.append(name)
            scanned.kinds[found.kind] += 1
            scanned.unturned += found.unturned
            scanned.extensions.add(image.extension)
    write_index(index_path(path), lines)
    scanned.info = ShardInfo(path.name, len(rows), scanned.info.bytes, digest)
    if scanned.highest >= MAX_CLASSES:  # `LabelsMet` will reject it, and it may not fit into the table
        rows = []
    scanned.rows = np.array(rows, SAMPLE_DTYPE)
    return scanned


def _check_names(sample: list[Member], path: Path) -> None:
    for member in sample:
        if len(member.name.split()) != 1 or len(member.extension.split()) != 1:
            raise ValueError(
                f"{path}: the member name {member.name!r} contains white space, which an .idx does not support; "
                "pack the directory instead"
            )


class Examined(NamedTuple):
    """The facts about one image. unturned: it has an EXIF orientation other than 1; training does not apply it."""

    height: int
    width: int
    kind: str
    unturned: bool


def examine(data: bytes) -> Examined:
    """Check that DALI decodes an image like Pillow: look at the header of ordinary JPEGs, and decode all others.

    Raises:
        BadImage: the image is not usable; the message gives the reason.
    """
    try:
        header = read_header(data)
        if header is None or header.components == 4:
            return _examine_other(data)
        if not has_end(data, header):
            raise BadImage("truncated: no end marker")
        _check_size(header.height, header.width)
        return Examined(header.height, header.width, "jpeg", jpeg_orientation(data, header) != UPRIGHT)
    except Exception as error:
        raise BadImage(reason(data, error)) from None


def _examine_other(data: bytes) -> Examined:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            frames, kind = getattr(image, "n_frames", 1), (image.format or "").lower()
            if data.startswith(SOI):
                frames, kind = 1, "cmyk" if image.mode == "CMYK" else "odd-jpeg"
            unturned = orientation_of(image) != UPRIGHT
    if frames > 1:
        raise BadImage(f"animated {kind} with {frames} frames")
    _check_size(height, width)
    check_trains(data, height, width, compare=True)
    return Examined(height, width, kind, unturned)


def _check_size(height: int, width: int) -> None:
    if not 0 < min(height, width) <= max(height, width) <= MAX_SIDE:
        raise BadImage(f"has {width}×{height} pixels; a side must have 1 to {MAX_SIDE}")
    if height * width > MAX_PIXELS:
        raise BadImage(
            f"has {width}×{height} pixels, more than {MAX_PIXELS:,}; pack it with --max-pixels and --short-side"
        )
