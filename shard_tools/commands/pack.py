"""The commands that make datasets: pack, demo. Input: the command line; errors are one line, exit 1."""

import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import click

from shard_tools.describe import describe, summary
from shard_tools.encode import MAX_PIXELS
from shard_tools.format import escape
from shard_tools.report import progress_bar
from shard_tools.writer import REJECTED_FILE, SAMPLES_PER_SHARD, Packed, Progress, pack

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


class Size(click.ParamType):
    """A number of bytes with an optional unit: 256MiB, 1GB, 500000."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([kmgt]i?)?b?\s*", str(value), re.IGNORECASE)
        size = int(float(match[1]) * UNITS[(match[2] or "").lower()]) if match else 0
        if size < 1:
            self.fail(f"{value!r} is not a size; write e.g. 256MiB, 1GB or 500000 (bytes)", param, ctx)
        return size


@click.command("pack")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--workers", type=click.IntRange(min=1), help="Worker processes.  [default: one for each CPU core]")
@click.option("--samples-per-shard", type=click.IntRange(min=1), default=SAMPLES_PER_SHARD, show_default=True)
@click.option(
    "--shard-size", type=Size(), default="1GiB", show_default=True, help="Bytes, or with a unit: 256MiB, 1GB."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the global shuffle.")
@click.option(
    "--on-bad",
    type=click.Choice(["fail", "skip"]),
    default="fail",
    show_default=True,
    help="What to do about images that cannot be decoded: stop, or leave them out and list them in OUT/rejected.tsv.",
)
@click.option(
    "--max-pixels",
    type=click.IntRange(min=1),
    default=MAX_PIXELS,
    show_default=True,
    help="An image with more pixels counts as bad.",
)
def pack_command(source: Path, out: Path, workers: int | None, **settings: Any) -> None:
    """Pack the images of SOURCE into shards in OUT.

    SOURCE has train/CLASS/IMAGE and val/CLASS/IMAGE (test/ too, if there is one), or just CLASS/IMAGE, which becomes
    the split "train". Images may lie deeper below CLASS. They are .jpg, .jpeg, .png, .webp or .bmp in any case; the
    content decides, not the name. Gray and colour JPEGs are copied untouched once they are seen to decode; anything
    else becomes an RGB JPEG (quality 95, 4:4:4). EXIF orientation is never applied, as in PIL and torchvision.

    OUT gets SPLIT-000000.tar with an .idx for DALI, SPLIT.samples.npy, SPLIT.sources.txt, and dataset.json when all
    is done. Any WebDataset reader reads the tars. A shard is full at --samples-per-shard or --shard-size, whichever
    comes first. The images are shuffled over all shards; the same SOURCE and seed give the same bytes whatever the
    number of workers. If it is interrupted or killed, run the same command again: finished shards are kept.

    \b
    Example:
      python -m shard_tools pack imagenet data/imagenet --workers 16 --shard-size 512MiB --on-bad skip
    """
    _run(lambda progress: pack(source, out, workers=workers, progress=progress, **settings), out)


@click.command("demo")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--workers", type=click.IntRange(min=1), help="Worker processes.  [default: one for each CPU core]")
@click.option("--num-train", type=click.IntRange(min=10), default=3000, show_default=True, help="Training images.")
@click.option("--num-val", type=click.IntRange(min=10), default=1000, show_default=True, help="Validation images.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
def demo_command(out: Path, workers: int | None, num_train: int, num_val: int, seed: int) -> None:
    """Make a small image set in OUT: 10 classes of generated pictures, packed as by `pack`.

    \b
    Example:
      python -m shard_tools demo data/demo
    """
    from shard_tools.demo import make_demo

    counts = {"train": num_train, "val": num_val}
    _run(lambda progress: make_demo(out, counts, seed, workers, progress=progress), out)


def _run(work: Callable[[Callable[[Progress], None]], Packed], out: Path) -> None:
    """Run `pack` with a progress bar and report how it ended."""
    state = Progress()
    stop = False

    def interrupt(signum: int, frame: FrameType | None) -> None:
        """Raising anywhere in concurrent.futures can leave its locks held, so a running pack stops at `progress`."""
        nonlocal stop
        if stop or not state.shards:
            raise KeyboardInterrupt
        stop = True

    handlers = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with progress_bar() as show:

            def progress(now: Progress) -> None:
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
        raise click.ClickException(_printable(str(error))) from None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if packed.ignored_line:
        click.echo(_printable(packed.ignored_line), err=True)
    if packed.already_complete:
        click.echo(f"{out}: already complete, nothing to do")
        return
    for name, reason in packed.rejected[:10]:
        click.echo(_printable(f"skipped {escape(name)}: {reason}"), err=True)
    if packed.rejected:
        click.echo(f"skipped {len(packed.rejected)} bad image(s) in all, see {out / REJECTED_FILE}", err=True)
    click.echo(summary(describe(packed.shard_set)))


def _printable(text: str) -> str:
    """File names may hold bytes that no terminal takes."""
    return text.encode("utf-8", "backslashreplace").decode()


COMMANDS = (pack_command, demo_command)
