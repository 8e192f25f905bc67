"""Check a dataset and return findings, one line each. No findings means that every byte is unchanged since writing.

Shards that `index` prepared in place may contain images of other formats, and samples that are not in the table. Shards
that `pack` wrote may not. `repair` repairs what it can.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from penstock.shard_tools.encode import BadImage
from penstock.shard_tools.shard import WORK_DIR
from penstock.shard_tools.sources.naming import Ignored
from penstock.shard_tools.sources.tarsamples import Fields, image_of, iterate_samples, read_label
from penstock.shard_tools.tarindex import Member, read_index
from penstock.shard_tools.trainable import check_stored, unlike_packed
from penstock.shard_tools.workers import LOST, process_pool
from penstock.shards.format import INFO_FILE, Samples, ShardInfo, ShardSet, file_sha256, index_path, inside
from penstock.shards.ppm import EXTENSION

PACKED_MEMBERS = (["cls", "jpg"], ["cls", EXTENSION])
MAX_FINDINGS_PER_SHARD = 5  # for each kind of finding, because a shifted table is wrong in every row


class Finding(NamedTuple):
    """One problem. `sample` is the sample's id in its split, if the problem concerns a single sample."""

    kind: str
    file: str
    sample: int | None
    message: str

    def __str__(self) -> str:
        return f"{self.file}: {self.message}"


@dataclass(frozen=True)
class ShardCheck:
    """Everything needed to check one shard, in any process. rows: its part of the sample table, from row `first` on."""

    path: Path
    info: ShardInfo
    first: int
    rows: Samples
    classes: tuple[str, ...]
    foreign: bool
    fields: Fields  # of foreign shards
    decode: bool
    others: dict[str, str]  # sha256 → the shard that should have it


def verify(
    root: str | os.PathLike[str],
    decode: bool = False,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, shards: None,
) -> list[Finding]:
    """Find all problems of the dataset at `root`; with `decode`, also every image that training cannot use as it is.

    Reads every shard once, in `workers` processes, each with one shard's index in memory. A dataset or file that cannot
    be opened is a finding, too: a broken dataset raises no exception.

    Raises:
        ValueError: its shards are at a URL.
    """
    root = Path(root)
    try:
        shard_set = ShardSet.open(root)
    except ValueError as error:
        file, _, message = str(error).removeprefix(f"{root}/").partition(": ")
        return [Finding("dataset", file, None, message)]
    shard_set.check_on_disk()
    findings = list(_description(shard_set))
    checks = list(_checks(shard_set, decode))
    workers = min(workers, len(checks))
    pool: AbstractContextManager[Executor | None] = process_pool(workers) if workers > 1 else nullcontext()
    try:
        with pool as executor:
            for done, found in enumerate((executor.map if executor else map)(check_shard, checks), 1):
                findings += found
                progress(done, len(checks))
    except LOST:
        findings.append(Finding("dataset", root.name, None, "a worker process died; try again with fewer --workers"))
    known = {INFO_FILE, *(name for check in checks for name in (check.info.file, index_path(check.path).name))}
    unused = shard_set.made.get("indexed", False)  # no table lists a shard that has no usable image
    for path in sorted(root.iterdir()):
        if path.suffix in (".tar", ".idx") and path.name not in known and not unused:
            findings.append(Finding("extra", path.name, None, f"is not listed in {INFO_FILE}"))
    if (root / WORK_DIR).exists():
        message = "left by an interrupted run; the next pack into this directory removes it"
        findings.append(Finding("leftover", WORK_DIR, None, message))
    return findings


def _description(shard_set: ShardSet) -> Iterator[Finding]:
    """Check `dataset.json`, and the hashes of the files that it lists."""
    if not shard_set.intact:
        yield Finding("dataset", INFO_FILE, None, "was edited since it was written (checksum differs)")
    keys = [info.wnid for info in shard_set.classes]
    if len(keys) != len(set(keys)):
        yield Finding("dataset", INFO_FILE, None, "classes are not unique")
    for name, digest in shard_set.files.items():
        try:
            if file_sha256(inside(shard_set.root, name)) != digest:
                yield Finding("file", name, None, "changed since it was written (sha256 differs)")
        except ValueError as error:
            yield Finding("file", name, None, str(error))
        except OSError as error:
            yield Finding("file", name, None, f"cannot be read ({error.strerror})")
    for split in shard_set.splits.values():
        if (np.diff(split.samples["shard"].astype(np.int64)) < 0).any():
            yield Finding("table", split.name, None, "the sample table is not in shard order")


def _checks(shard_set: ShardSet, decode: bool) -> Iterator[ShardCheck]:
    classes = tuple(info.wnid for info in shard_set.classes)
    others = {info.sha256: info.file for split in shard_set.splits.values() for info in split.shards}
    foreign = bool(shard_set.made.get("indexed"))
    fields = Fields(str(shard_set.made.get("image_field", "")), str(shard_set.made.get("label_field", "")))
    for split in shard_set.splits.values():
        starts = np.searchsorted(split.samples["shard"], np.arange(len(split.shards) + 1))
        for shard, info in enumerate(split.shards):
            first, stop = int(starts[shard]), int(starts[shard + 1])
            rows = np.array(split.samples[first:stop])
            yield ShardCheck(split.shard_path(shard), info, first, rows, classes, foreign, fields, decode, others)


def check_shard(check: ShardCheck) -> list[Finding]:
    """Check one shard: its bytes, its index, and its samples against the table."""
    info, path = check.info, check.path

    def finding(kind: str, message: str, file: str = info.file) -> Finding:
        return Finding(kind, file, None, message)

    found = []
    if len(check.rows) != info.samples:
        message = f"the sample table lists {len(check.rows)} samples for it, {INFO_FILE} says {info.samples}"
        found.append(finding("table", message))
    try:
        size, digest = path.stat().st_size, file_sha256(path)
    except OSError as error:
        return [*found, finding("missing", f"cannot be read ({error.strerror})")]
    if size != info.bytes:
        found.append(finding("size", f"has {size} bytes, {INFO_FILE} says {info.bytes}"))
    if digest != info.sha256:
        other = f"; this is the content of {check.others[digest]}" if digest in check.others else ""
        found.append(finding("hash", f"sha256 is {digest[:12]}…, {INFO_FILE} says {info.sha256[:12]}…{other}"))
    try:
        samples = list(iterate_samples(path, Ignored()))
    except (ValueError, OSError) as error:
        return [*found, finding("tar", str(error).removeprefix(f"{path}: "))]
    found += _at_most(_table(check, samples))
    name = index_path(path).name
    try:
        index = read_index(inside(path.parent, name))
    except (OSError, ValueError) as error:
        return [*found, finding("index", str(getattr(error, "strerror", None) or error), name)]
    if index != samples:
        at = next((i for i, (a, b) in enumerate(zip(index, samples, strict=False)) if a != b), None)
        counts = f"has {len(index)} samples, but {info.file} has {len(samples)}"
        found.append(finding("index", counts if at is None else f"line {at + 2} does not match {info.file}", name))
    return found


def _table(check: ShardCheck, samples: list[list[Member]]) -> Iterator[Finding]:
    """Compare the table's rows with the tar's members."""
    file = check.info.file
    row_at = {int(offset): i for i, offset in enumerate(check.rows["offset"])}
    with open(check.path, "rb") as stream:
        for members in samples:
            extensions = [member.extension for member in members]
            try:
                is_sample = check.foreign or sorted(extensions) in PACKED_MEMBERS
                image = image_of(members, check.path, check.fields) if is_sample else None
            except ValueError as error:
                yield Finding("table", file, None, str(error).removeprefix(f"{check.path}: "))
                continue
            i = row_at.pop(image.offset, None) if image is not None else None
            if image is None or i is None:
                if not check.foreign:
                    what = "is not in the sample table" if image is not None else f"has members {', '.join(extensions)}"
                    yield Finding("table", file, None, f"the sample of {members[0].name} {what}")
                continue
            row, sample = check.rows[i], check.first + i
            for kind, message in _sample(check, members, image, row, stream):
                yield Finding(kind, file, sample, f"sample {sample} ({image.name}): {message}")
    for offset, i in row_at.items():
        message = f"the table puts sample {check.first + i} at byte {offset}, but no image begins there"
        yield Finding("table", file, check.first + i, message)


def _sample(
    check: ShardCheck, members: list[Member], image: Member, row: np.void, stream: BinaryIO
) -> Iterator[tuple[str, str]]:
    if image.size != row["size"]:
        yield "table", f"has {image.size} bytes, the table says {row['size']}"
    try:
        label, _ = read_label(members, stream, check.path, check.fields)
        if label not in (row["label"], check.classes[row["label"]]):
            yield "label", f"its .cls is {label!r}, the table says {row['label']}"
    except ValueError as error:
        yield "label", str(error).removeprefix(f"{check.path}: ")
    if not check.decode:
        return
    stream.seek(image.offset)
    data = stream.read(image.size)
    try:
        encoded = check_stored(data)
    except BadImage as error:
        yield "decode", str(error)
        return
    if not check.foreign and (complaint := unlike_packed(data, encoded)):
        yield "decode", complaint
    if (encoded.height, encoded.width) != (row["height"], row["width"]):
        size = f"{row['height']}×{row['width']}"
        yield "table", f"is {encoded.height}×{encoded.width} pixels, the table says {size}"


def _at_most(findings: Iterator[Finding]) -> Iterator[Finding]:
    """Yield the first few findings of each kind, then the number of further ones."""
    counts: dict[str, int] = {}
    last = None
    for last in findings:
        counts[last.kind] = counts.get(last.kind, 0) + 1
        if counts[last.kind] <= MAX_FINDINGS_PER_SHARD:
            yield last
    for kind, count in counts.items():
        if last is not None and count > MAX_FINDINGS_PER_SHARD:
            yield Finding(kind, last.file, None, f"… {count - MAX_FINDINGS_PER_SHARD} more such findings in this shard")
