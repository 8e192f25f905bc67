"""Repair a dataset in which `verify` found problems: a directory → messages about each repair; `dataset.json` last.

Information that exists twice is rebuilt from the good copy: indexes and tables from the tars; a tar's headers, labels
and padding from the table. An image exists only once: if its bytes are lost, the sample is removed. If the bytes of a
shard changed but all its images still decode, nothing shows which image was altered. Such a shard stays as it is, and
`verify` keeps reporting it. Shards that `index` prepared in place are never written to.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path

import numpy as np

from penstock.shard_tools.encode import BadImage
from penstock.shard_tools.index import index
from penstock.shard_tools.rejected import REJECTED_FILE
from penstock.shard_tools.repair_shard import RepairedShard, image_bytes, repair_shard
from penstock.shard_tools.sources.tarsamples import Fields
from penstock.shard_tools.trainable import check_stored
from penstock.shards.description import Description, read_description
from penstock.shards.format import (
    DAMAGED,
    INFO_FILE,
    SAMPLE_DTYPE,
    ClassInfo,
    Samples,
    ShardInfo,
    ShardSet,
    file_sha256,
    index_path,
    inside,
    sources_file,
    table_file,
    unescape,
    write_info,
    write_split,
)


def repair(root: str | os.PathLike[str], workers: int | None = None) -> list[str]:
    """Repair what can be repaired. Returns one message per repair; `verify` reports the remaining problems.

    Raises:
        ValueError: no repair is possible; the message gives the reason.
    """
    root = Path(root)
    path = root / INFO_FILE
    try:
        description = read_description(inside(root, INFO_FILE).read_bytes(), for_repair=True)
        if description.url:
            raise ValueError(f"its shards are at {description.url}")
        for name, shards in description.shards.items():  # before anything is renamed or removed
            for file in (table_file(name), sources_file(name), *(shard.file for shard in shards)):
                inside(root, file)
                inside(root, index_path(root / file).name)
    except (OSError, *DAMAGED) as error:
        raise ValueError(f"{path}: cannot be repaired ({error}); restore it from a copy, or pack again") from None
    try:
        if description.made.get("indexed"):
            return _repair_foreign(root, workers, list(description.classes), description.made)
        return _repair_packed(root, description, _is_intact(root))
    except OSError as error:
        raise ValueError(f"{error.filename or root}: cannot be repaired ({error.strerror})") from None


def _is_intact(root: Path) -> bool:
    try:
        return ShardSet.open(root).intact
    except ValueError:
        return False


def _repair_packed(root: Path, description: Description, intact: bool) -> list[str]:
    old = [info for shards in description.shards.values() for info in shards]
    lines = _unswap(root, old)
    repaired: dict[str, list[RepairedShard]] = {}
    for split in description.shards:
        repaired[split] = _repair_split(root, split, description, intact, lines)
    infos = {split: [shard.info for shard in shards if shard.info] for split, shards in repaired.items()}
    tables = {split: np.concatenate([s.rows for s in shards if s.info]) for split, shards in repaired.items()}
    if not intact:
        lines.append(f"{INFO_FILE}: counts and hashes corrected; edited class names and settings are kept")
    made, lost = description.made, sum(info.samples for info in old) - sum(map(len, tables.values()))
    if lost > 0:
        before = made.get("removed", 0)
        made = made | {"removed": lost + (before if isinstance(before, int) else 0)}
    written: dict[str, str] = {}
    for split, table in tables.items():
        written |= write_split(root, split, table, list(_names(root, split, repaired[split], lines)))
    write_info(root, description.classes, infos, made, written)
    return lines


def _repair_split(
    root: Path, split: str, description: Description, intact: bool, lines: list[str]
) -> list[RepairedShard]:
    """Repair the shards of one split and return them; appends messages to `lines`."""
    table, num_classes = _trusted_table(root, split, description.files), len(description.classes)
    if table is not None and len(table) and table["label"].max() >= num_classes:
        raise ValueError(
            f"{root / INFO_FILE}: cannot be repaired (it lists {num_classes} classes, but {table_file(split)} has "
            f"label {table['label'].max()}); restore it from a copy, or pack again"
        )
    repaired: list[RepairedShard] = []
    num_kept = 0
    for number, info in enumerate(description.shards[split]):
        rows = None if table is None else table[table["shard"] == number]
        shard = repair_shard(root, info, rows, num_classes, intact)
        lines += shard.lines
        shard.rows["shard"] = num_kept
        num_kept += shard.info is not None
        repaired.append(shard)
    if not num_kept:
        raise ValueError(f"{root}: no sample of {split} is left; pack again")
    if table is None:
        lines.append(f"{table_file(split)}: rebuilt from the tars")
    return repaired


def _unswap(root: Path, shards: list[ShardInfo]) -> list[str]:
    """Rename shards that have swapped their names."""
    found = {info.file: file_sha256(root / info.file) for info in shards if (root / info.file).is_file()}
    wrong = {info.sha256: info.file for info in shards if found.get(info.file) != info.sha256}
    moves = {file: wrong[digest] for file, digest in found.items() if wrong.get(digest, file) != file}
    moves = {file: target for file, target in moves.items() if target in moves or target not in found}
    for file in moves:
        os.replace(root / file, root / f".{file}.moved")
    for file, target in moves.items():
        os.replace(root / f".{file}.moved", root / target)
    return [f"{target}: renamed back from {file}" for file, target in moves.items()]


def _trusted_table(root: Path, split: str, files: dict[str, str]) -> Samples | None:
    path = root / table_file(split)
    with suppress(OSError, ValueError):
        if file_sha256(path) == files.get(path.name):  # the file is unchanged since it was written
            table = np.lib.format.open_memmap(path, mode="r")
            if table.dtype == SAMPLE_DTYPE:
                return np.array(table)
    return None


def _names(root: Path, split: str, shards: list[RepairedShard], lines: list[str]) -> Iterator[str]:
    """Source names of the remaining rows; the names in the tars if the list does not fit the table."""
    path = root / sources_file(split)
    keep = np.concatenate([np.ones(len(m.rows), bool) if m.keep is None else m.keep for m in shards])
    try:
        with open(path, "rb") as stream:
            fits = sum(1 for _ in stream) == len(keep)
    except OSError:
        fits = False
    if not fits:
        lines.append(f"{path.name}: the original names are lost; it now has the names in the tars")
        for m in shards:
            yield from (f"{m.info.file}/{name}" for name in m.names if m.info)
        return
    with open(path, "rb") as stream:
        for kept, line in zip_longest(keep, stream):
            if kept:
                yield unescape(line.rstrip(b"\n").decode("utf-8", "surrogateescape"))


def _repair_foreign(root: Path, workers: int | None, classes: list[ClassInfo], made: dict[str, object]) -> list[str]:
    """Index again with the same settings, then remove samples that do not decode. The classes keep their names."""
    fields = Fields(str(made.get("image_field", "")), str(made.get("label_field", "")))
    lines = [f"{root}: indexed again"]
    shard_set = index(root, on_bad="skip", fields=fields, workers=workers, say=lines.append)
    if rejected := shard_set.made["rejected"]:
        lines.append(f"{root}: skipped {rejected:,} image(s) that training cannot use as they are, see {REJECTED_FILE}")
    keys = [info.wnid for info in shard_set.classes]
    if [info.wnid for info in classes[: len(keys)]] != keys:
        classes = list(shard_set.classes)
    files = dict(shard_set.files)
    infos = {name: list(split.shards) for name, split in shard_set.splits.items()}
    removed = 0
    for name, split in shard_set.splits.items():
        keep = np.ones(len(split), bool)
        for i, row in enumerate(split.samples):
            data = image_bytes(split.shard_path(int(row["shard"])), row)
            try:
                check_stored(data, compare=False)  # as the index did
            except BadImage as error:
                keep[i] = False
                lines.append(f"{split.where(i)}: removed: {error}")
        if keep.all():
            continue
        removed += int((~keep).sum())
        counts = np.bincount(split.samples["shard"][keep], minlength=len(infos[name]))
        infos[name] = [
            ShardInfo(info.file, int(n), info.bytes, info.sha256) for info, n in zip(infos[name], counts, strict=True)
        ]
        names = [split.source_name(int(i)) for i in np.flatnonzero(keep)]
        files |= write_split(root, name, np.array(split.samples[keep]), names)
    if removed or classes != list(shard_set.classes):
        made = shard_set.made | ({"removed": removed} if removed else {})
        write_info(root, classes, infos, made, files)
    return lines
