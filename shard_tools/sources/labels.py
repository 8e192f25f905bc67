"""Labels as tables give them: numbers or text → class keys, and what the numbers say about the classes.

Numbers keep their values: label i is the i-th class, whether it has images or not. Text is a class's name.
"""

import re

from penstock.shard_tools.sources.naming import MAX_CLASSES, few_of, numbered_key

MISSING = ("", "NaN", "nan", "NA", "<NA>", "N/A", "n/a", "#N/A", "NULL", "null", "None")  # of pandas, R, Excel, SQL


def read_label(text: str) -> int | str | None:
    """The label that a text holds: a whole number ("7", "007", "7.0", "7,0"), a name, or None: `MISSING`, or -1.

    Raises:
        ValueError: it is a number and none of a class, several numbers, or bytes that are no text.
    """
    text = text.strip()
    if text in MISSING:
        return None
    if (not text.isprintable() and re.search("[\0-\x1f\x7f]", text)) or "\ufffd" in text:
        raise ValueError(f"the label {text[:40]!r} is no name: it holds what is no character of one")
    if re.fullmatch(r"\[\s*([-0-9\"'].*)?\]|[0-9]+([ ,;|]+[0-9]+){2,}|[0-9]+([ ;|]|, )[0-9]+", text):
        raise ValueError(f"the label {text[:40]!r} is a list, and an image has one class")
    if text[0] not in "+-.0123456789" or "_" in text:
        return text
    decimal_comma = re.fullmatch(r"[-+]?\d+,\d+", text)
    if decimal_comma and re.fullmatch(r"[-+]?[1-9]\d{0,2},\d{3}", text):
        raise ValueError(f"the label {text!r} may be thousands or a decimal comma; write it without a comma")
    try:
        number = float(text.replace(",", ".") if decimal_comma else text)
    except ValueError:
        return text
    if not number.is_integer():
        raise ValueError(f"the label {text!r} is a number, but not a whole one")
    return class_number(int(number))


def class_number(value: int) -> int | None:
    """A label that is a number; None for -1, which says that there is none. Raises ValueError if it is out of range."""
    if value < -1:
        raise ValueError(f"the label {value} is below 0, which is not a class number")
    if value >= MAX_CLASSES:
        raise ValueError(
            f"the label {value} is above {MAX_CLASSES - 1}, which is not a class number; if it is an identifier, "
            f"write it as a name: id{value}"
        )
    return None if value == -1 else value


def without_label(text: object) -> str:
    """What is said where `read_label` finds none: a class may be called NA, too."""
    was = f", but {text!r}" if text not in (None, "") else ""
    return f"has no label{was}{'; a class has to be written in another way' if was and text in MISSING else ''}"


def check_single(first_met: dict[str, str]) -> None:
    """Raises ValueError where a label with bars or semicolons, which names hardly have, holds one of the others, as
    "scab|rust" beside "scab": images of several classes. "hot dog" may be a class beside "hot" and "dog".
    first_met: label → where it is, for the message."""
    for label, where in first_met.items():
        for separator in ";|":
            parts = [part.strip() for part in label.split(separator)]
            if len(parts) > 1 and not first_met.keys().isdisjoint(parts):
                raise ValueError(
                    f"{where}: the label {label!r} is several of the others ({few_of(parts)}), and an image has one "
                    f"class; leave such images out, or, if it is a class, write it without {separator!r}"
                )


class LabelKinds:
    """Labels that nothing names: all numbers or all text, whichever the first is."""

    def __init__(self) -> None:
        self.highest = -1
        self._first: tuple[int | str, str] | None = None
        self._texts: dict[str, str] = {}

    def key(self, label: int | str, where: str) -> str:
        """Its class key. Raises ValueError if it is of the other kind; `where` names this place for later ones."""
        if self._first is None:
            self._first = label, where
        first, there = self._first
        if isinstance(label, int) != isinstance(first, int):
            raise ValueError(
                f"the label {label!r} follows {first!r} ({there}): numbers and names are mixed; use one kind"
            )
        if isinstance(label, str):
            self._texts.setdefault(label, where)
            return label
        self.highest = max(self.highest, label)
        return numbered_key(label)

    def fixed_classes(self) -> list[str] | None:
        """By label, None for text. Raises what `check_single` does."""
        check_single(self._texts)
        return [numbered_key(label) for label in range(self.highest + 1)] or None
