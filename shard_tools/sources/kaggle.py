"""Read Kaggle's ImageNet (ILSVRC/Data/CLS-LOC) in place, from the unpacked directory or from the zip.

LOC_synset_mapping.txt has a line `WNID name, other names` per class. LOC_val_solution.csv has the columns
`ImageId,PredictionString`; the first word of PredictionString is the image's wnid. The test images have no labels.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from penstock.shard_tools.sources.base import Place, Source, SourceImage, Unusable, read_bytes
from penstock.shard_tools.sources.layout import visible
from penstock.shard_tools.sources.links import broken, is_dir
from penstock.shard_tools.sources.naming import Ignored, few_of, is_image
from penstock.shard_tools.sources.zipmembers import iterate_zip, place

IMAGES, MAPPING, SOLUTION = "ILSVRC/Data/CLS-LOC", "LOC_synset_mapping.txt", "LOC_val_solution.csv"
LAYOUT = f"a directory or .zip with {IMAGES}/train, {SOLUTION} and {MAPPING}"


class Entry(NamedTuple):
    """One file, by its path in the layout."""

    name: str
    size_bytes: int
    place: Place
    broken: str = ""  # why it cannot be read, from `links.broken`


def recognise(path: Path) -> bool:
    return ((path / IMAGES).is_dir() and not is_sorted(path)) or (path.is_file() and path.suffix == ".zip")


def is_sorted(path: Path) -> bool:
    """Whether the validation images were sorted into class directories, and no other file has their labels."""
    val = path / IMAGES / "val"
    return not (path / SOLUTION).is_file() and val.is_dir() and all(map(is_dir, visible(val).values()))


@dataclass
class Kaggle(Source):
    """The `Source`."""

    root: Path
    format: str = "kaggle"
    explained: str = field(init=False)
    _names: dict[str, str] = field(default_factory=dict)
    ignored: Ignored = field(default_factory=Ignored)

    def __post_init__(self) -> None:
        what = "zip, read in place" if self.root.is_file() else "directory"
        self.explained = (
            f"Kaggle's ImageNet {what}; {SOLUTION} gives the validation labels, test images have none and are skipped"
        )

    def images(self, work: Path) -> Iterator[SourceImage | Unusable]:
        """train/WNID/FILE, then val/FILE."""
        self.ignored = Ignored()
        if next(self._files(f"{IMAGES}/test/"), None):
            self.ignored.append(f"{IMAGES}/test/ (no labels)")
        self._names = self._mapping()
        yield from self._train()
        yield from self._val()

    def class_names(self) -> dict[str, str]:
        return self._names

    def _train(self) -> Iterator[SourceImage | Unusable]:
        seen: set[str] = set()
        for entry in self._files(f"{IMAGES}/train/"):
            wnid, _, file = entry.name.removeprefix(f"{IMAGES}/train/").rpartition("/")
            if not is_image(entry.name) or not wnid:
                self.ignored.append(entry.name)
                continue
            if wnid not in self._names:
                raise ValueError(
                    f"{self.root}: {entry.name}: class {wnid!r} is not in {MAPPING}; remove the image or add the class"
                )
            seen.add(wnid)
            yield _image("train", wnid, f"train/{wnid}/{file}", entry)
        if missing := sorted(set(self._names) - seen):
            raise ValueError(f"{self.root}: {IMAGES}/train has no images of class {few_of(missing)}; download it again")

    def _val(self) -> Iterator[SourceImage | Unusable]:
        wnid_of, found = self._solution(), False
        for entry in self._files(f"{IMAGES}/val/"):
            file = PurePosixPath(entry.name)
            if not is_image(entry.name):
                self.ignored.append(entry.name)
                continue
            if wnid := wnid_of.pop(file.stem, ""):
                found = True
                yield _image("val", wnid, f"val/{file.name}", entry)
            else:
                yield Unusable("val", f"val/{file.name}", f"has no line in {SOLUTION}")
        if not found:
            raise ValueError(
                f"{self.root}: {IMAGES}/val has none of the images in {SOLUTION}; download it again, or give "
                f"{self.root / IMAGES / 'train'} to pack without validation images"
            )
        for image, wnid in wnid_of.items():
            yield Unusable("val", f"val/{image}", f"is in {SOLUTION}, but there is no such file", wnid)

    def _mapping(self) -> dict[str, str]:
        """wnid → first of its names."""
        lines = self._text(MAPPING).splitlines()
        pairs = [line.strip().partition(" ")[::2] for line in lines if line.strip()]
        if len({wnid for wnid, _ in pairs}) < max(len(pairs), 1):
            raise ValueError(f"{self.root}: {MAPPING} is empty or has a class twice; download it again")
        return {wnid: names.partition(",")[0].strip() or wnid for wnid, names in pairs}

    def _solution(self) -> dict[str, str]:
        """Validation image → wnid."""
        wnid_of: dict[str, str] = {}
        for line in self._text(SOLUTION).splitlines():
            image, _, prediction = line.partition(",")
            wnid = prediction.partition(" ")[0]
            if not line or image == "ImageId":
                continue
            if wnid not in self._names or image in wnid_of:
                raise ValueError(
                    f"{self.root}: {SOLUTION} has the invalid line {line[:80]!r}; "
                    f"each image needs exactly one line, with a class from {MAPPING}"
                )
            wnid_of[image] = wnid
        return wnid_of

    def _text(self, name: str) -> str:
        entry = next(self._files(name), None)
        if entry is None:
            other = "; if this is another kind of zip, unzip it and give the directory" if self.root.is_file() else ""
            raise ValueError(f"{self.root}: has no {name}; put it there beside ILSVRC/{other}")
        try:
            return read_bytes(name, entry.place, entry.size_bytes).decode("utf-8-sig")
        except UnicodeDecodeError:
            raise ValueError(f"{self.root}: {name} is not UTF-8 text; download it again") from None

    def _files(self, prefix: str) -> Iterator[Entry]:
        """The files whose path starts with `prefix`."""
        if self.root.is_file():
            with open(self.root, "rb") as stream:
                for member in iterate_zip(self.root):
                    if member.name.startswith(prefix):
                        yield Entry(member.name, member.size_bytes, place(stream, self.root, member))
        elif prefix.endswith("/"):
            yield from self._below(prefix.rstrip("/"))
        elif (self.root / prefix).is_file():
            yield Entry(prefix, (self.root / prefix).stat().st_size, Place("file", str(self.root / prefix)))

    def _below(self, directory: str) -> Iterator[Entry]:
        if not (self.root / directory).is_dir():
            return
        for file, entry in visible(self.root / directory).items():
            name = f"{directory}/{file}"
            if is_dir(entry):
                yield from self._below(name)
            else:
                reason = broken(entry)
                yield Entry(name, 0 if reason else entry.stat().st_size, Place("file", entry.path), reason)


def _image(split: str, key: str, name: str, entry: Entry) -> SourceImage | Unusable:
    if entry.broken:
        return Unusable(split, name, entry.broken, key)
    return SourceImage(split, key, name, entry.size_bytes, entry.place)
