"""Mend one shard that `pack` wrote: a damaged tar, and what its table says or nothing → a whole tar, index and rows.

The tar is written anew from the samples that are whole. Where the damage was not in an image, that is the old tar to
the byte; else it is a shorter one.
"""

import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import simplejpeg  # type: ignore[import-untyped]

from shard_tools.encode import BadImage, EncodeConfig, encode
from shard_tools.sources.naming import Ignored
from shard_tools.sources.tarsamples import iterate_samples
from shard_tools.tarindex import Member, read_index
from shard_tools.tarwriter import TarWriter
from shard_tools.trainable import check_trains
from shards.format import SAMPLE_DTYPE, ShardInfo, atomic_write, file_sha256, index_path

LENIENT = EncodeConfig(max_pixels=1 << 62)


@dataclass
class RepairedShard:
    """One shard afterwards. keep: which of its old rows are left; None where the rows are new."""

    info: ShardInfo | None
    rows: np.ndarray
    keep: np.ndarray | None
    names: list[str]
    lines: list[str] = field(default_factory=list)


def repair_shard(root: Path, info: ShardInfo, rows: np.ndarray | None, num_classes: int, intact: bool) -> RepairedShard:
    """One shard: its samples as the table or else the tar tells them, without those that are lost."""
    path = root / info.file
    if not path.is_file():
        index_path(path).unlink(missing_ok=True)
        nothing = np.zeros(0 if rows is None else len(rows), bool)
        line = f"{info.file}: is missing; its {info.samples} samples are taken out (pack again to have them back)"
        return RepairedShard(None, np.empty(0, SAMPLE_DTYPE), nothing, [], [line])
    samples, whole = _readable(path)
    changed = file_sha256(path) != info.sha256
    names = _keys(path, samples)
    old_rows = rows is not None
    rows = _rows_of(path, samples, num_classes) if rows is None else np.array(rows)
    bad = [_complaint(path, row, changed) for row in rows]
    keep = np.array([complaint is None for complaint in bad], bool)
    lines = [
        f"{info.file}: sample {names.get(int(row['offset']), '?')} taken out: {complaint}"
        for row, complaint in zip(rows, bad, strict=True)
        if complaint
    ]
    rows = rows[keep]
    if not len(rows):
        path.unlink()
        index_path(path).unlink(missing_ok=True)
        return RepairedShard(
            None, rows, keep if old_rows else None, [], [*lines, f"{info.file}: removed, nothing is left"]
        )
    keys = [names.get(int(offset), "") for offset in rows["offset"]]
    if not all(keys):
        keys = [f"{i:09d}" for i in range(len(rows))]
    if changed or not whole or not keep.all():
        new, new_rows = _rewritten(path, rows, keys)
        before = len(lines)
        if new.sha256 == info.sha256:
            lines.append(f"{info.file}: restored, every byte as it was written")
        elif before or not whole or not old_rows:
            lines.append(f"{info.file}: written anew with the {len(rows)} samples that are whole")
        elif not intact:
            lines.append(f"{info.file}: agrees with its table, taken as it is")
        else:
            Path(f"{path}.mended").unlink()
            remedy = "restore the shard from a copy, or pack again"
            lines.append(f"{info.file}: not mended: its bytes changed, but every image decodes; {remedy}")
            return RepairedShard(info, rows, keep if old_rows else None, keys, lines)
        os.replace(f"{path}.mended", path)
        info, rows = new, new_rows
    elif info.samples != len(rows):
        info = ShardInfo(info.file, len(rows), info.bytes, info.sha256)
    lines += _write_index(path)
    return RepairedShard(info, rows, keep if old_rows else None, keys, lines)


def _readable(path: Path) -> tuple[list[list[Member]], bool]:
    """The samples up to the first damage, and whether there is none."""
    samples = []
    try:
        for sample in iterate_samples(path, Ignored()):
            samples.append(sample)
    except ValueError:
        return samples, False
    return samples, True


def _keys(path: Path, samples: list[list[Member]]) -> dict[int, str]:
    """Offset of an image → its sample's key; from the index where the tar cannot be read that far."""
    with suppress(OSError, ValueError):
        samples = read_index(index_path(path)) + samples
    return {m.offset: m.name.partition(".")[0] for sample in samples for m in sample if m.extension == "jpg"}


def _rows_of(path: Path, samples: list[list[Member]], num_classes: int) -> np.ndarray:
    """Table rows from the tar alone; a sample without a label or a size has label -1 or size 0."""
    rows = []
    with open(path, "rb") as stream:
        for sample in samples:
            members = {member.extension: member for member in sample}
            if set(members) != {"cls", "jpg"}:
                continue
            stream.seek(members["cls"].offset)
            text = stream.read(min(20, members["cls"].size)).decode("ascii", "replace")
            label = int(text) if text.isdecimal() and int(text) < num_classes else -1
            stream.seek(members["jpg"].offset)
            try:
                encoded = encode(stream.read(members["jpg"].size), LENIENT)
                height, width = encoded.height, encoded.width
            except BadImage:
                height = width = 0
            rows.append((0, members["jpg"].offset, members["jpg"].size, label, height, width))
    return np.array(rows, SAMPLE_DTYPE)


def _complaint(path: Path, row: np.void, suspicious: bool) -> str | None:
    """Why a sample must be taken out. In a shard whose bytes changed, even libjpeg's harmless warnings count."""
    if row["label"] < 0:
        return "its label is lost"
    data = image_bytes(path, row)
    if len(data) != row["size"]:
        return "the shard ends before it"
    try:
        encoded = encode(data, LENIENT)
        check_trains(data, encoded.height, encoded.width, compare=encoded.kind != "jpeg")
        if suspicious and encoded.kind == "jpeg":  # others are taken out anyway
            simplejpeg.decode_jpeg(data, "gray", min_height=1, min_width=1)
    except ValueError as error:
        return str(error)
    if encoded.kind != "jpeg":
        return f"is {encoded.kind}, not a gray or RGB JPEG"
    if (encoded.height, encoded.width) != (row["height"], row["width"]):
        return f"is {encoded.height}×{encoded.width} pixels and was {row['height']}×{row['width']}"
    return None


def image_bytes(path: Path, row: np.void) -> bytes:
    with open(path, "rb") as stream:
        stream.seek(int(row["offset"]))
        return stream.read(int(row["size"]))


def _rewritten(path: Path, rows: np.ndarray, keys: list[str]) -> tuple[ShardInfo, np.ndarray]:
    """The same samples in a new tar, PATH.mended."""
    new_rows = rows.copy()
    with atomic_write(Path(f"{path}.mended")) as stream:
        tar = TarWriter(stream)
        for i, (row, key) in enumerate(zip(rows, keys, strict=True)):
            tar.add(f"{key}.cls", str(row["label"]).encode())
            new_rows["offset"][i] = tar.add(f"{key}.jpg", image_bytes(path, row))
        tar.close()
    return ShardInfo(path.name, len(rows), tar.size_bytes, tar.sha256.hexdigest()), new_rows


def _write_index(path: Path) -> list[str]:
    samples = list(iterate_samples(path, Ignored()))
    with suppress(OSError, ValueError):
        if read_index(index_path(path)) == samples:
            return []
    lines = [" ".join(f"{m.extension} {m.offset} {m.size} {m.name}" for m in sample) for sample in samples]
    with atomic_write(index_path(path)) as stream:
        stream.write("".join(f"{line}\n" for line in (f"v1.2 {len(lines)}", *lines)).encode())
    return [f"{index_path(path).name}: rebuilt from {path.name}"]
