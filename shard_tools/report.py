"""The output of packing: a progress display on stderr, and the closing summary."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from penstock.shard_tools.describe import UNTURNED, counted, stored_as_pixels
from penstock.shard_tools.duplicates import DUPLICATES_FILE
from penstock.shard_tools.execute import PackProgress
from penstock.shard_tools.rejected import REJECTED_FILE
from penstock.shard_tools.writer import Packed


@contextmanager
def progress_bar(every_s: float = 10.0) -> Iterator[Callable[[PackProgress], None]]:
    """Show a bar on a terminal, and elsewhere a line every `every_s` seconds."""
    if not sys.stderr.isatty():
        yield _lines(every_s)
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"), TextColumn("ETA"))
    with Bar(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None, text="")
        start = time.monotonic()

        def show(now: PackProgress) -> None:
            nonlocal start
            if not now.shards:
                bar.update(task, text=_before(now))
                start = time.monotonic()  # of the packing
                return
            text = _rates(now, time.monotonic() - start)
            bar.update(task, description="packing", total=max(1, now.bytes), completed=now.seen_bytes, text=text)

        yield show


def _lines(every_s: float) -> Callable[[PackProgress], None]:
    start = last = time.monotonic()

    def show(now: PackProgress) -> None:
        nonlocal start, last
        if not now.shards:
            start = time.monotonic()
        if time.monotonic() - last >= every_s:
            last = time.monotonic()
            text = f"packing: {_rates(now, last - start)}" if now.shards else _before(now)
            print(text, file=sys.stderr, flush=True)

    return show


def _before(now: PackProgress) -> str:
    """The progress of downloading and listing, before packing begins."""
    if now.fetched_bytes:
        return f"downloading: {now.fetched_bytes / 1e9:.1f} of {now.bytes / 1e9:.1f} GB"
    return f"listing: {now.listed:,} images"


def _rates(now: PackProgress, elapsed_s: float) -> str:
    """The progress and rates, in images and bytes of the source; rates exclude the work of an earlier run."""
    elapsed_s = max(elapsed_s, 1e-3)
    share = now.seen_bytes / max(1, now.bytes)
    images_per_s = max(0.0, now.images * share - now.kept_images) / elapsed_s
    bytes_per_s = max(0, now.seen_bytes - now.kept_bytes) / elapsed_s
    left_s = (now.bytes - now.seen_bytes) / bytes_per_s if bytes_per_s else 0.0
    return (
        f"{share:4.0%}, {now.done_shards}/{now.shards} shards, {images_per_s:,.0f} images/s, "
        f"{bytes_per_s / 1e6:,.1f} MB/s, {_duration(left_s)} remaining"
    )


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def closing(packed: Packed, elapsed_s: float) -> str:
    """The closing summary: what was packed, and what the user should check."""
    made, state = packed.shard_set.made, packed.progress
    root = packed.shard_set.place
    classes = packed.shard_set.classes
    shown = ", ".join(info.name for info in classes[:5]) + (", …" if len(classes) > 5 else "")
    lines = [f"{root}: {counted(len(classes), 'class', 'classes')} ({shown})"]
    for name, split in packed.shard_set.splits.items():
        size = sum(shard.bytes for shard in split.shards)
        pixels = stored_as_pixels(split.samples, made)
        stored = f", {pixels['samples']:,} of them stored as pixels" if pixels["samples"] else ""
        held = f"{counted(len(split), 'image')} in {counted(len(split.shards), 'shard')}"
        lines.append(f"  {name}: {held}, {size / 1e6:,.1f} MB{stored}")
    if isinstance(converted := made["converted"], dict) and converted:
        lines.append("  re-encoded: " + ", ".join(f"{count:,} {kind}" for kind, count in converted.items()))
    if made["unturned"]:
        lines.append(f"  {made['unturned']:,} {UNTURNED}; --apply-orientation applies it")
    if packed.rejected.count:
        lines.append(f"  skipped {packed.rejected.count:,} bad image(s), see {root}/{REJECTED_FILE}")
    found = packed.duplicates
    if found.copies:
        lines.append(f"  {found.copies:,} image(s) are duplicates of others")
    if found.label_conflicts or found.split_conflicts:
        lines.append(
            f"  {found.label_conflicts:,} image(s) have more than one label, {found.split_conflicts:,} are in more "
            f"than one split, see {root}/{DUPLICATES_FILE}"
        )
    num_images, size = state.images - state.kept_images, state.bytes - state.kept_bytes
    kept = f"; kept {counted(state.kept_shards, 'shard')} of an earlier run" if state.kept_shards else ""
    lines.append(
        f"  in {_duration(elapsed_s)}: {num_images / elapsed_s:,.0f} images/s, {size / elapsed_s / 1e6:,.1f} MB/s "
        f"from source files{kept}"
    )
    return "\n".join(lines)
