"""What is wrong at the start of a run, which every rank finds: one line, from rank 0."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

RANK_0_SPEAKS_S = 30.0  # by then its launcher has ended the other ranks, where they all met the same


class Refused(click.ClickException):
    """What is wrong at the start, which every rank finds: rank 0 tells it."""

    def show(self, file: Any = None) -> None:
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
