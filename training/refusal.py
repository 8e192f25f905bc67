"""What is wrong, told in one line; at the start of a run, where every rank finds it, by rank 0."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import click

RANK_0_SPEAKS_S = 30.0  # by then its launcher has ended the other ranks, where they all met the same


class Refused(click.ClickException):
    """What is wrong at the start, which every rank finds: rank 0 tells it."""

    def show(self, file: IO[str] | None = None) -> None:
        let_rank_0_speak()
        super().show(file)


def let_rank_0_speak() -> None:
    """On other ranks: wait to be ended, with the same exit status. If nobody does that the fault is this rank's."""
    if int(os.environ.get("RANK", 0)):
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        time.sleep(RANK_0_SPEAKS_S)


@contextmanager
def refusing() -> Iterator[None]:
    """Turns what is wrong at the start into one line."""
    try:
        yield
    except ValueError as error:
        raise Refused(str(error)) from None
    except OSError as error:
        raise Refused(f"{error.filename}: {error.strerror or error}") from None


@contextmanager
def told_in_a_line(path: Path) -> Iterator[None]:
    """Turns what is wrong in a command into one line; `path` stands for the file that an OSError does not name."""
    try:
        yield
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"{error.filename or path}: {error.strerror or error}") from None


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).strip().partition("\n")[0] or type(error).__name__
