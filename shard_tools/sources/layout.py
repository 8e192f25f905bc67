"""How to read a directory tree: which directories are splits and which are classes.

`--split-dirs` specifies it; otherwise `findlayout` detects it.
"""

import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from penstock.shard_tools.sources.links import broken, is_dir
from penstock.shard_tools.sources.naming import few_of, is_image, is_junk, is_nameless, split_rank

LAYOUT = "a directory with train/CLASS/IMAGE and val/CLASS/IMAGE, or CLASS/IMAGE"
NONE = "none"  # --split-dirs none: every directory is a class
CLASS = "*"  # in --split-dirs: the position of the class directories, if not at the end
FORM = f'write "train=DIRECTORY,val=DIRECTORY", or {NONE} if every directory is a class'


class SplitDir(NamedTuple):
    """A split's class directories are `before`CLASS`after`, relative to the root: "train/" and "", "" and "/train"."""

    split: str
    before: str
    after: str = ""

    def spec(self) -> str:
        """The split in the form that `--split-dirs` accepts."""
        place = f"{self.before}{CLASS}{self.after}" if self.after else self.before.rstrip("/") or "."
        return f"{self.split}={place}"


@dataclass(frozen=True)
class Layout:
    """How to read a tree.

    splits: train first. inside: the enclosing directory, such as "a/b/". unlabelled: the directory of a test split
    without classes, which is skipped. given: the user specified the layout, so it is not questioned.
    """

    splits: list[SplitDir]
    inside: str = ""
    unlabelled: str = ""
    given: bool = False

    def __str__(self) -> str:
        dirs = []
        for split, before, after in self.splits:
            usual = before == f"{self.inside}{split}/" or (split == "train" and before == self.inside)
            shown = f"{before.removeprefix(self.inside)}CLASS{after}/IMAGE"
            dirs.append(shown if usual and not after else f"{shown} as {split}")
        inside = f", inside {self.inside}" if self.inside else ""
        left = f"; {self.unlabelled} has no class directories and is skipped" if self.unlabelled else ""
        return f"a directory tree: {', '.join(dirs)}{inside}{left}"

    def class_dirs(self, root: Path, split: SplitDir) -> dict[str, str]:
        """Class key → its directory relative to the root, with or without images."""
        found = {}
        for key, entry in visible(root / split.before).items():
            path = f"{split.before}{key}"
            if is_dir(entry) and not self._leads_to_a_split(path) and (root / f"{path}{split.after}").is_dir():
                found[key] = f"{path}{split.after}"
        return found

    def beside(self, root: Path, directory: str = "") -> Iterator[str]:
        """Yield what is skipped, relative to the root: files and directories that do not lead to a class."""
        here = [split for split in self.splits if split.before == directory]
        for name, entry in visible(root / directory).items():
            path = f"{directory}{name}"
            if not is_dir(entry):
                yield path
            elif f"{path}/" == self.unlabelled:
                yield described(root, path).removesuffix(")") + ", no labels)"
            elif self._leads_to_a_split(path):
                yield from self.beside(root, f"{path}/")
            elif not here:
                yield described(root, path)
            elif all(split.after for split in here):
                used = {split.after.split("/")[1] for split in here}
                yield from (described(root, f"{path}/{inner}") for inner in visible(root / path) if inner not in used)

    def _leads_to_a_split(self, path: str) -> bool:
        return any(way.startswith(f"{path}/") for way in (*(split.before for split in self.splits), self.unlabelled))


@dataclass(frozen=True)
class Level:
    """The content of a directory: its subdirectories with images (`dirs`) and without (`empty`), and its own images."""

    dirs: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)

    @property
    def is_container(self) -> bool:
        """Whether nearly all of its images are in subdirectories, so that those may be the classes."""
        return len(self.dirs) > 0 and len(self.images) <= len(self.dirs)


def look(directory: Path) -> Level:
    level, here = Level(), os.path.realpath(directory)
    for name, entry in visible(directory).items():
        if entry.is_symlink() and f"{here}/".startswith(f"{os.path.realpath(entry.path)}/"):
            continue  # the link leads to a directory that contains this one
        if is_dir(entry):
            (level.dirs if holds_images(entry.path) else level.empty).append(name)
        elif is_image(name):
            level.images.append(name)
        elif broken(entry):
            level.empty.append(name)
    return level


def is_classless(directory: Path, classes: Collection[str]) -> bool:
    """Whether the images of a split lie directly in its directory, or in its only subdirectory, if that has no class
    name and is not one of `classes`."""
    level = look(directory)
    if len(level.dirs) == 1 and level.dirs[0] not in classes and is_nameless(level.dirs[0]):
        return not look(directory / level.dirs[0]).dirs
    return not level.dirs and bool(level.images)


def visible(directory: str | Path) -> dict[str, os.DirEntry[str]]:
    """The entries of a directory by name, sorted, without junk."""
    with os.scandir(directory) as entries:
        return {entry.name: entry for entry in sorted(entries, key=lambda e: e.name) if not is_junk(entry.name)}


def holds_images(directory: str | Path) -> bool:
    """Whether there is an image anywhere below; stops at the first."""
    return next(_images(directory, frozenset()), None) is not None


def described(root: Path, path: str) -> str:
    """The path of a file or directory for messages; for a directory, with its number of images."""
    if not (root / path).is_dir():
        return path
    count = count_images(root / path)
    return f"{path}/ ({image_count(count)})" if count else f"{path}/"


def image_count(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def count_images(directory: Path) -> int:
    """The number of images anywhere below."""
    return sum(1 for _ in _images(directory, frozenset()))


def _images(directory: str | Path, above: frozenset[str]) -> Iterator[str]:
    here = os.path.realpath(directory)
    if here in above:  # a link to a directory that contains it
        return
    dirs = []
    with os.scandir(directory) as entries:
        for entry in entries:
            if is_junk(entry.name):
                continue
            if is_dir(entry):
                dirs.append(entry.path)
            elif is_image(entry.name):
                yield entry.path
    for path in dirs:
        yield from _images(path, above | {here})


def given_layout(root: Path, text: str) -> Layout:
    """Parse `--split-dirs`: `none`, or SPLIT=DIRECTORY,…. A directory is relative to the root. It contains the class
    directories; `*` marks another position for them.

    Raises:
        ValueError: the text is malformed, or names a directory that does not exist.
    """
    if text.strip().lower() == NONE:
        return Layout([SplitDir("train", "")], given=True)
    splits = [_split_dir(root, item.strip()) for item in re.split(r",(?=\s*[\w-]+\s*=)", text)]
    if twice := sorted({a.split for i, a in enumerate(splits) for b in splits[:i] if a.split == b.split}):
        raise ValueError(f"--split-dirs {text!r}: has {few_of(twice)} twice; give one directory per split")
    train = next((look(root / s.before).dirs for s in splits if s.split == "train" and not s.after), [])
    tests = [s.before for s in splits if s.split == "test" and len(splits) > 1 and s.before and not s.after]
    unlabelled = next((before for before in tests if is_classless(root / before, train)), "")
    splits = sorted((s for s in splits if not unlabelled or s.before != unlabelled), key=lambda s: split_rank(s.split))
    layout = Layout(splits, unlabelled=unlabelled, given=True)
    owner: dict[str, str] = {}
    for split in splits:
        for path in layout.class_dirs(root, split).values():
            owner.setdefault(path, split.split)
            for inside in (path, *map(str, PurePosixPath(path).parents)):
                if owner.get(inside, split.split) != split.split:
                    raise ValueError(
                        f"--split-dirs {text!r}: {path} would be in {owner[inside]} and in {split.split}; "
                        "choose directories that do not overlap"
                    )
    return layout


def _split_dir(root: Path, item: str) -> SplitDir:
    split, equals, place = (part.strip() for part in item.partition("="))
    if not equals or not place or not re.fullmatch(r"\w[\w-]*", split, re.ASCII):
        raise ValueError(f"--split-dirs: {item!r} is not SPLIT=DIRECTORY; {FORM}")
    path = PurePosixPath(place)
    if path.is_absolute() and path.is_relative_to(root.absolute()):
        path = path.relative_to(root.absolute())
    if path.is_absolute() or ".." in path.parts or path.parts.count(CLASS) > 1:
        raise ValueError(
            f"--split-dirs: {place!r} is not a directory inside {root}; give a relative path, with at most one {CLASS} "
            "for the classes"
        )
    at = path.parts.index(CLASS) if CLASS in path.parts else len(path.parts)
    before, after = (
        "".join(f"{part}/" for part in path.parts[:at]),
        "".join(f"/{part}" for part in path.parts[at + 1 :]),
    )
    if not (root / before).is_dir():
        there = [name for name, entry in visible(root).items() if is_dir(entry)]
        raise ValueError(f"--split-dirs: {root} has no directory {before.rstrip('/')!r}; choose from {few_of(there)}")
    return SplitDir(split, before, after)
