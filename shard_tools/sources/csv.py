"""A .csv or .tsv file with one row per image: its path (relative to the file), its class, and optionally its split.

Commas, semicolons, tabs or vertical bars separate the cells. With a header, columns are found by the usual names, or as
the options specify. Without a header, they are path, label, split, in this order. A first row that is neither a known
header nor begins with the path of a file is an error. If all labels are numbers, they keep their values (class keys
000000, 000001, …). A mixture of numbers and names is an error. A split without any label is skipped, unless it is the
first. `locate` finds the files.
"""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path

from penstock.shard_tools.sources.base import Place, Source, SourceImage, Unusable
from penstock.shard_tools.sources.labels import LabelKinds, read_label, without_label
from penstock.shard_tools.sources.locate import Found, Locator
from penstock.shard_tools.sources.naming import is_image, split_in, split_rank
from penstock.shard_tools.sources.tabletext import SAMPLE_ROWS, SEPARATORS, encoding_of, rows, separators

LAYOUT = "a .csv or .tsv file with the columns path, label and perhaps split"
USUAL_NAMES = {  # in lower case, only letters and digits; the first name that exists counts
    "image": (
        "path", "imagepath", "imgpath", "filepath", "filepaths", "image", "img", "file", "filename", "imagefile",
        "imagefilename", "imagename", "imgname", "picture", "photo", "imageid", "imgid", "id",
    ),
    "label": (
        "label", "labels", "class", "classes", "target", "targets", "category", "wnid", "classname", "labelname",
        "categoryname", "classlabel", "classid", "labelid", "categoryid", "y",
    ),
    "split": ("split", "subset", "set", "partition", "dataset"),
}  # fmt: skip


def recognise(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in (".csv", ".tsv")


@dataclass(frozen=True)
class _Table:
    """How to read the file. header: its cells, or []. columns: the indices of image, label and, optionally, split.

    sure: the header has known names, or a path in the first rows is a file.
    """

    separator: str
    header: list[str]
    columns: dict[str, int]
    files: Locator
    sure: bool


@dataclass
class Csv(Source):
    """The `Source`. Columns are names, or numbers from 1; "" is detected."""

    path: Path
    image_column: str = ""
    label_column: str = ""
    split_column: str = ""
    format: str = "csv"
    explained: str = field(init=False)
    _labels: LabelKinds = field(default_factory=LabelKinds)
    _unlabelled: Counter[str] = field(default_factory=Counter)  # rows of the splits that are skipped

    def __post_init__(self) -> None:
        if not self.path.is_file():
            raise ValueError(f"{self.path}: not a file; give {LAYOUT}")
        table = self._table
        what = ", ".join(
            f"{role} in column {table.header[i] if table.header else i + 1}" for role, i in table.columns.items()
        )
        encoding = "" if self._encoding.startswith("utf") else f" (in {self._encoding}, not UTF-8)"
        folder = f"; the files are in {', '.join(table.files.inside)}" if any(table.files.inside) else ""
        self.explained = (
            f"a table with {SEPARATORS[table.separator]}{encoding}, {'with' if table.header else 'without'} a header: "
            f"{what}{folder}"
        )

    def images(self, work: Path) -> Iterator[SourceImage | Unusable]:
        """In the file's order; its splits may alternate."""
        self._labels = LabelKinds()
        self._unlabelled = self._splits_without_labels()
        image = self._table.columns["image"]
        for line, row in self._rows():
            path = row[image] if image < len(row) else ""
            split, label = self._split(row), self._label(line, row)
            if split in self._unlabelled:
                continue
            if not path.strip():
                yield Unusable(split, f"{self.path.name}/{line}", f"line {line}: has no path")
                continue
            if label is None or not split:
                cell = "".join(row[self._table.columns["label"] :][:1]).strip()
                yield Unusable(split, path, f"line {line}: {without_label(cell) if label is None else 'has no split'}")
                continue
            with self._at(line):
                key = self._labels.key(label, f"line {line}")
            found = self._table.files.find(path)
            if isinstance(found, Found):
                yield SourceImage(split, key, found.name, found.size_bytes, Place("file", found.file))
            else:
                yield Unusable(split, path, f"line {line}: {found}", key)

    def fixed_classes(self) -> list[str] | None:
        try:
            return self._labels.fixed_classes()
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from None

    def notes(self) -> list[str]:
        return [
            f"{split}: skipped, because none of its {count:,} rows has a label"
            for split, count in self._unlabelled.items()
        ]

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        """The rows after the header."""
        width = 0
        for number, (line, row) in enumerate(rows(self.path, self._encoding, self._table.separator)):
            width = width or len(row)
            if any(cell.strip() for cell in row[width:]):
                raise ValueError(
                    f"{self.path}: line {line} has {len(row)} cells, but the first row has {width}: {row[:5]}; "
                    "put quotes around cells that contain a separator"
                )
            if number or not self._table.header:
                yield line, row

    def _split(self, row: list[str]) -> str:
        """The row's split; "" if it has none."""
        column = self._table.columns.get("split")
        if column is None:
            return "train"
        word = row[column].strip() if column < len(row) else ""
        split, rest = split_in(word)
        return split if split and not rest else word

    def _label(self, line: int, row: list[str]) -> int | str | None:
        column = self._table.columns["label"]
        with self._at(line):
            return read_label(row[column]) if column < len(row) else None

    @contextmanager
    def _at(self, line: int) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            raise ValueError(f"{self.path}: line {line}: {error}") from None

    def _splits_without_labels(self) -> Counter[str]:
        """The number of rows of each split without labels, except the first split, which is needed for training."""
        num_rows: Counter[str] = Counter()
        labelled: set[str] = set()
        if "split" in self._table.columns:
            for line, row in self._rows():
                split = self._split(row)
                num_rows[split] += 1
                if split not in labelled and self._label(line, row) is not None:
                    labelled.add(split)
        without = sorted(set(num_rows) - labelled - {""}, key=split_rank)
        first = min(num_rows, key=split_rank, default="")
        return Counter({split: num_rows[split] for split in without if split != first})

    @cached_property
    def _encoding(self) -> str:
        return encoding_of(self.path)

    @cached_property
    def _table(self) -> _Table:
        """The table, read with the first separator that makes sense of the first rows."""
        tables, errors = [], []
        for separator in separators(self.path, self._encoding):
            try:
                tables.append(self._read_as(separator))
            except ValueError as error:
                errors.append(error)
        if not tables:
            raise errors[0]
        return next((table for table in tables if table.sure), tables[0])

    def _read_as(self, separator: str) -> _Table:
        """Read the table with this separator. Raises ValueError if the columns are unclear."""
        first_rows = [row for _, row in islice(rows(self.path, self._encoding, separator), SAMPLE_ROWS)]
        if not first_rows:
            raise ValueError(f"{self.path}: is empty; give {LAYOUT}")
        first = first_rows[0]
        if len(first) == 1:
            between = ", ".join(SEPARATORS.values())
            raise ValueError(
                f"{self.path}: its first line {first[0]!r} has only one cell; separate cells with {between}"
            )
        asked = {"image": self.image_column, "label": self.label_column, "split": self.split_column}
        names = [_plain(cell) for cell in first]
        known = [role for role, usual in USUAL_NAMES.items() if set(usual) & set(names)]
        by_name = any(value and not value.isdecimal() for value in asked.values())
        files = Locator([self.path.parent], "" if self._encoding.startswith("utf") else self._encoding)
        is_path = any(is_image(cell) or isinstance(files.find(cell), Found) for cell in first)
        header = by_name or len(known) >= 2 or bool(known and not is_path)
        image = self._column("image", asked["image"], names if header else [], first)
        paths = [row[image] for row in first_rows if image < len(row)]
        try:
            files.look_around(paths[header:])
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from None
        there = [isinstance(files.find(path), Found) for path in paths]
        if not header and not there[0] and not is_image(paths[0]):
            if not (asked["image"] and asked["label"]):
                raise ValueError(
                    f"{self.path}: the first line is neither a known header nor a row: {paths[0]!r} is not a file. If "
                    f"it is a header, choose --image-column and --label-column from {', '.join(first)}; otherwise "
                    "correct the path"
                )
            header = any(there)  # the columns are known, and other rows have a file
        columns = {"image": image}
        for role in ("label", "split"):
            column = self._column(role, asked[role], names if header else [], first)
            if column >= 0:
                columns[role] = column
        return _Table(
            separator, [cell.strip() for cell in first] if header else [], columns, files, len(known) >= 2 or any(there)
        )

    def _column(self, role: str, asked: str, names: list[str], first: list[str]) -> int:
        """The index of one column; -1 for no split. `names`: the header's names after `_plain`, [] without a header."""
        if asked.isdecimal():
            found = int(asked) - 1
        elif asked or names:
            wanted = [_plain(asked)] if asked else USUAL_NAMES[role]
            found = next((names.index(name) for name in wanted if name in names), -1)
        else:
            found = list(USUAL_NAMES).index(role)
        if 0 <= found < len(first):
            return found
        if not asked and role == "split":
            return -1
        what = f"column {asked!r}" if asked else f"column for the {role}"
        one_hot = ""
        if role == "label" and len(first) > 3:
            one_hot = ", or, if each class has its own column, write a single column with class names"
        raise ValueError(
            f"{self.path}: has no {what} in its first line {', '.join(first)}; choose one of them with --{role}-column"
            f"{one_hot}"
        )


def _plain(name: str) -> str:
    """A column's name in lower case and without punctuation; letters of any script are kept."""
    return re.sub(r"[\W_]+", "", name.casefold())
