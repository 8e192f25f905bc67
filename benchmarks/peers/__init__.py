"""`bench.py peers`: compare this project's loader with others, each in its own process and, if needed, environment.

All get the same images, crop distribution, output format and cores. A program with the wrong output is not timed.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from penstock.benchmarks import images as synthetic
from penstock.benchmarks.options import TIMING, with_options
from penstock.benchmarks.peers.registry import OURS, PEERS, PIXELS
from penstock.benchmarks.tables import rates_cell, ratio_cell
from penstock.benchmarks.text import tabulated, wrapped
from penstock.recipes import DEMO_DATA
from penstock.shard_tools.demo import ensure_demo
from penstock.shards.format import ShardSet

if TYPE_CHECKING:
    from penstock.benchmarks.record import Result

MANY_THREADS = 4
COLUMNS = ("program", "version", "workers", "images/s", "ours/theirs", "memory MB", "first batch s", "disk MB")


def numbers(context: click.Context, option: click.Parameter, value: str | None) -> tuple[int, ...]:
    """Parse "1,2,4" into numbers. None gives no numbers."""
    try:
        found = tuple(sorted({int(part) for part in value.split(",")})) if value is not None else ()
    except ValueError:
        found = (0,)
    if min(found, default=1) < 1:
        raise click.BadParameter(f"{value!r} is not a list of positive integers, such as 1,2,4")
    return found


@click.command(name="peers", help=f"""Compare the loader with other projects' loaders.

    All run on the CPU, with the same images (a packed training split), crops (random-resized, flipped), output
    (float32, normalised, with labels, in the main process) and cores. Each uses the number of workers with which it is
    fastest. Before a program is timed, its output is checked: shape, labels, mean, contrast, crop positions, and that
    every image appears. Most peers need an environment of their own, which --setup creates. Peers that are not
    installed are skipped.

    \b
    python bench.py peers --setup
    python bench.py peers --data DIR --threads 2
    python bench.py peers --data DIR --only webdataset --only dali --json result.json

    \b
    {chr(10).join(f"    {name:<20} {peer.about}" for name, peer in PEERS.items()).strip()}
    """)  # fmt: skip
@click.option("--data", metavar="DIR|synthetic:WxH", help="Packed dataset.  [default: the demo's]")
@click.option("--image-size", type=click.IntRange(min=8), default=224, metavar="S", help="Image size in pixels.")
@click.option("--batch-size", type=click.IntRange(min=1), default=100, metavar="B", help="Batch size.")
@click.option("--threads", type=click.IntRange(min=0), default=0, metavar="N",
              help="Cores per program. 0 uses all.")  # fmt: skip
@click.option("--workers", callback=numbers, metavar="N,N,…", help="Numbers of workers to try.  [default: 1,2,3,4; "
              "with more than 4 cores, 1/2, 1, 3/2 and 2 times the cores]")  # fmt: skip
@click.option("--only", "names", type=click.Choice(list(PEERS)), multiple=True, help="Compare only with this peer. "
              "May be repeated.  [default: all]")  # fmt: skip
@click.option("--setup", is_flag=True, help="Create the peers' environments, and measure nothing.")
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False), default=".peers", help="Folder for the "
              "environments, the peers' copies of the images, and logs.")  # fmt: skip
@with_options(TIMING)
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False),
              help="Write the result to a JSON file.")  # fmt: skip
def command(
    data: str | None, image_size: int, batch_size: int, threads: int, workers: tuple[int, ...], names: tuple[str, ...],
    setup: bool, folder: Path, seconds: float, repeats: int, out: Path | None, json_file: Path | None,
) -> None:  # fmt: skip
    """See `help` above."""
    names = tuple(name for name in PEERS if name == OURS or name in names or not names)
    if setup:
        from penstock.benchmarks.peers.environments import set_up

        if failed := set_up(names, folder, click.echo):
            raise click.ClickException(f"not installed: {', '.join(failed)}. The others are installed.")
        return
    cores = sorted(os.sched_getaffinity(0))
    if threads > len(cores):
        raise ValueError(f"--threads {threads}: this process may use only {len(cores)} cores. Give at most that many.")
    cores = cores[: threads or len(cores)]
    dataset = ShardSet.open(there(data))

    from penstock.benchmarks import record
    from penstock.benchmarks.peers import run
    from penstock.training import environment

    record.require_writable(json_file, out)
    settings = run.Settings(
        image_size, batch_size, tuple(cores), workers or worker_counts(len(cores)), folder, seconds, repeats
    )
    result = run.compare(names, dataset, settings, say)
    click.echo(f"peers: batch size {batch_size} at {image_size} px, {len(cores)} threads, "
               f"{environment.cpu_model() or 'CPU'}; median [range] of {repeats} repeats of {seconds:g} s; "
               "ours/theirs with its 95% interval")  # fmt: skip
    click.echo(table(result))
    for line in result.warnings:
        click.echo(f"  warning: {line}", err=True)
    record.keep(result, json_file, out)
    if failed := result.more["failed"]:
        raise click.ClickException(f"failed and not measured: {', '.join(failed)}")


def say(line: str) -> None:
    """Print progress, which is not part of the result, to stderr."""
    click.echo(line, err=True)


def there(data: str | None) -> str:
    """Return the folder of the dataset that --data names. Makes the demo's or a synthetic one if needed."""
    if data is None:
        ensure_demo(Path(DEMO_DATA), say)
        return DEMO_DATA
    return str(synthetic.ensure(data, say=say)) if data.startswith(synthetic.PREFIX) else data


def worker_counts(threads: int) -> tuple[int, ...]:
    """Return the numbers of workers to try: 1 to 4, or with more than 4 threads from half as many to twice as many."""
    if threads <= MANY_THREADS:
        return tuple(range(1, MANY_THREADS + 1))
    return tuple(threads * quarters // 4 for quarters in (2, 4, 6, 8))


def table(result: "Result") -> str:
    """Return the table, one line per program with the fastest first, then the skipped and failed programs."""
    rows: list[Sequence[str]] = [COLUMNS]
    for name, one in sorted(result.programs.items(), key=lambda item: -item[1].median):
        times = result.ratios.get(f"{OURS} / {name}")
        rates = rates_cell(one.images_per_s), ratio_cell(times) if times else "1"
        more = f"{one.memory_mb or 0:,.0f}", f"{one.first_batch_s or 0:.1f}", f"{(one.size_bytes or 0) / 1e6:,.1f}"
        rows.append((name, one.version or "", str(one.workers), *rates, *more))
    lines = tabulated(rows, 2)
    lines += [f"  {pair}  {ratio_cell(times)}" for pair, times in result.ratios.items() if pair.startswith(PIXELS)]
    for outcome, shown in ("skipped", "skipped"), ("failed", "FAILED"):
        for name, why in result.more[outcome].items():
            lines += wrapped(f"  {name}: {shown}: {why}")
    return "\n".join(lines)
