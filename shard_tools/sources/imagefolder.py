"""Where images come from: a directory tree → classes and, per split, the list of images with their labels.

Input: a path. Output: `Source`. No image is read here, only names and sizes, so 1.28 M files take seconds.
To add a source: write a function `path → Source` and put it into `SOURCES`.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from shard_tools.format import ClassInfo, escape

SPLITS = ("train", "val", "test")  # the first of these that is there defines the classes
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


@dataclass(frozen=True, slots=True)
class SourceImage:
    """One image before packing: small, picklable, and able to fetch its bytes in another process."""

    name: str  # relative to the source, with "/": what messages, the table of sources and the fingerprint use
    root: str
    label: int
    size_bytes: int

    @property
    def path(self) -> str:
        return os.path.join(self.root, self.name)

    def read(self) -> bytes:
        """The file's bytes. Raises OSError if it cannot be read, ValueError if it is not the file that was listed."""
        with open(self.path, "rb") as stream:
            data = stream.read()
        if len(data) != self.size_bytes:
            raise ValueError(
                f"{self.path}: had {self.size_bytes} bytes when packing began and has {len(data)} now; "
                "pack again when nothing writes to the source"
            )
        return data


@dataclass(frozen=True)
class Source:
    """What is to be packed. `splits[name]` is sorted by file name; a label is a position in `classes`."""

    format: str
    classes: list[ClassInfo]  # sorted by `wnid`
    splits: dict[str, list[SourceImage]]
    ignored: list[str] = field(default_factory=list)  # files and directories that are not images of a class

    @property
    def ignored_line(self) -> str:
        """One line for people, "" if nothing was ignored."""
        if not self.ignored:
            return ""
        names = ", ".join(escape(name) for name in self.ignored[:5]) + (" …" if len(self.ignored) > 5 else "")
        what = "1 entry that is not an image" if len(self.ignored) == 1 else f"{len(self.ignored)} entries, not images"
        return f"ignored {what} of a class: {names}"


def read_source(path: str | os.PathLike[str]) -> Source:
    """List the images below `path`.

    Raises:
        ValueError: there is nothing to pack or the tree contradicts itself; the message names the place and the remedy.
    """
    root = Path(path)
    if not root.is_dir():
        raise ValueError(f"{root}: {'not a directory' if root.exists() else 'no such directory'}; give {LAYOUT}")
    try:
        source = SOURCES["imagefolder"](root)
    except OSError as error:
        raise ValueError(f"{error.filename or root}: cannot be read ({error.strerror})") from None
    for info in source.classes:
        try:
            info.wnid.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{root}: the class name {info.wnid!r} is not UTF-8; rename the directory") from None
    return source


def read_imagefolder(root: Path) -> Source:
    """SOURCE/SPLIT/CLASS/**/IMAGE, or SOURCE/CLASS/**/IMAGE as the one split "train"."""
    top = _list(root)
    names = [name for name in SPLITS if name in top and top[name].is_dir() and _has_directories(root / name)]
    ignored: list[str] = []
    if names:
        for name, entry in top.items():
            if (
                name in SPLITS
                and name not in names
                and entry.is_dir()
                and any(_is_image(f) for f in _list(root / name))
            ):
                raise ValueError(f"{root / name}: images without class directories; sort them into {name}/CLASS/")
        ignored += [name + "/" * entry.is_dir() for name, entry in top.items() if name not in names]
    found = {name: _read_split(root, f"{name}/", ignored) for name in names} or {
        "train": _read_split(root, "", ignored)
    }
    first = next(iter(found))
    if not any(found[first].values()):
        raise ValueError(f"{root}: no images ({', '.join(EXTENSIONS)}) in class directories; give {LAYOUT}")
    keys = sorted(found[first])
    empty = [key for key in keys if not found[first][key]]
    if empty:
        raise ValueError(f"{root}: no images in class {_some(empty)} of {first}; add some or remove the directory")
    for name, classes in found.items():
        unknown = sorted(key for key in classes if classes[key] and key not in found[first])
        if unknown:
            raise ValueError(
                f"{root / name}: class {_some(unknown)} is not in {first}; add it there or remove it from {name}"
            )
    label = {key: i for i, key in enumerate(keys)}
    splits = {
        name: sorted(
            (SourceImage(file, str(root), label[key], size) for key, files in classes.items() for file, size in files),
            key=lambda image: image.name,
        )
        for name, classes in found.items()
    }
    for name, images in splits.items():
        if not images:
            raise ValueError(f"{root / name}: no images in its class directories; add some or remove {name}")
    return Source("imagefolder", [ClassInfo(key, key) for key in keys], splits, sorted(ignored))


def _read_split(root: Path, prefix: str, ignored: list[str]) -> dict[str, list[tuple[str, int]]]:
    """class key → (name, bytes) of each image; everything else goes to `ignored`."""
    classes: dict[str, list[tuple[str, int]]] = {}
    for key, entry in _list(root / prefix).items():
        if not entry.is_dir():
            ignored.append(prefix + key)
            continue
        classes[key] = []
        for name, size in _walk(str(root), prefix + key, frozenset()):
            if size is None:
                ignored.append(name)
            else:
                classes[key].append((name, size))
    return classes


def _walk(root: str, directory: str, above: frozenset[str]) -> Iterator[tuple[str, int | None]]:
    """(name, bytes) of every visible file below; bytes is None for what is not an image."""
    here = os.path.realpath(os.path.join(root, directory))
    if here in above:  # a link to a directory that contains it
        return
    for name, entry in _list(Path(root, directory)).items():
        if entry.is_dir():
            yield from _walk(root, f"{directory}/{name}", above | {here})
        else:
            yield f"{directory}/{name}", entry.stat().st_size if _is_image(name) else None


def _list(directory: Path) -> dict[str, os.DirEntry[str]]:
    with os.scandir(directory) as entries:
        return {entry.name: entry for entry in sorted(entries, key=lambda e: e.name) if not entry.name.startswith(".")}


def _has_directories(directory: Path) -> bool:
    return any(entry.is_dir() for entry in _list(directory).values())


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def _some(names: list[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


LAYOUT = "a directory with train/CLASS/IMAGE and val/CLASS/IMAGE, or CLASS/IMAGE"
SOURCES: dict[str, Callable[[Path], Source]] = {"imagefolder": read_imagefolder}
