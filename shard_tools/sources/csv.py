"""A .csv or .tsv file with a row an image: its path (relative to the file), its class, and perhaps its split.

With a header, columns are found by the usual names, or as the options say. Without one they are path, label, split in
this order. Labels that are all numbers keep their order (class keys 000000, 000001, …); a mixture is an error.
"""

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path

from shard_tools.sources.base import Place, Source, SourceImage
from shard_tools.sources.naming import SPLIT_WORDS, numbered_key

LAYOUT = "a .csv or .tsv file with the columns path, label and perhaps split"
SUFFIXES = {".csv": ",", ".tsv": "\t"}
USUAL_NAMES = {
    "image": ("path", "image", "image_path", "file", "filename", "file_name", "filepath", "file_path"),
    "label": ("label", "class", "target", "category", "wnid", "class_name", "label_name"),
    "split": ("split", "subset", "set", "partition"),
}


def recognise(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in SUFFIXES


@dataclass
class Csv(Source):
    """The `Source`. Columns are names, or numbers from 1; "" is found out."""

    path: Path
    image_column: str = ""
    label_column: str = ""
    split_column: str = ""
    format: str = "csv"
    explained: str = field(init=False)

    def __post_init__(self) -> None:
        if not self.path.is_file():
            raise ValueError(f"{self.path}: not a file; give {LAYOUT}")
        header, columns = self._columns
        what = ", ".join(f"{role} in column {header[i] if header else i + 1}" for role, i in columns.items())
        self.explained = f"a table {'with' if header else 'without'} a header: {what}"

    def images(self, work: Path) -> Iterator[SourceImage]:
        """In the file's order; its splits may alternate."""
        header, columns = self._columns
        image, label, split = columns["image"], columns["label"], columns.get("split")
        root = os.fspath(self.path.parent)
        numbers: bool | None = None
        for number, (line, row) in enumerate(self._rows()):
            if number == 0 and header:
                continue
            missing = [role for role, i in columns.items() if i >= len(row) or not row[i].strip()]
            if missing:
                raise ValueError(f"{self.path}: line {line} has no {missing[0]}; complete or remove it")
            name, key = row[image], row[label].strip()
            is_number = key.isascii() and key.isdecimal()
            if numbers is None:
                numbers = is_number
            if is_number != numbers:
                was = "numbers" if numbers else "names"
                raise ValueError(
                    f"{self.path}: line {line} has the label {key!r}, those before are {was}; use one kind"
                )
            file = os.path.join(root, name)
            try:
                size = os.stat(file).st_size  # noqa: PTH116 a third of the time of Path.stat
            except OSError as error:
                raise ValueError(
                    f"{self.path}: line {line}: {file}: {error.strerror}; mend the path or remove the line"
                ) from None
            what = row[split].strip() if split is not None else "train"
            yield SourceImage(
                SPLIT_WORDS.get(what.lower(), what),
                numbered_key(int(key)) if is_number else key,
                name,
                size,
                Place("file", file),
            )

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        """(line number, cells) of every row that is not blank."""
        with open(self.path, encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
            rows = csv.reader(stream, delimiter=SUFFIXES.get(self.path.suffix.lower(), ","), strict=True)
            try:
                for row in rows:
                    if any(row):
                        yield rows.line_num, row
            except csv.Error as error:
                raise ValueError(f"{self.path}: line {rows.line_num} is no such row ({error})") from None

    @cached_property
    def _columns(self) -> tuple[list[str], dict[str, int]]:
        """The header ([] if there is none), and the places of image, label and perhaps split."""
        first = next((row for _, row in self._rows()), None)
        if first is None:
            raise ValueError(f"{self.path}: is empty; give {LAYOUT}")
        asked = {"image": self.image_column, "label": self.label_column, "split": self.split_column}
        names = [cell.strip().lower() for cell in first]
        usual = set(chain(*USUAL_NAMES.values()))
        named = any(value and not value.isdecimal() for value in asked.values())
        header = first if named or len(usual & set(names)) >= 2 else []
        columns: dict[str, int] = {}
        for position, (role, value) in enumerate(asked.items()):
            if value.isdecimal():
                found = int(value) - 1
            elif value or header:
                found = next(
                    (names.index(n) for n in ([value.lower()] if value else USUAL_NAMES[role]) if n in names), -1
                )
            else:
                found = position
            if 0 <= found < len(first):
                columns[role] = found
            elif value or role != "split":
                what = f"column {value!r}" if value else f"column for the {role}"
                raise ValueError(
                    f"{self.path}: has no {what} in its first line {first[:5]}; choose it with --{role}-column"
                )
        return header, columns
