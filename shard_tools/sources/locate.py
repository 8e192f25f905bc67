"""Find the files that a table's paths refer to: the paths as written, or the one variant of them that exists."""

import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from penstock.shard_tools.sources.naming import EXTENSIONS, is_image

TRIED = 10  # number of paths used to find the common folder


class Found(NamedTuple):
    """A file that exists. name: the path that led to it, with "/"; a relative path is relative to the first folder."""

    name: str
    file: str
    size_bytes: int


class Locator:
    """Find files by the paths of one table: absolute, or relative to the first of `folders` that has the file.

    If there is no such file, "\\" is read as "/", and an image extension is added to a path without one. encoding: the
    table's encoding, if file names may be bytes in it.
    """

    def __init__(self, folders: Iterable[Path], encoding: str = ""):
        self._folders = [os.fspath(folder) for folder in folders]
        self._encoding = encoding
        self.inside = [""]  # the folders below the first of `folders` that `look_around` found

    def find(self, path: str) -> Found | str:
        """The file, or the reason why there is none, in a few words."""
        tried = [self._find(inside, path) for inside in self.inside]
        found = [each for each in tried if isinstance(each, Found)]
        if len(found) > 1:
            return f"no such file, but {' and '.join(each.name for each in found)} exist; write the full path"
        return found[0] if found else tried[0]

    def _find(self, inside: str, path: str) -> Found | str:
        reason = "no such file"
        for folder in self._folders:
            for name in self._spellings(path):
                file = os.path.join(folder, inside, name)
                size = _size(file)
                if isinstance(size, int):
                    return Found(os.path.join(inside, name), file, size)
                reason = size or reason
        for folder in self._folders:
            for name in self._spellings(path):
                found = {} if is_image(name) else _extended(folder, inside, name)
                if len(found) > 1:
                    names = " and ".join(sorted(f.name for f in found.values()))
                    return f"no such file, but {names} exist; write the full path"
                if found:
                    return found.popitem()[1]
        return "a URL; download the images and write their paths" if re.match("https?://", path.strip()) else reason

    def look_around(self, paths: list[str]) -> None:
        """If none of the first `paths` exists, but folders below the first of `folders` have them, use those folders.

        Raises:
            ValueError: several folders have the same file.
        """
        paths = [path for path in paths[:TRIED] if path.strip()]
        if not paths or any(isinstance(self.find(path), Found) for path in paths):
            return
        with os.scandir(self._folders[0]) as entries:
            below = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
        having = [[inside for inside in below if isinstance(self._find(inside, path), Found)] for path in paths]
        self.inside = sorted({inside for each in having for inside in each}) or [""]
        for path, each in zip(paths, having, strict=True):
            if len(each) > 1:
                raise ValueError(
                    f"paths like {path!r} are not files beside it, but several folders have such files: "
                    f"{', '.join(each[:3])}{' …' if len(each) > 3 else ''}; add the folder to the paths"
                )

    def _spellings(self, path: str) -> Iterator[str]:
        yield path
        if "\\" in path:
            yield path.replace("\\", "/")
        if path != path.strip():
            yield path.strip()
        if self._encoding and not path.isascii():
            yield os.fsdecode(path.encode(self._encoding))


def _extended(folder: str, inside: str, name: str) -> dict[tuple[int, int], Found]:
    """The files with this name plus an image extension, one for each inode."""
    found = {}
    for extension in (*EXTENSIONS, *map(str.upper, EXTENSIONS)):
        file = os.path.join(folder, inside, name + extension)
        if name.rstrip("/") == name and isinstance(size := _size(file), int):
            status = os.stat(file)  # noqa: PTH116
            found[status.st_dev, status.st_ino] = Found(os.path.join(inside, name + extension), file, size)
    return found


def _size(file: str) -> int | str:
    """A file's size in bytes, or the reason why it cannot be read; "" if it does not exist."""
    try:
        status = os.stat(file)  # noqa: PTH116 a third of the time of Path.stat
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        return (error.strerror or str(error)).lower()
    except ValueError:  # a NUL, or another character that file names cannot contain
        return "not a valid file name"
    return status.st_size if stat.S_ISREG(status.st_mode) else "not a file"
