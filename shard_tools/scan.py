"""Scan one WebDataset tar made by others: its samples' rows for the table, its .idx, and what is wrong with it."""

import hashlib
import io
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from shard_tools.encode import FORMATS, MAX_SIDE
from shard_tools.format import SAMPLE_DTYPE, ShardInfo, atomic_write, index_path, inside
from shard_tools.jpeg import SOI, has_end, read_header
from shard_tools.sources.classnames import NamesMet
from shard_tools.sources.naming import MAX_CLASSES, Ignored
from shard_tools.sources.tarsamples import (
    FIND_OUT,
    Fields,
    Unlabelled,
    image_of,
    iterate_samples,
    no_image,
    read_label,
)


@dataclass
class Scanned:
    """One shard. `rows` have shard 0 and, as label, the number itself or a position in `texts`."""

    info: ShardInfo
    rows: np.ndarray  # (num_samples,) SAMPLE_DTYPE
    names: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    numbered: str = ""  # name of the sample with the largest label that is a number
    highest: int = -1  # this label
    class_names: NamesMet = field(default_factory=NamesMet)
    kinds: Counter[str] = field(default_factory=Counter)
    extensions: set[str] = field(default_factory=set)
    bad: list[tuple[str, str]] = field(default_factory=list)  # name, reason
    ignored: Ignored = field(default_factory=Ignored)  # members that belong to no sample


def scan_shard(path: Path, fields: Fields = FIND_OUT) -> Scanned:
    """Read one shard once, and write its .idx.

    Raises:
        ValueError: it is no whole tar, or a link out of its directory; a sample has two images or labels to choose
            from; a name cannot stand in an .idx.
    """
    rows: list[tuple[int, ...]] = []
    lines: list[str] = []
    texts: dict[str, int] = {}
    labels: list[int] = []
    with open(inside(path.parent, path.name), "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        scanned = Scanned(ShardInfo(path.name, 0, path.stat().st_size, digest), np.empty(0, SAMPLE_DTYPE))
        for sample in iterate_samples(path, scanned.ignored):
            for member in sample:
                if len(member.name.split()) != 1 or len(member.extension.split()) != 1:
                    raise ValueError(
                        f"{path}: the name {member.name!r} has white space, which an .idx cannot hold; "
                        "pack the directory instead"
                    )
            lines.append(" ".join(f"{m.extension} {m.offset} {m.size} {m.name}" for m in sample))
            image = image_of(sample, path, fields)
            name = f"{path.name}/{(image or sample[0]).name}"
            if image is None:
                scanned.bad.append((name, no_image(sample, fields)))
                continue
            try:
                label, about = read_label(sample, stream, path, fields)
            except Unlabelled as error:
                scanned.bad.append((name, str(error)))
                continue
            stream.seek(image.offset)
            try:
                height, width, kind = examine(stream.read(image.size))
            except ValueError as error:
                scanned.bad.append((name, str(error)))
                continue
            scanned.class_names.add(label, about, image.name)
            if isinstance(label, int):
                if label > scanned.highest:
                    scanned.highest, scanned.numbered = label, name
            else:
                label = texts.setdefault(label, len(texts))
            labels.append(label)
            rows.append((0, image.offset, image.size, 0, height, width))
            scanned.names.append(name)
            scanned.kinds[kind] += 1
            scanned.extensions.add(image.extension)
    with atomic_write(index_path(path)) as out:
        out.write("".join(f"{line}\n" for line in (f"v1.2 {len(lines)}", *lines)).encode())
    scanned.info = ShardInfo(path.name, len(rows), scanned.info.bytes, digest)
    scanned.rows = np.array(rows, SAMPLE_DTYPE)
    if scanned.highest < MAX_CLASSES:  # else `LabelsMet` refuses it
        scanned.rows["label"] = labels
    scanned.texts = list(texts)
    return scanned


def examine(data: bytes) -> tuple[int, int, str]:
    """Height, width and kind of an image that DALI decodes as Pillow does, judged by its header.

    Raises:
        ValueError: it is none; says why.
    """
    if data.startswith(SOI) and (header := read_header(data)):
        if not has_end(data, header):
            raise ValueError("truncated: no end marker")
        return header.height, header.width, "cmyk" if header.components == 4 else "jpeg"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                width, height = image.size
                frames, kind, mode = getattr(image, "n_frames", 1), (image.format or "").lower(), image.mode
    except UnidentifiedImageError:
        raise ValueError(f"not a JPEG, PNG, WebP or BMP image (starts with {data[:8]!r})") from None
    except Exception as error:  # Pillow raises whatever its parsers run into
        raise ValueError(f"unreadable header ({type(error).__name__}: {error})".splitlines()[0]) from None
    if data.startswith(SOI):
        raise ValueError("a JPEG that not every decoder takes; pack converts it")
    if frames > 1:
        raise ValueError(f"animated {kind} with {frames} frames")
    if mode.startswith(("I", "F")):
        raise ValueError(f"{kind} with 16 bits, which DALI and Pillow see differently; pack converts it")
    if not 0 < min(height, width) <= max(height, width) <= MAX_SIDE:
        raise ValueError(f"has {width}×{height} pixels; a side has 1 to {MAX_SIDE}")
    return height, width, kind
