"""Read existing WebDataset tars: `*.tar` in a directory, or one directory below (`train/*.tar`).

A sample consists of one image and a label (`tarsamples`). If they are ambiguous, `Fields` names them. The tar's name
determines the split (`naming.split_of`).

Numeric labels keep their values, even if some smaller numbers have no images. The names of numbered classes come from
line i of a `classnames.txt` or `classes.txt` beside the tars, from dataset.json for shards that `pack` made, or from
the samples themselves (`classnames`).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from penstock.shard_tools.sources.base import Place, Source, SourceImage, Unusable
from penstock.shard_tools.sources.classnames import WNID, Label, NamesMet
from penstock.shard_tools.sources.labels import check_single
from penstock.shard_tools.sources.naming import (
    SPLIT_WORDS,
    Ignored,
    check_number,
    numbered_classes,
    numbered_key,
    numbered_keys,
    split_of,
    split_rank,
)
from penstock.shard_tools.sources.tarsamples import (
    FIND_OUT,
    NO_LABEL,
    Fields,
    Unlabelled,
    check_fields,
    image_of,
    iterate_samples,
    no_image,
    read_label,
)
from penstock.shards.format import INFO_FILE, ShardSet

LAYOUT = "a directory with WebDataset .tar files, or with directories train/ and val/ of such files"
CLASS_FILES = ("classnames.txt", "classes.txt")


def tars(root: Path) -> dict[str, list[Path]]:
    """Split → its tars, sorted by name."""
    paths = [path for folder in _folders(root) for path in folder.glob("*.tar") if not path.name.startswith(".")]
    splits: dict[str, list[Path]] = {}
    for path in sorted(paths):
        splits.setdefault(split_of(path.relative_to(root).as_posix().removesuffix(".tar")), []).append(path)
    return dict(sorted(splits.items(), key=lambda item: split_rank(item[0])))


def recognise(path: Path) -> bool:
    return any(any(folder.glob("*.tar")) for folder in _folders(path))


def _folders(root: Path) -> list[Path]:
    return [root, *(root / word for word in SPLIT_WORDS)]


def names_beside(root: Path) -> dict[str, str]:
    """Class key → readable name from a class file beside the tars; {} without one. Line i names label i; it may begin
    with the number or the wnid."""
    for name in CLASS_FILES:
        if (root / name).is_file():
            text = (root / name).read_text(encoding="utf-8-sig", errors="replace")
            lines = [line.strip() for line in text.splitlines() if line.strip()]
            words = [line.partition(" ") for line in lines]
            if all(rest and (WNID.fullmatch(key) or key == str(i)) for i, (key, _, rest) in enumerate(words)):
                lines = [rest.strip() for *_, rest in words]
            return numbered_classes(lines)
    return {}


@dataclass
class LabelsMet:
    """Collects facts about the labels: whether all are numbers or all text, the largest number, and class names.

    beside: class key → readable name of the labels 0, 1, …, from a file beside the tars; {} without one.
    """

    beside: dict[str, str]
    highest: int = -1
    names: NamesMet = field(default_factory=NamesMet)
    _first: dict[type, str] = field(default_factory=dict)  # one sample for each kind of label
    _texts: dict[str, str] = field(default_factory=dict)  # text label → its first tar

    def add(self, label: Label, name: str) -> None:
        """Record the label of the sample `name`.

        Raises ValueError if earlier labels are of the other kind, or if the label is beyond the named classes.
        """
        self._first.setdefault(type(label), name)
        if len(self._first) > 1:
            number, text = self._first[int], self._first[str]
            raise ValueError(f"the label of {number} is a number, but that of {text} is text; use one kind for all")
        if isinstance(label, str):
            self._texts.setdefault(label, name.partition(".tar/")[0] + ".tar")  # `index` knows only the tar of most
        else:
            check_number(label, name)
            if self.beside and label >= len(self.beside):
                raise ValueError(
                    f"{name}: label {label} is beyond the {len(self.beside)} classes named beside the tars; "
                    "add its name, or, if labels begin at 1, a first line for label 0"
                )
            self.highest = max(self.highest, label)

    def keys(self) -> list[str] | None:
        """The class keys by label, or None if the labels are text. Raises what `check_single` raises."""
        check_single(self._texts)
        if self.highest < 0:
            return None
        return list(self.beside) or numbered_keys(self.highest + 1)

    def class_names(self) -> dict[str, str]:
        """Class key → readable name, for classes with a known name."""
        keys = list(self.beside)
        said = self.names.names()
        found = {_key(label, keys): name for label, name in said.items()}
        return found | self.beside

    def notes(self) -> Iterable[str]:
        return [] if self.beside else self.names.notes()


def unlabelled_test(count: int) -> str:
    """The message about a test split that is skipped because its labels are secret."""
    return f"test: skipped, because none of its {count:,} images has a label"


def _key(label: Label, keys: list[str]) -> str:
    if isinstance(label, str):
        return label
    return keys[label] if keys else numbered_key(label)


@dataclass
class WebDataset(Source):
    """The `Source`."""

    root: Path
    fields: Fields = FIND_OUT
    format: str = "webdataset"
    explained: str = field(init=False)
    _met: LabelsMet = field(default_factory=lambda: LabelsMet({}))
    ignored: Ignored = field(default_factory=Ignored)
    _left_out: str = ""

    def __post_init__(self) -> None:
        splits = ", ".join(f"{split} ({len(paths)})" for split, paths in tars(self.root).items())
        self.explained = f"WebDataset tars, read in place; splits from the tars' names: {splits}"

    def images(self, work: Path) -> Iterator[SourceImage | Unusable]:
        """By split, tar and position."""
        self.ignored = Ignored()
        beside = names_beside(self.root)
        if not beside and (self.root / INFO_FILE).is_file():
            packed = ShardSet.open(self.root)
            if not packed.made.get("indexed"):  # tars that were only indexed have their own labels
                beside = {info.wnid: info.name for info in packed.classes}
        self._met = LabelsMet(beside)
        self._left_out = ""
        found = tars(self.root)
        for paths in found.values():
            check_fields(paths[0], self.fields)
        for split, paths in found.items():
            samples = chain.from_iterable(self._samples(split, path, list(beside)) for path in paths)
            yield from self._unless_secret(samples) if split == "test" and len(found) > 1 else samples

    def _unless_secret(self, samples: Iterator[SourceImage | Unusable]) -> Iterator[SourceImage | Unusable]:
        """Yield the samples, or nothing if none of them has a label."""
        unlabelled: list[Unusable] = []
        for sample in samples:
            if not isinstance(sample, Unusable) or not sample.reason.startswith(NO_LABEL):
                yield from unlabelled
                yield sample
                yield from samples
                return
            unlabelled.append(sample)
        self._left_out = unlabelled_test(len(unlabelled)) if unlabelled else ""

    def _samples(self, split: str, path: Path, keys: list[str]) -> Iterator[SourceImage | Unusable]:
        """Yield the samples of one tar. keys: the class keys by label, if a file beside the tars names the classes."""
        with open(path, "rb") as stream:
            for sample in iterate_samples(path, self.ignored):
                image = image_of(sample, path, self.fields)
                name = f"{path.relative_to(self.root).as_posix()}/{(image or sample[0]).name}"
                if image is None:
                    yield Unusable(split, name, no_image(sample, self.fields))
                    continue
                try:
                    label, about = read_label(sample, stream, path, self.fields)
                except Unlabelled as error:
                    yield Unusable(split, name, str(error))
                    continue
                self._met.add(label, f"{self.root}/{name}")
                self._met.names.add(label, about, image.name)
                place = Place("stored", str(path), image.offset, image.size)
                yield SourceImage(split, _key(label, keys), name, image.size, place)

    def class_names(self) -> dict[str, str]:
        return self._met.class_names()

    def fixed_classes(self) -> list[str] | None:
        return self._met.keys()

    def notes(self) -> list[str]:
        return [*filter(None, [self._left_out]), *self._met.notes()]
