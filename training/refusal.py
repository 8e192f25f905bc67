"""Report errors in one line. At the start of a run, when every rank finds the same error, only rank 0 reports it."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import click

RANK_0_SPEAKS_S = 30.0  # by then the launcher has ended the other ranks, if all of them found the same error


class Refused(click.ClickException):
    """An error at the start, which every rank finds. Rank 0 reports it."""

    def show(self, file: IO[str] | None = None) -> None:
        let_rank_0_speak()
        super().show(file)


def let_rank_0_speak() -> None:
    """On other ranks, wait to be ended, with the same exit status. If that does not happen, only this rank failed."""
    if int(os.environ.get("RANK", 0)):
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        time.sleep(RANK_0_SPEAKS_S)


@contextmanager
def refusing() -> Iterator[None]:
    """Turn an error at the start into one line."""
    try:
        yield
    except ValueError as error:
        raise Refused(str(error)) from None
    except OSError as error:
        raise Refused(f"{error.filename}: {error.strerror or error}") from None


@contextmanager
def told_in_a_line(path: Path) -> Iterator[None]:
    """Turn an error in a command into one line. `path` is named if an OSError names no file."""
    try:
        yield
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"{error.filename or path}: {error.strerror or error}") from None


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).strip().partition("\n")[0] or type(error).__name__
