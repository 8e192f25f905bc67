"""Run a packing command: show progress, stop on a signal, print errors as one line, and print a closing summary."""

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click

from penstock.shard_tools.execute import PackProgress
from penstock.shard_tools.report import closing, progress_bar
from penstock.shard_tools.sources.naming import MAX_IGNORED
from penstock.shard_tools.writer import Packed
from penstock.shards.format import escape


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Print a ValueError as one line, without a traceback."""
    try:
        yield
    except ValueError as error:
        raise click.ClickException(str(error)) from None


def show_shards(done: int, shards: int) -> None:
    """Show the progress of a command that reads shards one by one."""
    if sys.stderr.isatty():
        click.echo(f"\r{done}/{shards} shards" if done < shards else "\r\033[K", nl=False, err=True)


def run(work: Callable[[Callable[[PackProgress], None]], Packed], out: Path | str) -> None:
    """Run `work` (a `pack` that accepts a `progress`) and report the result; exits with 1 or 130 if it failed."""
    start = time.monotonic()
    packed = _interruptible(work)
    if packed.ignored:
        names = ", ".join(escape(name) for name in packed.ignored[:5]) + (" …" if len(packed.ignored) > 5 else "")
        click.echo(f"ignored {_entries(len(packed.ignored))}: {names}", err=True)
    if packed.already_complete:
        click.echo(f"{out}: already complete, nothing to do")
        return
    for name, reason in packed.rejected.first:
        click.echo(f"skipped {escape(name)}: {reason}", err=True)
    for line in packed.duplicates.shown:
        click.echo(f"duplicate image: {escape(line)}", err=True)
    click.echo(closing(packed, time.monotonic() - start))


def _entries(count: int) -> str:
    if count == 1:
        return "1 entry that is not an image of a class"
    return f"{count:,} entries{' (or more)' if count >= MAX_IGNORED else ''} that are not images of a class"


def _interruptible(work: Callable[[Callable[[PackProgress], None]], Packed]) -> Packed:
    """The result of `work`. On Ctrl-C or SIGTERM, `work` stops at its next progress call and the process exits."""
    state = PackProgress()
    stop = False

    def interrupt(signum: int, frame: FrameType | None) -> None:
        """Make a running pack stop at `progress`: an exception inside concurrent.futures could leave its locks held."""
        nonlocal stop
        if stop or not state.shards:
            raise KeyboardInterrupt
        stop = True

    handlers = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with one_line_errors(), progress_bar() as show:

            def progress(now: PackProgress) -> None:
                nonlocal state
                state = now
                show(now)
                if stop:
                    raise KeyboardInterrupt

            return work(progress)
    except KeyboardInterrupt:
        done = f"kept {state.done_shards} of {state.shards} shards" if state.shards else "no shard is finished"
        click.echo(f"Stopped: {done}. Run the same command again to resume.", err=True)
        sys.exit(130)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
