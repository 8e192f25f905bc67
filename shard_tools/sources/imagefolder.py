"""A directory tree: SOURCE/SPLIT/CLASS/**/IMAGE, or SOURCE/CLASS/**/IMAGE as the one split "train"."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from shard_tools.sources.base import Place, Source, SourceImage
from shard_tools.sources.naming import EXTENSIONS, SPLIT_WORDS, Ignored, is_image, some, split_rank

LAYOUT = "a directory with train/CLASS/IMAGE and val/CLASS/IMAGE, or CLASS/IMAGE"


def recognise(path: Path) -> bool:
    return path.is_dir()


@dataclass
class ImageFolder(Source):
    """The `Source`. Raises ValueError if the tree contradicts itself."""

    root: Path
    format: str = "imagefolder"
    explained: str = field(init=False)
    _ignored: Ignored = field(default_factory=Ignored)

    def __post_init__(self) -> None:
        if not self.root.is_dir():
            raise ValueError(f"{self.root}: not a directory; give {LAYOUT}")
        splits = self._splits()
        self.explained = f"a directory tree: {', '.join(f'{d}/CLASS/IMAGE' for d in splits.values()) or 'CLASS/IMAGE'}"

    def images(self, work: Path) -> Iterator[SourceImage]:
        """By split, then in the order of the directories' and files' names."""
        self._ignored = Ignored()
        splits = self._splits()
        if splits:
            for name, entry in _list(self.root).items():
                if name not in splits.values():
                    self._ignored.append(name + "/" * entry.is_dir())
        found = False
        for split, directory in splits.items() or [("train", "")]:
            empty: list[str] = []
            found = False
            for image in self._split(split, f"{directory}/" if directory else "", empty):
                found = True
                yield image
            if not found:
                place, expected = self.root / directory, LAYOUT if not splits else f"{directory}/CLASS/IMAGE"
                raise ValueError(
                    f"{place}: no images ({', '.join(EXTENSIONS)}) in its class directories; give {expected}"
                )
            if empty and split == next(iter(splits), split):
                raise ValueError(f"{self.root}: no images in class {some(empty)} of {split}; add some or remove it")

    def ignored(self) -> list[str]:
        return self._ignored

    def _splits(self) -> dict[str, str]:
        """Split → its directory; empty if the class directories lie in the root."""
        splits: dict[str, str] = {}
        flat = []
        for name, entry in _list(self.root).items():
            if name in SPLIT_WORDS and entry.is_dir():
                if not any(inner.is_dir() for inner in _list(self.root / name).values()):
                    flat.append(name)
                elif SPLIT_WORDS[name] in splits:
                    other = splits[SPLIT_WORDS[name]]
                    raise ValueError(
                        f"{self.root}: {other} and {name} both mean {SPLIT_WORDS[name]}; remove one of them"
                    )
                else:
                    splits[SPLIT_WORDS[name]] = name
        for name in flat if splits else ():
            if any(is_image(file) for file in _list(self.root / name)):
                raise ValueError(f"{self.root / name}: {self._flat(name)}")
        return dict(sorted(splits.items(), key=lambda item: split_rank(item[0])))

    def _flat(self, name: str) -> str:
        """What to do about PyTorch's ImageNet layout before its validation images are sorted."""
        labels = [
            str(path)
            for path in sorted({*self.root.iterdir(), *(self.root / name).iterdir()})
            if not is_image(path.name)
            and path.is_file()
            and ("val" in path.name.lower() or "devkit" in path.name.lower())
        ]
        hint = f"their labels seem to be in {labels[0]}" if labels else "nothing here tells their labels"
        return (
            f"images without class directories ({hint}); sort them into {name}/CLASS/, or list all images in a "
            "CSV file with the columns path, label and split and pack that, or pack the official archives as they are"
        )

    def _split(self, split: str, prefix: str, empty: list[str]) -> Iterator[SourceImage]:
        """One split's images; class directories without any go to `empty`, what is no image to `ignored`."""
        root = str(self.root)
        for key, entry in _list(self.root / prefix).items():
            if not entry.is_dir():
                self._ignored.append(prefix + key)
                continue
            count = 0
            for name, size in _walk(root, prefix + key, frozenset()):
                if size is None:
                    self._ignored.append(name)
                else:
                    count += 1
                    yield SourceImage(split, key, name, size, Place("file", f"{root}/{name}"))
            if not count:
                empty.append(key)


def _walk(root: str, directory: str, above: frozenset[str]) -> Iterator[tuple[str, int | None]]:
    """(name, bytes) of every visible file below; bytes is None for what is not an image."""
    here = os.path.realpath(os.path.join(root, directory))
    if here in above:  # a link to a directory that contains it
        return
    for name, entry in _list(Path(root, directory)).items():
        if entry.is_dir():
            yield from _walk(root, f"{directory}/{name}", above | {here})
        else:
            is_file = is_image(name) and (entry.is_file() or entry.is_symlink())  # a broken link is an error, below
            yield f"{directory}/{name}", entry.stat().st_size if is_file else None


def _list(directory: Path) -> dict[str, os.DirEntry[str]]:
    with os.scandir(directory) as entries:
        return {entry.name: entry for entry in sorted(entries, key=lambda e: e.name) if not entry.name.startswith(".")}
