"""Labels as tables give them: numbers or text → class keys, and what the numbers say about the classes.

Numbers keep their values: label i is the i-th class, whether it has images or not. Text is a class's name.
"""

import re

from shard_tools.sources.naming import MAX_CLASSES, numbered_key


def read_label(text: str) -> int | str | None:
    """The label that a cell of text holds: a whole number ("7", "007", "7.0", "7,0"), a name, or None: blank, or -1.

    Raises:
        ValueError: it is a number, and none of a class.
    """
    text = text.strip()
    if not text or text[0] not in "+-.0123456789" or "_" in text:
        return text or None
    decimal_comma = re.fullmatch(r"[-+]?\d+,\d+", text)
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


class LabelKinds:
    """Labels that nothing names: all numbers or all text, whichever the first is."""

    def __init__(self) -> None:
        self.highest = -1
        self._first: tuple[int | str, str] | None = None

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
            return label
        self.highest = max(self.highest, label)
        return numbered_key(label)

    def fixed_classes(self) -> list[str] | None:
        return [numbered_key(label) for label in range(self.highest + 1)] or None
