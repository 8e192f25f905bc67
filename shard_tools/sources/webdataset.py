"""WebDataset tars made by others: `*.tar` in a directory, or one directory below (`train/*.tar`).

A sample is a run of members that share a key: the path up to the first dot of the file name. It holds one image, whose
extension ends in jpg, jpeg, png, webp or bmp, and a label: a `.cls` with a number or a class's name as text, or else a
`.json` object with "label" or "cls". The order of the members does not matter. The split is told by the tar's name
(`naming.split_of`). Names of numbered classes: line i of a `classnames.txt` or `classes.txt` beside the tars, or, for
shards that `pack` made, dataset.json.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from shard_tools.format import INFO_FILE, ShardSet
from shard_tools.sources.base import Place, Source, SourceImage
from shard_tools.sources.naming import (
    EXTENSIONS,
    SPLIT_WORDS,
    Ignored,
    numbered_classes,
    numbered_key,
    split_of,
    split_rank,
)
from shard_tools.sources.tarmembers import iterate_tar
from shard_tools.tarindex import Member

LAYOUT = "a directory with WebDataset .tar files, or with train/ and val/ of them"
CLASS_FILES = ("classnames.txt", "classes.txt")
MAX_LABEL_BYTES = 1 << 20


def tars(root: Path) -> dict[str, list[Path]]:
    """Split → its tars by name."""
    paths = [path for folder in _folders(root) for path in folder.glob("*.tar") if not path.name.startswith(".")]
    splits: dict[str, list[Path]] = {}
    for path in sorted(paths):
        splits.setdefault(split_of(path.relative_to(root).as_posix().removesuffix(".tar")), []).append(path)
    return dict(sorted(splits.items(), key=lambda item: split_rank(item[0])))


def recognise(path: Path) -> bool:
    return any(any(folder.glob("*.tar")) for folder in _folders(path))


def _folders(root: Path) -> list[Path]:
    return [root, *(root / word for word in SPLIT_WORDS)]


def iterate_samples(path: Path, ignored: Ignored) -> Iterator[list[Member]]:
    """The members of each sample, grouped as webdataset and DALI's wds2idx do. Raises what `iterate_tar` does."""
    sample: list[Member] = []
    last = None
    for info in iterate_tar(path):
        directory, slash, file = info.name.rpartition("/")
        stem, dot, extension = file.partition(".")
        if not stem or not dot or not info.isreg():
            ignored.append(f"{path.name}/{info.name}")
            continue
        key = directory + slash + stem
        if key != last and sample:
            yield sample
            sample = []
        last = key
        sample.append(Member(extension, info.offset_data, info.size, info.name))
    if sample:
        yield sample


def image_of(sample: list[Member], path: Path) -> Member | None:
    """The image among the members, None if there is none. Raises ValueError if there are several."""
    images = [member for member in sample if f".{member.extension.lower()}".endswith(EXTENSIONS)]
    if len(images) > 1:
        names = " and ".join(member.name for member in images[:2])
        raise ValueError(f"{path}: {names} are images of one sample; pack needs one image a sample")
    return images[0] if images else None


def label_of(sample: list[Member], stream: BinaryIO, path: Path) -> int | str:
    """The label: a number, or a class as text. Raises ValueError if there is none."""
    members = {member.extension.lower(): member for member in sample}
    value: object = None
    if member := members.get("cls") or members.get("json"):
        stream.seek(member.offset)
        text = stream.read(min(member.size, MAX_LABEL_BYTES)).decode("utf-8", "replace").strip()
        value = text
        if member is not members.get("cls"):
            try:
                found = json.loads(text)
            except (ValueError, RecursionError):
                found = None
            value = found.get("label", found.get("cls")) if isinstance(found, dict) else None
    if isinstance(value, str) and re.fullmatch(r"-?\d+", value):
        value = int(value)
    negative = isinstance(value, int) and value < 0
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "" or negative:
        has = ", ".join(member.extension for member in sample)
        raise ValueError(
            f"{path}: sample {sample[0].name} has no label (members {has}); it needs a .cls with a class, "
            'or a .json with "label", a number from 0 or a name'
        )
    return value


def names_beside(root: Path) -> dict[str, str]:
    """Class key → readable name from a class file beside the tars: the i-th belongs to label i. Empty without one."""
    for name in CLASS_FILES:
        if (root / name).is_file():
            text = (root / name).read_text(encoding="utf-8", errors="replace")
            return numbered_classes([line.strip() for line in text.splitlines() if line.strip()])
    return {}


@dataclass
class WebDataset(Source):
    """The `Source`."""

    root: Path
    format: str = "webdataset"
    explained: str = field(init=False)
    _names: dict[str, str] = field(default_factory=dict)
    _ignored: Ignored = field(default_factory=Ignored)

    def __post_init__(self) -> None:
        splits = ", ".join(f"{split} ({len(paths)})" for split, paths in tars(self.root).items())
        self.explained = f"WebDataset tars, read in place; splits by the tars' names: {splits}"

    def images(self, work: Path) -> Iterator[SourceImage]:
        """By split, tar and position."""
        self._ignored = Ignored()
        self._names = names_beside(self.root)
        if not self._names and (self.root / INFO_FILE).is_file():
            self._names = {info.wnid: info.name for info in ShardSet.open(self.root).classes}
        keys = list(self._names)
        kinds: dict[type, str] = {}
        for split, paths in tars(self.root).items():
            for path in paths:
                with open(path, "rb") as stream:
                    for sample in iterate_samples(path, self._ignored):
                        image = image_of(sample, path)
                        name = f"{path.relative_to(self.root).as_posix()}/{(image or sample[0]).name}"
                        if image is None:
                            self._ignored.append(name)
                            continue
                        label = label_of(sample, stream, path)
                        check_label(label, kinds, f"{self.root}/{name}", keys)
                        key = (keys[label] if keys else numbered_key(label)) if isinstance(label, int) else label
                        place = Place("stored", str(path), image.offset, image.size)
                        yield SourceImage(split, key, name, image.size, place)

    def class_names(self) -> dict[str, str]:
        return self._names

    def ignored(self) -> list[str]:
        return self._ignored


def check_label(label: int | str, kinds: dict[type, str], name: str, keys: list[str]) -> None:
    """Labels are all numbers or all text; with names given, each number has one. `kinds`: type → first with it."""
    kinds.setdefault(type(label), name)
    if len(kinds) > 1:
        raise ValueError(
            f"{kinds[int]} has a number as its label and {kinds[str]} a text; make them all one or the other"
        )
    if isinstance(label, int) and keys and label >= len(keys):
        raise ValueError(f"{name}: label {label} is beyond the {len(keys)} classes named beside the tars; add its name")
