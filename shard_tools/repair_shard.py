"""Repair one shard that `pack` wrote: a damaged tar, with its table rows if they exist → a valid tar, index and rows.

The tar is rewritten from its intact samples. If no image was damaged, the result is byte-identical to the original tar;
otherwise it is shorter.
"""

import os
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import simplejpeg  # type: ignore[import-untyped]
from numpy.typing import NDArray

from penstock.shard_tools.encode import BadImage, encode
from penstock.shard_tools.sources.naming import Ignored
from penstock.shard_tools.sources.tarsamples import iterate_samples
from penstock.shard_tools.tarindex import Member, index_line, read_index, write_index
from penstock.shard_tools.tarwriter import TarWriter
from penstock.shard_tools.trainable import ANY_SIZE, check_stored, unlike_packed
from penstock.shards.format import SAMPLE_DTYPE, Samples, ShardInfo, atomic_write, file_sha256, index_path
from penstock.shards.ppm import EXTENSION, is_ppm

IMAGES = ("jpg", EXTENSION)  # the members that hold an image


@dataclass(frozen=True)
class RepairedShard:
    """One shard after the repair. keep: which of its old rows remain; None if the rows are new. names: of the members
    with the images."""

    info: ShardInfo | None
    rows: Samples
    keep: NDArray[np.bool_] | None
    names: list[str]
    lines: list[str] = field(default_factory=list)


def repair_shard(root: Path, info: ShardInfo, rows: Samples | None, num_classes: int, intact: bool) -> RepairedShard:
    """Repair one shard: keep its intact samples, as listed in the table or, without a table, in the tar."""
    path = root / info.file
    if not path.is_file():
        index_path(path).unlink(missing_ok=True)
        nothing = np.zeros(0 if rows is None else len(rows), bool)
        line = f"{info.file}: is missing; removed its {info.samples} samples (pack again to restore them)"
        return RepairedShard(None, np.empty(0, SAMPLE_DTYPE), nothing, [], [line])
    samples, whole = _readable(path)
    changed = file_sha256(path) != info.sha256
    found = _names(path, samples)
    all_rows = _rows_of(path, samples, num_classes) if rows is None else np.array(rows)
    bad = [_complaint(path, row, changed) for row in all_rows]
    is_good = np.array([not complaint for complaint in bad], bool)
    keep = None if rows is None else is_good
    lines = [
        f"{info.file}: sample {found.get(int(row['offset']), '?').partition('.')[0]} removed: {complaint}"
        for row, complaint in zip(all_rows, bad, strict=True)
        if complaint
    ]
    good = all_rows[is_good]
    if not len(good):
        path.unlink()
        index_path(path).unlink(missing_ok=True)
        return RepairedShard(None, good, keep, [], [*lines, f"{info.file}: removed, no sample is left"])
    names = [found.get(int(offset), "") for offset in good["offset"]]
    if not all(names):
        names = [f"{i:09d}.{_extension(path, row)}" for i, row in enumerate(good)]
    if changed or not whole or not is_good.all():
        new, new_rows = _rewritten(path, good, names)
        is_damaged = len(lines) > 0 or not whole or rows is None
        done = _done(info, new, is_damaged, intact)
        if not done:
            _rewritten_path(path).unlink()
            remedy = "restore the shard from a copy, or pack again"
            lines.append(f"{info.file}: not repaired: its bytes changed, but every image decodes; {remedy}")
            return RepairedShard(info, good, keep, names, lines)
        lines.append(f"{info.file}: {done}")
        os.replace(_rewritten_path(path), path)
        info, good = new, new_rows
    elif info.samples != len(good):
        info = replace(info, samples=len(good))
    lines += _write_index(path)
    return RepairedShard(info, good, keep, names, lines)


def _done(old: ShardInfo, new: ShardInfo, is_damaged: bool, intact: bool) -> str:
    """Describe the rewritten shard; "" if nothing shows which of its images were altered."""
    if new.sha256 == old.sha256:
        return "restored, byte-identical to the original"
    if is_damaged:
        return f"rewritten with its {new.samples} intact samples"
    return "" if intact else "accepted as it is, because it agrees with its table"


def _readable(path: Path) -> tuple[list[list[Member]], bool]:
    """The samples up to the first damage, and whether the tar is undamaged."""
    samples = []
    try:
        for sample in iterate_samples(path, Ignored()):
            samples.append(sample)
    except ValueError:
        return samples, False
    return samples, True


def _names(path: Path, samples: list[list[Member]]) -> dict[int, str]:
    """Offset of an image → its member's name; from the index for the part of the tar that cannot be read."""
    with suppress(OSError, ValueError):
        samples = read_index(index_path(path)) + samples
    return {m.offset: m.name for sample in samples for m in sample if m.extension in IMAGES}


def _extension(path: Path, row: np.void) -> str:
    """The extension of an image's member, determined by its content."""
    is_pixels = is_ppm(np.frombuffer(image_bytes(path, row), np.uint8), int(row["height"]), int(row["width"]))
    return EXTENSION if is_pixels else "jpg"


def _rows_of(path: Path, samples: list[list[Member]], num_classes: int) -> Samples:
    """Table rows from the tar alone. A sample without a label gets label -1; one without a size gets size 0."""
    rows = []
    with open(path, "rb") as stream:
        for sample in samples:
            members = {member.extension: member for member in sample}
            image = next((members[name] for name in IMAGES if set(members) == {"cls", name}), None)
            if image is None:
                continue
            stream.seek(members["cls"].offset)
            text = stream.read(min(20, members["cls"].size)).decode("ascii", "replace")
            label = int(text) if text.isdecimal() and int(text) < num_classes else -1
            stream.seek(image.offset)
            try:
                encoded = encode(stream.read(image.size), ANY_SIZE)
                height, width = encoded.height, encoded.width
            except BadImage:
                height = width = 0
            rows.append((0, image.offset, image.size, label, height, width))
    return np.array(rows, SAMPLE_DTYPE)


def _complaint(path: Path, row: np.void, suspicious: bool) -> str:
    """Why a sample must be removed; "" if it can stay. If the shard's bytes changed (`suspicious`), even libjpeg's
    harmless warnings count."""
    if row["label"] < 0:
        return "its label is lost"
    data = image_bytes(path, row)
    if len(data) != row["size"]:
        return "the shard ends before it"
    try:
        encoded = check_stored(data)
        if suspicious and encoded.kind == "jpeg":  # other kinds are removed anyway
            simplejpeg.decode_jpeg(data, "gray", min_height=1, min_width=1)
    except ValueError as error:
        return str(error)
    if complaint := unlike_packed(data, encoded):
        return complaint
    if (encoded.height, encoded.width) != (row["height"], row["width"]):
        return f"is {encoded.height}×{encoded.width} pixels, but was {row['height']}×{row['width']}"
    return ""


def image_bytes(path: Path, row: np.void) -> bytes:
    with open(path, "rb") as stream:
        stream.seek(int(row["offset"]))
        return stream.read(int(row["size"]))


def _rewritten_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.mended")


def _rewritten(path: Path, rows: Samples, names: list[str]) -> tuple[ShardInfo, Samples]:
    """Write the same samples to a new tar at `_rewritten_path`."""
    new_rows = rows.copy()
    with atomic_write(_rewritten_path(path)) as stream:
        tar = TarWriter(stream)
        for i, (row, name) in enumerate(zip(rows, names, strict=True)):
            tar.add(f"{name.partition('.')[0]}.cls", str(row["label"]).encode())
            new_rows["offset"][i] = tar.add(name, image_bytes(path, row))
        tar.close()
    return ShardInfo(path.name, len(rows), tar.size_bytes, tar.sha256.hexdigest()), new_rows


def _write_index(path: Path) -> list[str]:
    samples = list(iterate_samples(path, Ignored()))
    with suppress(OSError, ValueError):
        if read_index(index_path(path)) == samples:
            return []
    write_index(index_path(path), list(map(index_line, samples)))
    return [f"{index_path(path).name}: rebuilt from {path.name}"]
