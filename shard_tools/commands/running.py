"""How a command packs: a progress display, stopping when told to, errors in one line, a closing summary."""

import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import click

from shard_tools.execute import PackProgress
from shard_tools.report import closing, progress_bar
from shard_tools.writer import Packed
from shards.format import escape
from shards.remote import is_url


class LocalPath(click.ParamType):
    """A path; a URL is refused in words."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        if is_url(value):
            self.fail(f"{value} is a URL, and this command reads disks only: copy it to one (URLs: pack OUT, info)")
        return Path(value)


class PathOrUrl(click.ParamType):
    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path | str:
        return str(value) if is_url(value) else Path(value)


def run(work: Callable[[Callable[[PackProgress], None]], Packed], out: Path | str) -> None:
    """Run `work` (a `pack` that takes a `progress`) and report how it ended; exits with 1 or 130 if it failed."""
    state = PackProgress()
    stop = False
    start = time.monotonic()

    def interrupt(signum: int, frame: FrameType | None) -> None:
        """Raising anywhere in concurrent.futures can leave its locks held, so a running pack stops at `progress`."""
        nonlocal stop
        if stop or not state.shards:
            raise KeyboardInterrupt
        stop = True

    handlers = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with progress_bar() as show:

            def progress(now: PackProgress) -> None:
                nonlocal state
                state = now
                show(now)
                if stop:
                    raise KeyboardInterrupt

            packed = work(progress)
    except KeyboardInterrupt:
        done = f"{state.done_shards} of {state.shards} shards are done and kept" if state.shards else "no shard is done"
        click.echo(f"Stopped: {done}; run the same command again to go on.", err=True)
        sys.exit(130)
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if packed.ignored:
        names = ", ".join(escape(name) for name in packed.ignored[:5]) + (" …" if len(packed.ignored) > 5 else "")
        what = "1 entry" if len(packed.ignored) == 1 else f"{len(packed.ignored):,} entries (or more)"
        what = what if len(packed.ignored) >= 1000 else what.removesuffix(" (or more)")
        click.echo(f"ignored {what}, not images of a class: {names}", err=True)
    if packed.already_complete:
        click.echo(f"{out}: already complete, nothing to do")
        return
    for name, reason in packed.rejected.first:
        click.echo(f"skipped {escape(name)}: {reason}", err=True)
    for line in packed.duplicates.shown:
        click.echo(f"the same image: {escape(line)}", err=True)
    click.echo(closing(packed, time.monotonic() - start))
