"""Convert labels from tables, numbers or text, to class keys.

Numbers keep their values: label i is class i, with or without images. Text is the name of a class.
"""

import re

from penstock.shard_tools.sources.naming import MAX_CLASSES, few_of, numbered_key

MISSING = ("", "NaN", "nan", "NA", "<NA>", "N/A", "n/a", "#N/A", "NULL", "null", "None")  # pandas, R, Excel, SQL


def read_label(text: str) -> int | str | None:
    """Parse a label: a whole number ("7", "007", "7.0", "7,0"), a name, or None for -1 and anything in `MISSING`.

    Raises:
        ValueError: it is a number that cannot be a class, several numbers, or bytes that are not text.
    """
    text = text.strip()
    if text in MISSING:
        return None
    if (not text.isprintable() and re.search("[\0-\x1f\x7f]", text)) or "\ufffd" in text:
        raise ValueError(f"the label {text[:40]!r} has control characters or bytes that are not text; correct it")
    if re.fullmatch(r"\[\s*([-0-9\"'].*)?\]|[0-9]+([ ,;|]+[0-9]+){2,}|[0-9]+([ ;|]|, )[0-9]+", text):
        raise ValueError(f"the label {text[:40]!r} is a list, but an image must have one class")
    if text[0] not in "+-.0123456789" or "_" in text:
        return text
    decimal_comma = re.fullmatch(r"[-+]?\d+,\d+", text)
    if decimal_comma and re.fullmatch(r"[-+]?[1-9]\d{0,2},\d{3}", text):
        raise ValueError(
            f"the label {text!r} has a comma that may separate thousands or decimals; write it without a comma"
        )
    try:
        number = float(text.replace(",", ".") if decimal_comma else text)
    except ValueError:
        return text
    if not number.is_integer():
        raise ValueError(f"the label {text!r} is a number, but not a whole one")
    return class_number(int(number))


def class_number(value: int) -> int | None:
    """Check a numeric label; returns None for -1, which means no label. Raises ValueError if it is out of range."""
    if value < -1:
        raise ValueError(f"the label {value} is below 0; class numbers begin at 0")
    if value >= MAX_CLASSES:
        raise ValueError(
            f"the label {value} is above {MAX_CLASSES - 1}, the largest class number; if it is an identifier, "
            f"write it as a name: id{value}"
        )
    return None if value == -1 else value


def without_label(text: object) -> str:
    """The message if `read_label` finds no label. It warns about text such as NA, which could be meant as a class."""
    was = f", but {text!r}" if text not in (None, "") else ""
    return f"has no label{was}{'; if this is a class, use another name for it' if was and text in MISSING else ''}"


def check_single(first_met: dict[str, str]) -> None:
    """Raises ValueError if a label with bars or semicolons contains another label, such as "scab|rust" and "scab": the
    image has several classes. Spaces do not count: "hot dog" may be a class beside "hot" and "dog".

    first_met: label → where it first occurs, for the message.
    """
    for label, where in first_met.items():
        for separator in ";|":
            parts = [part.strip() for part in label.split(separator)]
            if len(parts) > 1 and not first_met.keys().isdisjoint(parts):
                raise ValueError(
                    f"{where}: the label {label!r} combines several labels ({few_of(parts)}), but an image must have "
                    f"one class; remove such images or, if it is a single class, write it without {separator!r}"
                )


class LabelKinds:
    """Labels without a list of class names: all numbers or all text, as the first one is."""

    def __init__(self) -> None:
        self.highest = -1
        self._first: tuple[int | str, str] | None = None
        self._texts: dict[str, str] = {}

    def key(self, label: int | str, where: str) -> str:
        """The class key of a label. Raises ValueError if it is of the other kind. `where`: its place, for messages."""
        if self._first is None:
            self._first = label, where
        first, there = self._first
        if isinstance(label, int) != isinstance(first, int):
            raise ValueError(
                f"numbers and names are mixed: the label {label!r}, but {first!r} before ({there}); use one kind"
            )
        if isinstance(label, str):
            self._texts.setdefault(label, where)
            return label
        self.highest = max(self.highest, label)
        return numbered_key(label)

    def fixed_classes(self) -> list[str] | None:
        """The class keys by label; None if labels are text. Raises what `check_single` raises."""
        check_single(self._texts)
        return [numbered_key(label) for label in range(self.highest + 1)] or None
