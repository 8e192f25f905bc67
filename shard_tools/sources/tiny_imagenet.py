"""Tiny-ImageNet as published: train/WNID/images/FILE, val/images/FILE with val/val_annotations.txt, words.txt.

val_annotations.txt: `FILE<tab>WNID<tab>box` a line. words.txt: `WNID<tab>names`, of far more classes than are used.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from shard_tools.sources.base import Place, Source, SourceImage
from shard_tools.sources.naming import Ignored, is_image, is_junk

ANNOTATIONS = "val/val_annotations.txt"
LAYOUT = f"a directory with train/WNID/images/IMAGE, {ANNOTATIONS}, val/images/IMAGE and words.txt"


def recognise(path: Path) -> bool:
    return (path / ANNOTATIONS).is_file()


@dataclass
class TinyImageNet(Source):
    """The `Source`."""

    root: Path
    format: str = "tiny-imagenet"
    explained: str = f"Tiny-ImageNet; {ANNOTATIONS} gives the validation labels, test images have none and are left out"
    _classes: set[str] = field(default_factory=set)
    _ignored: Ignored = field(default_factory=Ignored)

    def images(self, work: Path) -> Iterator[SourceImage]:
        """train/WNID/images/FILE, then val/images/FILE, by name."""
        self._ignored = Ignored(["test/ (no labels)"] if (self.root / "test").is_dir() else [])
        if not (self.root / "train").is_dir():
            raise ValueError(f"{self.root}: has no train directory; give {LAYOUT}")
        for wnid, is_directory, _ in _list(self.root / "train"):
            if not is_directory:
                self._ignored.append(f"train/{wnid}")
                continue
            self._classes.add(wnid)
            for name, size in self._files(f"train/{wnid}/images"):
                yield SourceImage("train", wnid, name, size, Place("file", str(self.root / name)))
        wnid_of = self._annotations()
        for name, size in self._files("val/images"):
            key = wnid_of.pop(os.path.basename(name), None)
            if key is None:
                raise ValueError(f"{self.root / name}: has no line in {ANNOTATIONS}; add one or remove the image")
            yield SourceImage("val", key, name, size, Place("file", str(self.root / name)))
        if wnid_of:
            raise ValueError(
                f"{self.root / ANNOTATIONS}: names {len(wnid_of)} images that val/images lacks, "
                f"first {min(wnid_of)!r}; get the data set again"
            )

    def class_names(self) -> dict[str, str]:
        """From words.txt, the first of a class's names."""
        names: dict[str, str] = {}
        if (self.root / "words.txt").is_file():
            with open(self.root / "words.txt", encoding="utf-8", errors="replace") as lines:
                for line in lines:
                    key, _, words = line.rstrip("\n").partition("\t")
                    if key in self._classes and words:
                        names[key] = words.partition(",")[0].strip()
        return names

    def ignored(self) -> list[str]:
        return self._ignored

    def _annotations(self) -> dict[str, str]:
        wnid_of: dict[str, str] = {}
        with open(self.root / ANNOTATIONS, encoding="utf-8", errors="replace") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                file, _, rest = line.rstrip("\n").partition("\t")
                key = rest.partition("\t")[0]
                if not key or file in wnid_of:
                    what = "has no class" if not key else f"names {file!r} again"
                    raise ValueError(f"{self.root / ANNOTATIONS}: line {number} {what}; get the data set again")
                wnid_of[file] = key
        return wnid_of

    def _files(self, directory: str) -> Iterator[tuple[str, int]]:
        """(name, bytes) of the images in one directory."""
        if not (self.root / directory).is_dir():
            raise ValueError(f"{self.root / directory}: no such directory; give {LAYOUT}")
        for name, is_directory, size in _list(self.root / directory):
            if is_directory or not is_image(name):
                self._ignored.append(f"{directory}/{name}")
            else:
                yield f"{directory}/{name}", size


def _list(directory: Path) -> list[tuple[str, bool, int]]:
    """(name, is a directory, bytes) of what is in a directory, sorted, without what is none of the data."""
    with os.scandir(directory) as entries:
        return sorted((e.name, e.is_dir(), e.stat().st_size) for e in entries if not is_junk(e.name))
