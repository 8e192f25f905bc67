"""Declare command-line options in the types of a settings dataclass, together with the text that `--help` shows.

    @dataclass(frozen=True)
    class Settings:
        seed: Annotated[int, Option("Seed for the shuffle.", least=0, shown=True)] = 0

`commands/options.py` builds the command line of such a class. This module does not import click, so workers do not
need click either.
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Option:
    """The command-line declaration of one field.

    flag: the option's name, if it differs from the field's. kind: text → value; raises ValueError or OSError.
    least, most: bounds of a number. shown: whether `--help` shows the default, or the text to show for it.
    """

    help: str = ""
    flag: str = ""
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    least: int | None = None
    most: int | None = None
    kind: Callable[[str], object] | None = None
    shown: bool | str = False
