"""What every command of the project does first: make stdout and stderr take any text, and end quietly when they close.

A terminal may know fewer characters than are printed (Latin-1, ASCII), file names may hold bytes that are no text, and
a reader may go away (`… | head -1`). None of them is a reason for a traceback, or for work that ends.

    @click.group(cls=terminal.Group)    a program's commands
    @click.command(cls=terminal.Command)    a program that is one command
"""

import codecs
import io
import os
import sys
import warnings
from typing import Any

import click

from penstock.shard_tools import folders

# What the project's own lines hold beyond ASCII; other characters become \N, \xNN or \uNNNN.
PLAIN = {"…": "...", "→": "->", "–": "-", "—": "-", "×": "x", "·": ".", "≥": ">=", "≤": "<=", "µ": "u", "²": "2",
         "³": "3", "°": " degrees", "√": "sqrt", "━": "-", "─": "-", "│": "|", "█": "#", "▶": ">"}  # fmt: skip
ERRORS = "penstock-plain"  # the name of `plain` among Python's error handlers
ASCII = "penstock_ascii"  # ASCII by a name that click does not take for a mistake, to write UTF-8 instead


def plain(error: UnicodeError) -> tuple[str | bytes, int]:
    """An error handler for encoders: something near for each character that the encoding lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_near, error.object[error.start : error.end])), error.end


def _near(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte of a file name that is no UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return PLAIN.get(character) or character.encode("ascii", "backslashreplace").decode()


def _find(name: str) -> codecs.CodecInfo | None:
    ascii = codecs.lookup("ascii")
    reader, writer = ascii.streamreader, ascii.streamwriter
    steps = ascii.incrementalencoder, ascii.incrementaldecoder
    return codecs.CodecInfo(ascii.encode, ascii.decode, reader, writer, *steps, name=ASCII) if name == ASCII else None


codecs.register_error(ERRORS, plain)
codecs.register(_find)


def as_shown(text: str) -> str:
    """What stdout makes of it: for tables, whose columns must be as wide."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, ERRORS).decode(encoding)


class _Output(io.TextIOWrapper):
    """stdout or stderr of this process; where it cannot be written to any more the program ends, with 1."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self._end(error)
            raise

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._end(error)
            raise

    def _end(self, error: OSError) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())  # for what is still in the buffer
        if not isinstance(error, BrokenPipeError) and sys.stderr is not self:  # a full disk, which is worth a line
            print(f"Error: the output cannot be written: {error.strerror}", file=sys.stderr)
        sys.exit(1)


def prepare() -> None:
    """Make stdout and stderr what the module's docstring says, and see to what a container may lack (`folders`), before
    a command imports torch. To be called again does no harm."""
    _open_closed()
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of damaged metadata, which concern no pixel
    folders.settle()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, io.TextIOWrapper):
            continue  # a program's own
        encoding = ASCII if codecs.lookup(stream.encoding).name == "ascii" else stream.encoding
        stream.reconfigure(encoding=encoding, errors=ERRORS)
        if stream is getattr(sys, f"__{name}__"):
            buffering = {"line_buffering": stream.line_buffering, "write_through": stream.write_through}
            setattr(sys, name, _Output(stream.buffer, encoding=encoding, errors=ERRORS, **buffering))


def _open_closed() -> None:
    """Where a standard stream is closed (`>&-`), /dev/null takes its place and, as the lowest that is free, its number.
    Else a file that is opened later would have that, and what a library prints would be written into it."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            stream = open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8")  # noqa: SIM115
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)


class _Prepared:
    """The `main` of a click command that is a program."""

    def main(self, *args: Any, **more: Any) -> Any:
        prepare()
        try:
            return super().main(*args, **more)  # type: ignore[misc]
        finally:
            sys.stdout.flush()  # now, while a closed pipe can still be met without a traceback


class Command(_Prepared, click.Command):
    """A program that is one command."""


class Group(_Prepared, click.Group):
    """A program with several commands."""
