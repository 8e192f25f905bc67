"""The files that a table's paths mean: as they are written, or the one spelling of them that is there."""

import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from penstock.shard_tools.sources.naming import EXTENSIONS, is_image

TRIED = 10  # paths by which the folder of all is found


class Found(NamedTuple):
    """name: the path as it led to the file, with "/", relative to the first folder where it is relative."""

    name: str
    file: str
    size_bytes: int


class Locator:
    """Finds files by the paths of one table, relative to `folders` (the first that has it) or absolute.

    Where there is no such file, "\\" is taken for "/", and an image's extension is added where the path has none.
    encoding: of the table, if file names may be its bytes.
    """

    def __init__(self, folders: Iterable[Path], encoding: str = ""):
        self._folders = [os.fspath(folder) for folder in folders]
        self._encoding = encoding
        self.inside = [""]  # below the first of `folders`: what `look_around` found

    def find(self, path: str) -> Found | str:
        """The file, or in a few words why there is none."""
        tried = [self._find(inside, path) for inside in self.inside]
        found = [each for each in tried if isinstance(each, Found)]
        if len(found) > 1:
            return f"no such file, but {' and '.join(each.name for each in found)}: write which"
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
                    return f"no such file, but {' and '.join(sorted(f.name for f in found.values()))}: write which"
                if found:
                    return found.popitem()[1]
        return "a URL; download the images and write their paths" if re.match("https?://", path.strip()) else reason

    def look_around(self, paths: list[str]) -> None:
        """If none of the first `paths` is there, and folders below the first of `folders` have them: take these.

        Raises:
            ValueError: several folders have the same.
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
                    f"paths like {path!r} are no files beside it, but the folders {', '.join(each[:3])}"
                    f"{' …' if len(each) > 3 else ''} have such; write the folder into the paths"
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
    """The files that the name with an image's extension means: one for each inode."""
    found = {}
    for extension in (*EXTENSIONS, *map(str.upper, EXTENSIONS)):
        file = os.path.join(folder, inside, name + extension)
        if name.rstrip("/") == name and isinstance(size := _size(file), int):
            status = os.stat(file)  # noqa: PTH116
            found[status.st_dev, status.st_ino] = Found(os.path.join(inside, name + extension), file, size)
    return found


def _size(file: str) -> int | str:
    """A file's bytes, or why there is none; "" if it is simply not there."""
    try:
        status = os.stat(file)  # noqa: PTH116 a third of the time of Path.stat
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        return (error.strerror or str(error)).lower()
    except ValueError:  # a NUL, or what no file name can hold
        return "no file can have this name"
    return status.st_size if stat.S_ISREG(status.st_mode) else "not a file"
