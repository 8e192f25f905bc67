"""Read the text of a .csv or .tsv file: its encoding, its separator, its rows."""

import csv
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
MARKS = {
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16",
}  # fmt: skip
SAMPLE_ROWS = 50


def encoding_of(path: Path) -> str:
    """Detect the encoding by the byte order mark; otherwise UTF-8, Windows-1252, or Latin-1, in this order.

    If some non-ASCII text is valid UTF-8, the file is UTF-8 despite a few invalid bytes: those may be in file names.

    Raises:
        ValueError: the file has zero bytes. OSError: it cannot be read.
    """
    letters, others = False, b""
    with open(path, "rb") as stream:
        start = stream.read(4096)
        for mark, encoding in MARKS.items():
            if start.startswith(mark):
                return encoding
        if b"\0" in start:
            raise ValueError(f"{path}: not UTF-8 text (UTF-16 without a byte order mark?); save it as UTF-8")
        stream.seek(0)
        for line in stream:
            if not line.isascii():
                try:
                    line.decode()
                    letters = True
                except UnicodeDecodeError:
                    others += line if len(others) < 1 << 20 else b""
    if letters or not others:
        return "utf-8"
    try:
        others.decode("cp1252")
    except UnicodeDecodeError:
        return "latin-1"
    return "cp1252"


def rows(path: Path, encoding: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, cells) for every row that is not blank. A first line `sep=;`, as Excel writes it, is skipped.

    Raises:
        ValueError: a row is malformed, or the text does not have this encoding.
    """
    errors = "surrogateescape" if encoding.startswith("utf-8") else "strict"
    with open(path, encoding=encoding, errors=errors, newline="") as stream:
        reader = csv.reader(stream, delimiter=separator, strict=True, skipinitialspace=True)
        try:
            for row in reader:
                if any(row) and not (reader.line_num == 1 and re.fullmatch("sep=.?", separator.join(row).strip())):
                    yield reader.line_num, row
        except csv.Error as error:
            raise ValueError(f"{path}: line {reader.line_num} is malformed ({error})") from None
        except UnicodeError as error:
            raise ValueError(f"{path}: not valid {encoding} ({error}); save it as UTF-8") from None


def separators(path: Path, encoding: str) -> list[str]:
    """The separators that split the first row, best first: those that give most rows the same width. If two are equal,
    the file's suffix decides."""
    usual = "\t" if path.suffix.lower() == ".tsv" else ","
    alike: dict[str, int] = {}
    for separator in sorted(SEPARATORS, key=lambda separator: separator != usual):
        try:
            widths = [len(row) for _, row in islice(rows(path, encoding, separator), SAMPLE_ROWS)]
        except ValueError:
            continue
        if widths and widths[0] > 1:
            alike[separator] = widths.count(widths[0])
    return sorted(alike, key=lambda separator: -alike[separator]) or [usual]
