"""Mend a dataset that `verify` found something in: a directory → lines that say what was done; `dataset.json` last.

What is known twice is rebuilt from the good copy: indexes and tables from the tars, a tar's headers, labels and padding
from the table. An image is known once: where its bytes are lost the sample is taken out. A shard whose bytes changed
while all its images still decode is left as it is, a finding for ever: nobody can tell which of them was altered.
Shards that `index` found in place are never written to.
"""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from shard_tools.encode import BadImage, encode
from shard_tools.index import REJECTED_FILE, index
from shard_tools.repair_shard import LENIENT, RepairedShard, image_bytes, repair_shard
from shard_tools.sources.tarsamples import Fields
from shard_tools.trainable import check_trains
from shards.format import (
    DAMAGED,
    INFO_FILE,
    SAMPLE_DTYPE,
    ClassInfo,
    ShardInfo,
    ShardSet,
    file_sha256,
    index_path,
    inside,
    shard_infos,
    sources_file,
    table_file,
    unescape,
    write_info,
    write_split,
)


def repair(root: str | os.PathLike[str], workers: int | None = None) -> list[str]:
    """Mend what can be mended and say what was done, a line each; `verify` tells what is left.

    Raises:
        ValueError: nothing can be done; says why.
    """
    root = Path(root)
    path = root / INFO_FILE
    try:
        info = json.loads(inside(root, INFO_FILE).read_bytes())
        classes = [ClassInfo(str(c["wnid"]), str(c["name"])) for c in info["classes"]]
        splits = {name: list(shards) for name, shards in shard_infos(info).items()}
        made, files = dict(info["made"]), dict(info["files"])
        for name, shards in splits.items():  # before anything is renamed or removed
            for file in (table_file(name), sources_file(name), *(shard.file for shard in shards)):
                inside(root, file), inside(root, index_path(root / file).name)
    except (OSError, *DAMAGED) as error:
        raise ValueError(f"{path}: cannot be mended ({error}); restore it from a copy, or pack again") from None
    try:
        if made.get("indexed"):
            return _repair_foreign(root, workers, classes, made)
        return _repair_packed(root, classes, splits, made, files, _is_intact(root))
    except OSError as error:
        raise ValueError(f"{error.filename or root}: cannot be mended ({error.strerror})") from None


def _is_intact(root: Path) -> bool:
    try:
        return ShardSet.open(root).intact
    except ValueError:
        return False


def _repair_packed(
    root: Path,
    classes: list[ClassInfo],
    splits: dict[str, list[ShardInfo]],
    made: dict[str, Any],
    files: dict[str, str],
    intact: bool,
) -> list[str]:
    lines = _unswap(root, [info for shards in splits.values() for info in shards])
    tables: dict[str, np.ndarray] = {}
    infos: dict[str, list[ShardInfo]] = {}
    sources: dict[str, list[RepairedShard]] = {}
    for split, shards in splits.items():
        table = _trusted_table(root, split, files)
        if table is not None and len(table) and table["label"].max() >= len(classes):
            raise ValueError(
                f"{root / INFO_FILE}: cannot be mended (it lists {len(classes)} classes, {table_file(split)} has label "
                f"{table['label'].max()}); restore it from a copy, or pack again"
            )
        mended = []
        for number, shard in enumerate(shards):
            rows = None if table is None else table[table["shard"] == number]
            mended.append(repair_shard(root, shard, rows, len(classes), intact))
            lines += mended[-1].lines
        kept = [m for m in mended if m.info is not None]
        if not kept:
            raise ValueError(f"{root}: no sample of {split} is left; pack again")
        if table is None:
            lines.append(f"{table_file(split)}: rebuilt from the tars")
        for number, m in enumerate(kept):
            m.rows["shard"] = number
        infos[split] = [m.info for m in kept if m.info is not None]
        tables[split], sources[split] = np.concatenate([m.rows for m in kept]), mended
    if not intact:
        lines.append(f"{INFO_FILE}: counts and hashes set right; class names and settings stay as they were edited")
    old = sum(info.samples for shards in splits.values() for info in shards)
    lost = old - sum(map(len, tables.values()))
    if lost > 0:
        made["removed"] = made.get("removed", 0) + lost
    written: dict[str, str] = {}
    for split, table in tables.items():
        written |= write_split(root, split, table, list(_names(root, split, sources[split], lines)))
    write_info(root, classes, infos, made, written)
    return lines


def _unswap(root: Path, shards: list[ShardInfo]) -> list[str]:
    """Give shards that carry each other's names their own back."""
    found = {info.file: file_sha256(root / info.file) for info in shards if (root / info.file).is_file()}
    wrong = {info.sha256: info.file for info in shards if found.get(info.file) != info.sha256}
    moves = {file: wrong[digest] for file, digest in found.items() if wrong.get(digest, file) != file}
    moves = {file: target for file, target in moves.items() if target in moves or target not in found}
    for file in moves:
        os.replace(root / file, root / f".{file}.moved")
    for file, target in moves.items():
        os.replace(root / f".{file}.moved", root / target)
    return [f"{target}: had the name {file}, renamed" for file, target in moves.items()]


def _trusted_table(root: Path, split: str, files: dict[str, str]) -> np.ndarray | None:
    path = root / table_file(split)
    with suppress(OSError, ValueError):
        if file_sha256(path) == files.get(path.name):  # so that it is as it was written
            table = np.lib.format.open_memmap(path, mode="r")
            if table.dtype == SAMPLE_DTYPE:
                return np.array(table)
    return None


def _names(root: Path, split: str, shards: list[RepairedShard], lines: list[str]) -> Iterator[str]:
    """Source names of the rows that are left; the tars' own names where the list does not fit the table."""
    path = root / sources_file(split)
    keep = np.concatenate([np.ones(len(m.rows), bool) if m.keep is None else m.keep for m in shards])
    try:
        with open(path, "rb") as stream:
            fits = sum(1 for _ in stream) == len(keep)
    except OSError:
        fits = False
    if not fits:
        lines.append(f"{path.name}: the original names are lost; it has the tars' own names now")
        for m in shards:
            yield from (f"{m.info.file}/{name}.jpg" for name in m.names if m.info)
        return
    with open(path, "rb") as stream:
        for kept, line in zip_longest(keep, stream):
            if kept:
                yield unescape(line.rstrip(b"\n").decode("utf-8", "surrogateescape"))


def _repair_foreign(root: Path, workers: int | None, classes: list[ClassInfo], made: dict[str, Any]) -> list[str]:
    """Index anew, as it was before, then take out what does not decode. The classes keep their names."""
    fields = Fields(str(made.get("image_field", "")), str(made.get("label_field", "")))
    lines = [f"{root}: indexed anew"]
    shard_set = index(root, on_bad="skip", fields=fields, workers=workers, say=lines.append)
    if rejected := shard_set.made["rejected"]:
        lines.append(f"{root}: {rejected:,} image(s) left out that do not train as they are, see {REJECTED_FILE}")
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
                encoded = encode(data, LENIENT)
                check_trains(data, encoded.height, encoded.width, compare=False)  # as the index did
            except BadImage as error:
                keep[i] = False
                lines.append(f"{split.where(i)}: taken out: {error}")
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
