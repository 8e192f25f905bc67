"""Check a packed dataset: a directory → findings, one line each; none means that every byte is as it was written."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from shard_tools.encode import BadImage, EncodeConfig, encode
from shard_tools.format import INFO_FILE, ShardInfo, ShardSet, Split, file_sha256, index_path
from shard_tools.shard import WORK_DIR
from shard_tools.tarindex import Member, read_index, scan_tar

MAX_FINDINGS_PER_SHARD = 5  # of one kind: a shifted table is wrong in every row


def verify(root: str | os.PathLike[str], decode: bool = False) -> list[str]:
    """All that is wrong with the dataset at `root`; with `decode`, also every image that cannot be decoded.

    Reads every shard once. What it cannot open at all is a finding too; it raises nothing for a broken dataset.
    """
    root = Path(root)
    try:
        shard_set = ShardSet.open(root)
    except ValueError as error:
        return [str(error)]
    findings = list(_description(shard_set))
    known = {INFO_FILE}
    for split in shard_set.splits.values():
        starts = np.searchsorted(split.samples["shard"], np.arange(len(split.shards) + 1))
        if (np.diff(split.samples["shard"].astype(np.int64)) < 0).any():
            findings.append(f"{split.name}: the sample table is not in shard order")
            continue
        for shard, info in enumerate(split.shards):
            known |= {info.file, split.index_path(shard).name}
            findings += _shard(split, shard, info, int(starts[shard]), int(starts[shard + 1]), decode)
    for path in sorted(root.iterdir()):
        if path.suffix in (".tar", ".idx") and path.name not in known:
            findings.append(f"{path.name}: is not listed in {INFO_FILE}")
    if (root / WORK_DIR).exists():
        findings.append(f"{WORK_DIR}: left by an interrupted run; the next pack into this directory removes it")
    return findings


def _description(shard_set: ShardSet) -> Iterator[str]:
    """`dataset.json` itself, and the files that it vouches for."""
    if not shard_set.intact:
        yield f"{INFO_FILE}: was edited since it was written (checksum)"
    keys = [info.wnid for info in shard_set.classes]
    if keys != sorted(set(keys)):
        yield f"{INFO_FILE}: classes are not sorted or not unique"
    for name, digest in shard_set.files.items():
        yield from _file(shard_set.root / name, digest)


def _shard(split: Split, shard: int, info: ShardInfo, start: int, stop: int, decode: bool) -> Iterator[str]:
    path = split.shard_path(shard)
    if stop - start != info.samples:
        yield f"{info.file}: the sample table has {stop - start} samples for it, {INFO_FILE} says {info.samples}"
    try:
        size = path.stat().st_size
        if size != info.bytes:
            yield f"{info.file}: has {size} bytes, {INFO_FILE} says {info.bytes}"
        digest = file_sha256(path)
    except OSError as error:
        yield f"{info.file}: cannot be read ({error.strerror})"
        return
    if digest != info.sha256:
        yield f"{info.file}: sha256 is {digest[:12]}…, {INFO_FILE} says {info.sha256[:12]}…"
    try:
        samples = scan_tar(path)
    except ValueError as error:
        yield f"{info.file}: {error}"
        return
    yield from _at_most(_table(split, info, samples, start, stop, path, decode))
    try:
        index = read_index(index_path(path))
    except (OSError, ValueError) as error:
        yield f"{index_path(path).name}: {error.strerror if isinstance(error, OSError) else error}"
        return
    if index != samples:
        where = next((i for i, (a, b) in enumerate(zip(index, samples, strict=False)) if a != b), None)
        what = f"line {where + 2} does not fit" if where is not None else f"has {len(index)} samples for {len(samples)}"
        yield f"{index_path(path).name}: {what} {info.file}"


def _table(
    split: Split, info: ShardInfo, samples: list[list[Member]], start: int, stop: int, path: Path, decode: bool
) -> Iterator[str]:
    """The table's rows against the tar's members."""
    if len(samples) != stop - start:
        yield f"{info.file}: holds {len(samples)} samples, the sample table has {stop - start}"
    with open(path, "rb") as stream:
        for sample_id, members, row in zip(range(start, stop), samples, split.samples[start:stop], strict=False):
            name = f"{info.file}: {split.name} sample {sample_id} ({members[0].name.split('.')[0]})"
            by_extension = {member.extension: member for member in members}
            if set(by_extension) != {"cls", "jpg"}:
                yield f"{name}: has members {', '.join(by_extension)}, not cls and jpg"
                continue
            image, label = by_extension["jpg"], by_extension["cls"]
            if (row["offset"], row["size"]) != (image.offset, image.size):
                yield (
                    f"{name}: lies at {image.offset} with {image.size} bytes, "
                    f"the table says {row['offset']} and {row['size']}"
                )
            stream.seek(label.offset)
            text = stream.read(min(label.size, 20))
            if text != str(row["label"]).encode():
                yield f"{name}: its .cls is {text!r}, the table says {row['label']}"
            if decode:
                stream.seek(image.offset)
                yield from (f"{name}: {line}" for line in _decoded(stream.read(image.size), row))


def _decoded(data: bytes, row: np.void) -> Iterator[str]:
    try:
        encoded = encode(data, EncodeConfig(max_pixels=1 << 62))
    except BadImage as error:
        yield str(error)
        return
    if encoded.kind != "jpeg":
        yield f"is {encoded.kind}, not a gray or RGB JPEG"
    if (encoded.height, encoded.width) != (row["height"], row["width"]):
        yield f"is {encoded.height}×{encoded.width} pixels, the table says {row['height']}×{row['width']}"


def _file(path: Path, digest: str) -> Iterator[str]:
    try:
        if file_sha256(path) != digest:
            yield f"{path.name}: changed since it was written (sha256)"
    except OSError as error:
        yield f"{path.name}: cannot be read ({error.strerror})"


def _at_most(findings: Iterator[str]) -> Iterator[str]:
    count = 0
    for count, finding in enumerate(findings, 1):
        if count <= MAX_FINDINGS_PER_SHARD:
            yield finding
    if count > MAX_FINDINGS_PER_SHARD:
        yield f"… {count - MAX_FINDINGS_PER_SHARD} more such findings in this shard"
