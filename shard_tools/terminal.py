"""Prepare stdout and stderr for every command: they accept any text, and the program exits quietly if they close.

A terminal may not support all printed characters (Latin-1, ASCII), file names may contain bytes that are not text, and
the reader of a pipe may exit early (`… | head -1`). None of these may cause a traceback. The first two may not stop the
program either.

    @click.group(cls=terminal.Group)    a program's commands
    @click.command(cls=terminal.Command)    a program that is one command
"""

import codecs
import difflib
import io
import math
import os
import sys
import warnings
from typing import Any

import click

from penstock.shard_tools import folders

# The non-ASCII characters in the project's own messages; other characters become \N, \xNN or \uNNNN.
PLAIN = {"…": "...", "→": "->", "–": "-", "—": "-", "×": "x", "·": ".", "≥": ">=", "≤": "<=", "µ": "u", "²": "2",
         "³": "3", "°": " degrees", "√": "sqrt", "━": "-", "─": "-", "│": "|", "█": "#", "▶": ">"}  # fmt: skip
ERRORS = "penstock-plain"  # the name of `plain` among Python's error handlers
ASCII = "penstock_ascii"  # ASCII under another name: if the name is "ascii", click writes UTF-8 instead


def plain(error: UnicodeError) -> tuple[str | bytes, int]:
    """An error handler for encoders: replace each character that the encoding lacks by a similar one."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_near, error.object[error.start : error.end])), error.end


def _near(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte of a file name that is not UTF-8
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
    """The text as stdout will print it: for tables, to compute the width of columns."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, ERRORS).decode(encoding)


class _Output(io.TextIOWrapper):
    """stdout or stderr of this process; if it can no longer be written, the program exits with 1."""

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
    """Set up stdout and stderr as the module's docstring describes, and replace what a container may lack (`folders`).

    Call this before a command imports torch. A second call does no harm."""
    _open_closed()
    warnings.filterwarnings("ignore", module=r"PIL\.")  # warnings about damaged metadata, which do not concern pixels
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
    """Replace a closed standard stream (`>&-`) by /dev/null, which gets the same descriptor: the lowest free one.
    Otherwise a file opened later would get that descriptor, and a library's output would end up in that file."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            stream = open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8")  # noqa: SIM115
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)


class FloatRange(click.FloatRange):
    """A finite number in a range. click's own type lets NaN and infinity pass."""

    name = "number"  # for "'x' is not a valid number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


class _Prepared:
    """The `main` of a click command that is a program."""

    def main(self, *args: Any, **more: Any) -> Any:
        prepare()
        try:
            return super().main(*args, **more)  # type: ignore[misc]
        finally:
            sys.stdout.flush()  # now, while we can still handle a closed pipe without a traceback


class Command(_Prepared, click.Command):
    """A program that is one command."""


class Group(_Prepared, click.Group):
    """A program with several commands. For an unknown one, the error proposes those with a similar name."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if self.get_command(ctx, name) is None and not ctx.resilient_parsing:
            near = difflib.get_close_matches(name, self.list_commands(ctx))
            if near:  # click's own proposals lack commands that are imported when called
                raise click.UsageError(f"No such command {name!r}. Did you mean {' or '.join(near)}?", ctx)
        return super().resolve_command(ctx, args)
