"""What `pack` shows while it runs: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from shard_tools.writer import Progress


@contextmanager
def progress_bar(every_s: float = 10.0) -> Iterator[Callable[[Progress], None]]:
    """A bar on a terminal, a line now and then elsewhere; both on stderr."""
    if not sys.stderr.isatty():
        yield _lines(every_s)
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("packing"), BarColumn(), TextColumn("{task.fields[text]}"), TextColumn("ETA"))
    with Bar(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("packing", total=None, text="")
        start = time.monotonic()

        def show(now: Progress) -> None:
            text = _rates(now, time.monotonic() - start)
            bar.update(task, total=max(1, now.bytes), completed=now.seen_bytes, text=text)

        yield show


def _lines(every_s: float) -> Callable[[Progress], None]:
    start = last = time.monotonic()

    def show(now: Progress) -> None:
        nonlocal last
        if time.monotonic() - last >= every_s:
            last = time.monotonic()
            print(f"packing: {_rates(now, last - start)}", file=sys.stderr, flush=True)

    return show


def _rates(now: Progress, elapsed_s: float) -> str:
    elapsed_s = max(elapsed_s, 1e-3)
    share = now.seen_bytes / max(1, now.bytes)
    images_per_s = (now.images * share - now.kept_images) / elapsed_s
    mb_per_s = (now.seen_bytes - now.kept_bytes) / elapsed_s / 1e6
    return (
        f"{share:4.0%}, {now.done_shards}/{now.shards} shards, "
        f"{max(0, images_per_s):,.0f} images/s, {max(0, mb_per_s):,.1f} MB/s"
    )
