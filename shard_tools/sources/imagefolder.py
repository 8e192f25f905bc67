"""Read a directory tree: SOURCE/SPLIT/CLASS/**/IMAGE, or SOURCE/CLASS/**/IMAGE as the only split "train".

`layout` determines which directories are splits and classes. Links are followed, except links below a class directory
to something that is read anyway: they would put an image into another class or split.
"""

import os
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from penstock.shard_tools.sources.base import Place, Source, SourceImage, Unusable
from penstock.shard_tools.sources.findlayout import find_layout, own_splits, spec, split_words, unclear
from penstock.shard_tools.sources.layout import LAYOUT, NONE, Layout, SplitDir, count_images, given_layout, visible
from penstock.shard_tools.sources.links import Links, broken
from penstock.shard_tools.sources.naming import EXTENSIONS, Ignored, few_of, is_image

MAX_SUBDIRS = 100  # number of subdirectories of a class to compare with other classes


@dataclass
class Fork:
    """The first place below a class directory that has several subdirectories, and their first names."""

    directory: str = ""
    names: list[str] = field(default_factory=list)


def recognise(path: Path) -> bool:
    return path.is_dir()


@dataclass
class ImageFolder(Source):
    """The `Source`. Raises ValueError if the tree contradicts itself, or can be read in several ways."""

    root: Path
    split_dirs: str = ""  # as `given_layout` reads it; "": by the directories' names
    format: str = "imagefolder"
    explained: str = field(init=False)
    ignored: Ignored = field(default_factory=Ignored)
    _notes: list[str] = field(default_factory=list)
    _links: Links | None = None

    def __post_init__(self) -> None:
        if not self.root.is_dir():
            raise ValueError(f"{self.root}: not a directory; give {LAYOUT}")
        self.explained = str(self._find_layout())

    def images(self, work: Path) -> Iterator[SourceImage | Unusable]:
        """Yield images by split, then sorted by directory and file names."""
        layout = self._find_layout()
        self.ignored, self._notes = Ignored(), []
        for name in layout.beside(self.root):
            before, _, key = name.rpartition("/")
            splits = [split.split for split in layout.splits if split.before.rstrip("/") == before]
            if (reason := broken(self.root / name)) and splits and not Path(name).suffix:  # a class, perhaps
                yield Unusable(splits[0], name, reason, key)
            else:
                self.ignored.append(f"{name} ({reason})" if reason else name)
        class_dirs = [path for split in layout.splits for path in layout.class_dirs(self.root, split).values()]
        self._links = Links(self.root, class_dirs)
        for split in layout.splits:
            yield from self._split(layout, split)

    def notes(self) -> list[str]:
        return [*self._notes, *(self._links.notes() if self._links else [])]

    def _find_layout(self) -> Layout:
        return given_layout(self.root, self.split_dirs) if self.split_dirs else find_layout(self.root)

    def _split(self, layout: Layout, split: SplitDir) -> Iterator[SourceImage | Unusable]:
        """Yield the images of one split."""
        root = str(self.root)
        empty: list[str] = []
        forks: dict[str, Fork] = {}
        found = False
        for key, directory in layout.class_dirs(self.root, split).items():
            forks[key], count = Fork(), 0
            for name, size in self._walk(directory, frozenset(), layout, forks[key]):
                if size is None:
                    self.ignored.append(name)
                    continue
                count += 1
                if isinstance(size, str):
                    yield Unusable(split.split, name, size, key)
                else:
                    yield SourceImage(split.split, key, name, size, Place("file", f"{root}/{name}"))
            found |= count > 0
            if not count:
                empty.append(directory)
        if not found:
            raise ValueError(
                f"{self.root / split.before}: no images ({', '.join(EXTENSIONS)}) in its class directories; "
                f"give {split.before}CLASS{split.after}/IMAGE"
            )
        if layout.given:
            self.ignored.extend(f"{path}/ (no images)" for path in empty)
            return
        if empty and split == layout.splits[0]:
            raise ValueError(
                f"{self.root}: no images, or only links to images of other classes, in {few_of(empty)}; add images, "
                f"remove the directory, or skip it with --split-dirs {shlex.quote(_as_read(layout)[0])}"
            )
        self._check_repeated(layout, forks)

    def _walk(
        self, directory: str, above: frozenset[str], layout: Layout, fork: Fork
    ) -> Iterator[tuple[str, int | str | None]]:
        """Yield (name, bytes) for every file below. Instead of bytes, None means that the file is not an image, and a
        text is the reason why it cannot be read. Fills `fork` if it is empty."""
        here = os.path.realpath(self.root / directory)
        if here in above:  # a link to a directory that contains it
            return
        entries = visible(self.root / directory)
        subdirs = [name for name, entry in entries.items() if not entry.is_symlink() and entry.is_dir()]
        if not layout.given and len(set(split_words(subdirs).values())) > 1:
            raise self._unclear_below(directory, subdirs, layout)
        if len(subdirs) > 1 and not fork.names:
            fork.directory, fork.names = directory, subdirs[:MAX_SUBDIRS]
        for name, entry in entries.items():
            path = f"{directory}/{name}"
            if reason := broken(entry):
                lost = is_image(name) or not Path(name).suffix  # a directory of images, perhaps
                yield (path, reason) if lost else (f"{path} ({reason})", None)
            elif entry.is_symlink() and self._links and (place := self._links.read_anyway(path)):
                yield f"{path} (a link to {place})", None
            elif entry.is_dir():
                yield from self._walk(path, above | {here}, layout, fork)
            else:
                yield path, entry.stat().st_size if is_image(name) and entry.is_file() else None

    def _unclear_below(self, directory: str, subdirs: list[str], layout: Layout) -> ValueError:
        """The error if directories below a class have the names of splits."""
        words = split_words(subdirs)
        readings = [_as_read(layout)]
        before, _, key = directory.rpartition("/")
        own = own_splits(self.root, f"{directory}/", words, f"{key} is a separate dataset, the others are skipped")
        if own:
            readings += own
        elif any(split.before.rstrip("/") == before for split in layout.splits) and len(set(words.values())) == len(
            words
        ):
            inner = [SplitDir(split, f"{before}/" if before else "", f"/{name}") for name, split in words.items()]
            readings.append((spec(inner), f"the splits are inside the class directories, {key} and others"))
        return unclear(self.root, f"{directory}/ has {few_of(list(words))}, which can be splits by name", *readings)

    def _check_repeated(self, layout: Layout, forks: dict[str, Fork]) -> None:
        """Raises `Unclear` if most classes have the same subdirectories. Those may be the actual classes, and their
        parents may be splits or separate datasets."""
        counts = Counter(name for fork in forks.values() for name in fork.names)
        repeated = [name for name, count in sorted(counts.items()) if count > max(1, len(forks) // 2)]
        if len(repeated) < 2:
            return
        places = [f"{fork.directory}/" for fork in forks.values() if not set(repeated).isdisjoint(fork.names)]
        places.sort(key=lambda place: ("train" not in place.lower(), -count_images(self.root / place)))
        if here := next((split.before for split in layout.splits if places[0].startswith(split.before or "/")), ""):
            alike = [split._replace(before=places[0].replace(here, split.before, 1)) for split in layout.splits]
            others = spec([split for split in alike if (self.root / split.before).is_dir()])
        else:
            others = spec([SplitDir(split, place) for split, place in zip(("train", "val"), places, strict=False)])
        raise unclear(
            self.root,
            f"{few_of(repeated)} repeat in {few_of(places)}",
            _as_read(layout),
            (others, f"or similar: {few_of(repeated)} are the classes"),
        )


def _as_read(layout: Layout) -> tuple[str, str]:
    """The value of `--split-dirs` that reads a tree as its names suggest, and what it means."""
    if layout.splits == [SplitDir("train", "")]:
        return NONE, "its directories are the classes, with everything below them"
    return spec(layout.splits), "the directories in these are the classes, with everything below them"
