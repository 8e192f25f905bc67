"""Map the labels of Parquet files to class keys by name. Each file may have its own list of classes, or none.

The classes are those of the first split: the names in its files' schemas, in order, or the names in its text labels. If
its labels are only numbers, the classes are the list that other splits' files have, or otherwise the numbers.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from penstock.shard_tools.sources.imagenet import imagenet_classes, wnids_of
from penstock.shard_tools.sources.labels import LabelKinds, class_number, read_label
from penstock.shard_tools.sources.naming import few_of, numbered_classes


@dataclass(frozen=True)
class FileLabels:
    """The labels of one file. file: for messages. names: the class names in its schema, by label. first_rows: label →
    first row."""

    file: str
    split: str
    names: list[str]
    first_rows: dict[int | str | None, int]

    def is_labelled(self) -> bool:
        return any(label not in (None, -1, "") for label in self.first_rows)


@dataclass
class ClassMap:
    """The result of `map_classes`. keys: for each file, in order, label → class key; None for no label. names: class
    key → readable name, by label; {} if nothing names the classes. notes: messages for the user."""

    keys: list[dict[int | str | None, str | None]]
    names: dict[str, str]
    notes: list[str] = field(default_factory=list)
    _unnamed: list[str] | None = None  # keys of numbers without names

    def fixed_classes(self) -> list[str] | None:
        return list(self.names) or self._unnamed


def map_classes(files: Sequence[FileLabels]) -> ClassMap:
    """Find the keys of all labels. `files`: by split; the first split defines the classes of the dataset.

    Raises:
        ValueError: a label has no class, or its class is unclear; with file, row, and how the lists differ.
    """
    mapper = _Mapper(files)
    keys = [mapper.keys(file) for file in files]
    return ClassMap(keys, mapper.classes, mapper.notes(), mapper.kinds.fixed_classes())


class _Mapper:
    """Finds keys. names: the class names by label, [] if nothing names the classes. known: name of a class → key."""

    def __init__(self, files: Sequence[FileLabels]):
        self.files = files
        first = [file for file in files if file.split == files[0].split]
        text = {label for file in first for label in file.first_rows if isinstance(label, str) and _is_name(label)}
        self.lists = list({tuple(file.names): None for file in files if file.names})
        self.names = _joined([file.names for file in first if file.names])
        if not self.names and not text and len(self.lists) == 1:
            self.names = list(self.lists[0])
        self.classes = numbered_classes(self.names)
        self.order = list(self.classes)
        self.known = _called(self.names, self.order) if self.names else {label: label for label in text}
        self.kinds = LabelKinds()

    def keys(self, file: FileLabels) -> dict[int | str | None, str | None]:
        """The key of each label in one file, None for no label."""
        places = self._places(file)
        keys: dict[int | str | None, str | None] = {}
        for label, row in file.first_rows.items():
            try:
                value = read_label(label) if isinstance(label, str) and label not in self.known else label
                value = class_number(value) if isinstance(value, int) else value
                if value is None or isinstance(value, str):
                    keys[label] = value and self._of_name(file, value, row)
                elif file.names and value < len(places):
                    keys[label] = places[value] or self._of_name(file, file.names[value], row)
                else:
                    keys[label] = self._of_number(file, value, places, row)
            except ValueError as error:
                raise ValueError(f"{file.file}: row {row}: {error}") from None
        return keys

    def _places(self, file: FileLabels) -> list[str]:
        """The key of each label in the file's own list; "" if the dataset lacks that class. Without a list, the keys
        from the list of the other files."""
        if not file.names or file.names == self.names:
            return self.order
        either = zip(file.names, wnids_of(file.names) or file.names, strict=True)
        return [self.known.get(name) or self.known.get(other, "") for name, other in either]

    def _of_name(self, file: FileLabels, name: str, row: int) -> str:
        if not self.names and not file.names:  # also in other splits: `pack` compares the splits
            return self.kinds.key(name, f"row {row} of {file.file}")
        if name in self.known:
            return self.known[name]
        there = self.names or list(self.known)
        here = file.names or [label for label in file.first_rows if isinstance(label, str)]
        differences = [
            f"{where}: {few_of(names)}"
            for where, names in (
                ("only in this file", [name for name in here if name not in self.known]),
                (f"only in {self.files[0].split}", [name for name in there if name not in here]),
            )
            if names
        ]
        raise ValueError(
            f"the class {name!r} does not match exactly one of the {len(there)} classes of {self.files[0].split} "
            f"({'; '.join(differences)}); use the same list of classes in all files"
        )

    def _of_number(self, file: FileLabels, number: int, places: list[str], row: int) -> str:
        """The key of a number that is not in the file's own list."""
        if not self.lists:
            return self.kinds.key(number, f"row {row} of {file.file}")
        if not file.names and (len(self.lists) > 1 or not self.names):
            raise ValueError(
                f"the label {number} has no name, and the other files' class lists do not determine its class; add a "
                "class list to the schema of this file"
            )
        if number >= len(places):
            num_classes = len(file.names or places)
            where = "in its schema" if file.names else "in the other files"
            raise ValueError(f"the label {number} is not one of the {num_classes} classes {where}; correct the file")
        return places[number]

    def _is_place(self, label: int | str | None) -> bool:
        return _is_number(label) and label not in self.known

    def notes(self) -> list[str]:
        """Messages about assumptions."""
        lines = []
        unnamed = [file.file for file in self.files if not file.names and any(map(self._is_place, file.first_rows))]
        if self.names and unnamed:
            lines.append(f"{few_of(unnamed)}: no class names; the labels are read as positions in the others' list")
        others = [file.file for file in self.files if file.names and file.names != self.names]
        if others:
            lines.append(f"{few_of(others)}: a different list of classes; the labels are mapped by class names")
        return lines


def _joined(lists: list[list[str]]) -> list[str]:
    """Join lists into one: the first list, then the further names of the others."""
    names = list(lists[0]) if lists else []
    for other in lists[1:]:
        if other != names:
            called = _called(names, names)
            either = zip(other, wnids_of(other) or other, strict=True)
            names += [name for name, wnid in either if name not in called and wnid not in called]
    return names


def _called(names: list[str], keys: list[str]) -> dict[str, str]:
    """Name → key, for names that exactly one class has. ImageNet's classes also have their wnids and short names."""
    counts = Counter(names)
    called = {name: key for name, key in zip(names, keys, strict=True) if counts[name] == 1}
    if wnids := wnids_of(names):
        of_wnid = dict(zip(wnids, keys, strict=True))
        called = of_wnid | {name: of_wnid[wnid] for wnid, name in imagenet_classes().items()} | called
    return called


def _is_name(label: str) -> bool:
    """Whether a text is a class name, neither a number nor empty."""
    try:
        return isinstance(read_label(label), str)
    except ValueError:
        return False


def _is_number(label: int | str | None) -> bool:
    if isinstance(label, str):
        return bool(label.strip()) and not _is_name(label)
    return label is not None and label >= 0
