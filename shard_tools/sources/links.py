"""Symbolic links in a directory tree: find broken links, and links that would put images into another class."""

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from penstock.shard_tools.sources.base import Place, SourceImage, Unusable
from penstock.shard_tools.sources.naming import few_of

MAX_HOPS = 40  # as Linux follows


class Links:
    """The links below class directories (relative to `root`), and their targets.

    Raises:
        ValueError: a class directory is a link to a directory that contains others.
    """

    def __init__(self, root: Path, class_dirs: list[str]) -> None:
        self._root = root
        self._class_dirs: dict[str, str] = {}  # real path → as in the tree
        self._same: list[str] = []
        self._count = 0
        for path in class_dirs:
            real = os.path.realpath(root / path)
            if real in self._class_dirs:
                self._same.append(f"{path} is {self._class_dirs[real]}")
            else:
                self._class_dirs[real] = path
        self._above = {parent for real in self._class_dirs for parent in _parents(real)}
        for real, path in self._class_dirs.items():
            if real in self._above:
                raise ValueError(
                    f"{root / path}: is a link to a directory that contains other classes ({real}); remove the link"
                )

    def read_anyway(self, path: str) -> str:
        """The place in the tree where the link's target is read anyway; "" if it is not."""
        for place in _hops(os.path.join(self._root, path)):
            if place in self._above:
                self._count += 1
                return "a directory of classes"
            for parent in (place, *_parents(place)):
                if parent in self._class_dirs:
                    self._count += 1
                    return self._class_dirs[parent] + place[len(parent) :]
        return ""

    def notes(self) -> list[str]:
        """Messages for the user about links."""
        notes = []
        if self._count:
            notes.append(f"skipped {self._count} links to images that are read anyway")
        if self._same:
            notes.append(f"{len(self._same)} class directories are links to others, so their images are packed twice: ")
            notes[-1] += few_of(self._same)
        return notes


def is_dir(entry: os.DirEntry[str]) -> bool:
    """Whether it is a directory or a link to one. A broken link is not."""
    try:
        return entry.is_dir()
    except OSError:  # a loop of links, or no permission to see where one leads
        return False


def broken(entry: os.DirEntry[str] | Path) -> str:
    """For a broken link, its target and why it cannot be read; "" for everything else."""
    if entry.is_symlink():
        try:
            entry.stat()
        except OSError as error:
            return f"a link to {Path(entry).readlink()}: {(error.strerror or str(error)).lower()}"
    return ""


def file_image(split: str, key: str, name: str, entry: os.DirEntry[str]) -> SourceImage | Unusable:
    """An image that is a file, or an `Unusable` if it is a broken link."""
    if reason := broken(entry):
        return Unusable(split, name, reason, key)
    return SourceImage(split, key, name, entry.stat().st_size, Place("file", entry.path))


def _hops(link: str) -> Iterator[str]:
    """Yield the target of a link, then the target's own target if that is a link, and so on, each in its real
    directory."""
    path = Path(link)
    for _ in range(MAX_HOPS):
        target = path.parent / path.readlink()
        path = Path(_real(str(target.parent)), target.name) if target.name not in ("", "..") else target.resolve()
        yield str(path)
        if not path.is_symlink():
            return


@lru_cache(maxsize=4096)
def _real(directory: str) -> str:
    return os.path.realpath(directory)


def _parents(path: str) -> Iterator[str]:
    while path := path.rpartition("/")[0]:
        yield path
