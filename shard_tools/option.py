"""Options declared once: the type of a field of a dataclass of settings carries the text that `--help` shows for it.

    @dataclass(frozen=True)
    class Settings:
        seed: Annotated[int, Option("Of the shuffle.", least=0, shown=True)] = 0

`commands/options.py` makes the command line of such a class. This module knows no click, so that workers need none.
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Option:
    """What a command line needs to know of a field.

    flag: its name there, if it is not the field's. kind: text → value; raises ValueError, or OSError.
    least, most: bounds of a number. shown: whether `--help` shows the default, or the text that it shows for it.
    """

    help: str = ""
    flag: str = ""
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    least: int | None = None
    most: int | None = None
    kind: Callable[[str], object] | None = None
    shown: bool | str = False
