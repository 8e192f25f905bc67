"""List the images to pack: one pass over a `Source` → a directory of files that `records` describes and reads.

This decides which images are packed and what their labels are. Memory grows with the number of classes and containers,
not with the number of images.
"""

import hashlib
import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from penstock.shard_tools.classes import gap_lines, keys_with_file, met_lines, stranger
from penstock.shard_tools.records import CHUNK, JOINED, METHODS, PACKED, chunks
from penstock.shard_tools.rejected import NOTHING, Rejected, RejectedRows, refusal
from penstock.shard_tools.sources.base import Source, SourceImage, Unusable
from penstock.shard_tools.sources.naming import few_of, numbered_key, split_rank
from penstock.shard_tools.subset import SPLIT_NAME, Mask, Subset, choose
from penstock.shards.format import file_sha256

Labels = NDArray[np.int32]
REMEDY = "skip them with --on-bad skip, which lists all of them in OUT/rejected.tsv, or repair them"


@dataclass(frozen=True)
class Listing:
    """The result of `write_listing`. `num_images` and `size_bytes` (of the source's files) are given per split."""

    root: Path
    keys: tuple[str, ...]  # of the classes: a label is an index into this
    numbered: bool  # the source fixes the labels
    num_images: dict[str, int]
    size_bytes: dict[str, int]
    fingerprint: str  # of the images' names, labels and sizes, in order
    notes: tuple[str, ...] = ()  # messages for the user about the classes
    rejected: Rejected = field(default_factory=Rejected)  # the images in `unusable`

    @property
    def unusable(self) -> Path:
        return self.root / "unusable"

    def sizes(self, split: str) -> NDArray[np.uint32]:
        """(num_images,) bytes of each image, memory-mapped."""
        return np.memmap(self.root / f"{split}.sizes", np.uint32, "r")


@dataclass
class _Pass:
    """The state of the pass over the source. Its size grows with classes and containers, not with images."""

    keys: dict[str, int] = field(default_factory=dict)  # class key → number, as met
    files: dict[str, int] = field(default_factory=dict)
    num_images: dict[str, int] = field(default_factory=dict)  # of the source's splits
    per_class: dict[str, list[int]] = field(default_factory=dict)  # images of each number
    unusable: dict[str, Unusable] = field(default_factory=dict)  # the first of each split
    lost: set[str] = field(default_factory=set)  # class keys of unusable images
    rejected: Rejected = NOTHING
    name_at: int = 0


def write_listing(
    root: Path,
    source: Source,
    work: Path,
    subset: Subset,
    seed: int,
    where: str,
    progress: Callable[[int], None] = lambda listed: None,
    on_bad: str = "fail",
    class_file: Path | None = None,
) -> Listing:
    """List `source` into the new directory `root`. `work` is for the source; `where` names it in messages;
    `progress` is called with the number of images so far. `class_file` may add classes, see `keys_with_file`.

    Raises:
        BadImages: `on_bad` is "fail" and the source lists images that it cannot provide.
        ValueError: the source contradicts itself or lacks what `subset` requests. OSError: `root` cannot be written.
    """
    shutil.rmtree(root, ignore_errors=True)  # of a killed run
    root.mkdir(parents=True)
    asked = subset.only_classes
    found = _Pass()
    _meet(root, _readable(source, work, where), {form for key in asked for form in _forms(key)}, where, progress, found)
    _check_usable(found, on_bad, where)
    splits = sorted(found.num_images, key=split_rank)
    fixed = source.fixed_classes()
    keys = _classes(found, splits, asked, where, keys_with_file(fixed, class_file) if fixed else None)
    notes = _notes(found, splits, asked, keys) if fixed else list(met_lines(keys, found.lost))
    if subset.fractions and splits != ["train"]:
        raise ValueError(f"{where}: already has the splits {', '.join(splits)}; omit --split")
    here = Path.cwd()  # workers may have another working directory
    (root / "files.json").write_text(json.dumps([file and os.path.join(here, file) for file in found.files]))
    digest = hashlib.sha256(bytes.fromhex(file_sha256(root / "names")))
    num_images, size_bytes = _write_splits(root, splits, subset, seed, _new_labels(found, keys), where, digest)
    digest.update("\0".join(keys).encode())
    if found.rejected.count:
        digest.update(bytes.fromhex(file_sha256(root / "unusable")))
    fingerprint = digest.hexdigest()
    return Listing(root, tuple(keys), bool(fixed), num_images, size_bytes, fingerprint, tuple(notes), found.rejected)


def _meet(
    root: Path,
    images: Iterator[SourceImage | Unusable],
    only_classes: set[str],
    where: str,
    progress: Callable[[int], None],
    found: _Pass,
) -> None:
    """Run the pass: write SPLIT.met with the records of each split, names and unusable, and fill `found`."""
    with open(root / "names", "wb", 1 << 20) as names, open(root / "unusable", "wb") as table, ExitStack() as stack:
        rejected = RejectedRows(table)
        streams: dict[str, BinaryIO] = {}
        for number, image in enumerate(images):
            if number % CHUNK == 0:
                progress(number)
            if only_classes and image.key and image.key not in only_classes:
                continue
            if isinstance(image, Unusable):
                found.unusable.setdefault(image.split, image)
                found.lost |= {image.key} - {""}
                rejected.add(image.name, image.reason)
                continue
            if image.split not in streams:
                _check_split(image.split, where)
                streams[image.split] = stack.enter_context(open(root / f"{image.split}.met", "wb", 1 << 20))
                found.num_images[image.split], found.per_class[image.split] = 0, []
            streams[image.split].write(_record(image, found, names))
    found.rejected = rejected.rejected()


def _readable(source: Source, work: Path, where: str) -> Iterator[SourceImage | Unusable]:
    """Yield the source's images; turn an OSError into a ValueError, so that it is not mistaken for a write error."""
    try:
        yield from source.images(work)
    except OSError as error:
        raise ValueError(
            f"{error.filename or where}: cannot be listed ({error.strerror}); make it readable and pack again"
        ) from None


def _record(image: SourceImage, found: _Pass, names: BinaryIO) -> bytes:
    split, key, name, size, (method, file, offset, stored) = image
    number = found.keys.setdefault(key, len(found.keys))
    found.num_images[split] += 1
    per_class = found.per_class[split]
    if number >= len(per_class):
        per_class.extend(itertools.repeat(0, number + 1 - len(per_class)))
    per_class[number] += 1
    raw_name = os.fsencode(name)
    code = METHODS.index(method)
    if method == "file" and file.endswith(name):
        code, file = JOINED, file[: -len(name)]
        if not file and not name.startswith("/"):
            file = "./"
    file_number = found.files.get(file)
    if file_number is None:
        file_number = found.files[file] = len(found.files)
    names.write(raw_name)
    record = PACKED.pack(file_number, code, number, offset, stored, size, found.name_at, len(raw_name))
    found.name_at += len(raw_name)
    return record


def _check_split(split: str, where: str) -> None:
    if not SPLIT_NAME.fullmatch(split):
        raise ValueError(
            f"{where}: the split name {split!r} cannot be part of a file name; use only letters, digits, - and _"
        )


def _check_usable(found: _Pass, on_bad: str, where: str) -> None:
    """Raises BadImages if `on_bad` is "fail", and ValueError if a split has no usable image."""
    if found.rejected.count and on_bad == "fail":
        total = found.rejected.count + sum(found.num_images.values())
        raise refusal(f"{where}: {found.rejected.count} of {total} image(s)", found.rejected, "", REMEDY)
    for split, (_, name, reason, _) in found.unusable.items():
        if split and split not in found.num_images:
            raise ValueError(f"{where}: none of the images of {split} can be used (first {name!r}: {reason})")


def _forms(key: str) -> set[str]:
    """The class keys that an entry of `--only-classes` can mean: 10 also means 000010."""
    return {key, numbered_key(int(key))} if re.fullmatch("[0-9]{1,6}", key) else {key}


def _classes(found: _Pass, splits: list[str], asked: frozenset[str], where: str, fixed: list[str] | None) -> list[str]:
    """The class keys by label: those of `fixed`, or the sorted keys of the first split. In the second case, no other
    split may have further classes. asked: the keys in `--only-classes`, to choose from them."""
    unknown = sorted(key for key in asked if _forms(key).isdisjoint(found.keys) and _forms(key).isdisjoint(fixed or []))
    if unknown:
        raise ValueError(f"{where}: has no class {few_of(unknown)}; correct --only-classes")
    if not splits:
        raise ValueError(f"{where}: has no images")
    if fixed is None:
        keys = _met(found, splits, where)
    else:
        chosen = {form for key in asked for form in _forms(key)}
        keys = [key for key in fixed if not asked or key in chosen]
        assert set(found.keys) <= set(keys), "a source has images of classes that it does not fix"
    for key in keys:
        try:
            key.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{where}: the class name {key!r} is not UTF-8; rename it") from None
    return keys


def _met(found: _Pass, splits: list[str], where: str) -> list[str]:
    members = {
        split: {key for key, n in found.keys.items() if any(found.per_class[split][n : n + 1])} for split in splits
    }
    first = splits[0]
    for split in splits[1:]:
        if members[split] - members[first]:
            raise ValueError(f"{where}: {stranger(split, members[split], first, members[first])}")
    return sorted(members[first])


def _notes(found: _Pass, splits: list[str], asked: frozenset[str], keys: list[str]) -> list[str]:
    """Messages about labels that `--only-classes` changed, and about classes without images."""
    notes = []
    if asked:
        notes.append(f"--only-classes: labels are renumbered 0 … {len(keys) - 1} ({few_of(keys)})")
    num_images = {}
    for split in splits:
        by_number = dict(zip(found.keys, found.per_class[split], strict=False))
        num_images[split] = np.array([by_number.get(key, 0) for key in keys])
    return [*notes, *gap_lines(keys, num_images)]


def _new_labels(found: _Pass, keys: list[str]) -> Labels:
    """Map the number of a class key, in the order of the source, to its label; -1 for keys that are not packed."""
    place = {key: label for label, key in enumerate(keys)}
    return np.array([place.get(key, -1) for key in found.keys], np.int32)


def _labels(path: Path, new_label: Labels) -> Labels:
    """(num_images,): the only array as long as a split. It is needed only if `subset` chooses images."""
    return np.concatenate([new_label[records["label"]] for records in chunks(path)])


def _write_splits(
    root: Path, splits: list[str], subset: Subset, seed: int, new_label: Labels, where: str, digest: "hashlib._Hash"
) -> tuple[dict[str, int], dict[str, int]]:
    """Write the records of all splits: the source's splits, or those that `subset` makes of them. Returns the number of
    images and the bytes of each split."""
    num_images: dict[str, int] = {}
    size_bytes: dict[str, int] = {}
    for split in splits:
        chosen: dict[str, Mask | None] = {split: None}
        if subset.fractions or subset.per_class or subset.limit:
            chosen = {**choose(subset, split, _labels(root / f"{split}.met", new_label), seed)}
        for name, mask in chosen.items():
            num_images[name], size_bytes[name] = _write_split(root, split, name, mask, new_label, digest)
            if not num_images[name]:
                raise ValueError(
                    f"{where}: no image is left for the split {name}; choose larger fractions or more classes"
                )
        (root / f"{split}.met").unlink()
    return num_images, size_bytes


def _write_split(
    root: Path, met: str, name: str, chosen: Mask | None, new_label: Labels, digest: "hashlib._Hash"
) -> tuple[int, int]:
    """Write the chosen records of the source's split `met` as split `name`; returns the numbers of images and bytes."""
    count = size = start = 0
    digest.update(f"\0{name}\0".encode())
    with open(root / f"{name}.records", "wb") as records_file, open(root / f"{name}.sizes", "wb") as sizes_file:
        for records in chunks(root / f"{met}.met"):
            start += len(records)
            if chosen is not None:
                records = records[chosen[start - len(records) : start]]
            records["label"] = new_label[records["label"]]
            records.tofile(records_file)
            records["size"].clip(max=(1 << 32) - 1).astype("<u4").tofile(sizes_file)
            for column in ("label", "size", "name_bytes"):
                digest.update(records[column].tobytes())
            if chosen is not None:
                digest.update(records["name"].tobytes())
            count += len(records)
            size += int(records["size"].sum())
    return count, size
