"""Read Tiny-ImageNet as published: train/WNID/images/FILE, val/images/FILE with val/val_annotations.txt, words.txt.

val_annotations.txt has lines of `FILE<tab>WNID<tab>box`. words.txt has lines of `WNID<tab>names`, for far more classes
than the dataset uses.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from penstock.shard_tools.sources.base import Source, SourceImage, Unusable
from penstock.shard_tools.sources.layout import visible
from penstock.shard_tools.sources.links import file_image, is_dir
from penstock.shard_tools.sources.naming import Ignored, is_image

ANNOTATIONS = "val/val_annotations.txt"
LAYOUT = f"a directory with train/WNID/images/IMAGE, {ANNOTATIONS}, val/images/IMAGE and words.txt"


def recognise(path: Path) -> bool:
    """Whether this is Tiny-ImageNet with unsorted validation images. Many scripts sort them into class directories."""
    images = path / "val/images"
    return (path / ANNOTATIONS).is_file() and images.is_dir() and any(map(is_image, visible(images)))


@dataclass
class TinyImageNet(Source):
    """The `Source`."""

    root: Path
    format: str = "tiny-imagenet"
    explained: str = f"Tiny-ImageNet; {ANNOTATIONS} gives the validation labels, test images have none and are skipped"
    _classes: set[str] = field(default_factory=set)
    ignored: Ignored = field(default_factory=Ignored)

    def images(self, work: Path) -> Iterator[SourceImage | Unusable]:
        """train/WNID/images/FILE, then val/images/FILE, by name."""
        self.ignored = Ignored(["test/ (no labels)"] if (self.root / "test").is_dir() else [])
        if not (self.root / "train").is_dir():
            raise ValueError(f"{self.root}: has no train directory; give {LAYOUT}")
        for wnid, entry in visible(self.root / "train").items():
            if not is_dir(entry):
                self.ignored.append(f"train/{wnid}")
                continue
            self._classes.add(wnid)
            for name, entry in self._files(f"train/{wnid}/images"):
                yield file_image("train", wnid, name, entry)
        wnid_of = self._annotations()
        for name, entry in self._files("val/images"):
            if key := wnid_of.pop(entry.name, ""):
                yield file_image("val", key, name, entry)
            else:
                yield Unusable("val", name, f"has no line in {ANNOTATIONS}")
        for file, key in wnid_of.items():
            yield Unusable("val", f"val/images/{file}", f"is in {ANNOTATIONS}, but there is no such file", key)

    def class_names(self) -> dict[str, str]:
        """The first name of each class in words.txt."""
        names: dict[str, str] = {}
        if (self.root / "words.txt").is_file():
            with open(self.root / "words.txt", encoding="utf-8", errors="replace") as lines:
                for line in lines:
                    key, _, words = line.rstrip("\n").partition("\t")
                    if key in self._classes and words:
                        names[key] = words.partition(",")[0].strip()
        return names

    def _annotations(self) -> dict[str, str]:
        wnid_of: dict[str, str] = {}
        with open(self.root / ANNOTATIONS, encoding="utf-8", errors="replace") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                file, _, rest = line.rstrip("\n").partition("\t")
                key = rest.partition("\t")[0]
                if not key or file in wnid_of:
                    what = "has no class" if not key else f"has {file!r} again"
                    raise ValueError(f"{self.root / ANNOTATIONS}: line {number} {what}; download the dataset again")
                wnid_of[file] = key
        return wnid_of

    def _files(self, directory: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
        """The images in one directory, by name."""
        if not (self.root / directory).is_dir():
            raise ValueError(f"{self.root / directory}: no such directory; give {LAYOUT}")
        for name, entry in visible(self.root / directory).items():
            if is_dir(entry) or not is_image(name):
                self.ignored.append(f"{directory}/{name}")
            else:
                yield f"{directory}/{name}", entry
