"""`bench.py peers`: this project's loader beside others, each in its own process and, where needed, its environment.

All get the same images, crop law, output and cores; a program whose output is not what was asked for is not timed.
"""

import os
from pathlib import Path

import click

from benchmarks import images
from benchmarks.options import TIMING, with_options
from benchmarks.peers.registry import OURS, PEERS
from recipes import DEMO_DATA
from shard_tools.demo import ensure_demo
from shards.format import ShardSet


class Numbers(click.ParamType):
    """Numbers from 1 on, with commas between them."""

    name = "N,N,…"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            found = tuple(sorted({int(part) for part in str(value).split(",")}))
        except ValueError:
            found = ()
        if not found or found[0] < 1:
            self.fail(f"{value!r} is no list of numbers from 1 on, such as 1,2,4", param, ctx)
        return found


@click.command(name="peers", help=f"""Images/s of this project's loader beside other projects', on the CPU.

    The programs get the same images (of a packed training split), crop law (random-resized, flipped), output (float32,
    normalised, in the main process) and cores, and the number of workers with which each is fastest. Each one's output
    is checked before it is timed: shape, type, mean, contrast, and where it crops. Most need an environment of their
    own, which --setup makes; those that are not installed are skipped.

    \b
    python bench.py peers --setup
    python bench.py peers --data DIR --threads 2
    python bench.py peers --data DIR --only webdataset --only dali --json result.json

    \b
    {chr(10).join(f"    {name:<20} {peer.about}" for name, peer in PEERS.items()).strip()}
    """)  # fmt: skip
@click.option("--data", metavar="DIR|synthetic:WxH", help="Packed dataset.  [default: the demo's]")
@click.option("--against", metavar="DIR|synthetic:WxH", help="The peers read this one instead.")
@click.option("--split", default="train", help="Of the dataset.")
@click.option("--image-size", type=click.IntRange(min=8), default=224, metavar="S", help="Pixels.")
@click.option("--batch-size", type=click.IntRange(min=1), default=100, metavar="B")
@click.option(
    "--threads", type=click.IntRange(min=0), default=0, metavar="N", help="Cores that each program may use; 0 for all."
)
@click.option(
    "--workers",
    type=Numbers(),
    help="Numbers of workers to try.  [default: 1,2,3,4; with more than 4 threads 1/2, 1, 3/2, 2 times them]",
)
@click.option(
    "--only",
    "names",
    type=click.Choice(list(PEERS)),
    multiple=True,
    help="This peer; several times for several.  [default: all]",
)
@click.option("--setup", is_flag=True, help="Make the environments of the peers, and measure nothing.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=".peers",
    help="Where the environments, the peers' copies of the images, and logs are.",
)
@with_options(TIMING)
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write the result.")
def command(
    data: str | None, against: str | None, split: str, image_size: int, batch_size: int, threads: int,
    workers: tuple[int, ...] | None, names: tuple[str, ...], setup: bool, folder: Path, seconds: float, repeats: int,
    out: Path | None, json_file: Path | None,
) -> None:  # fmt: skip
    """See `help` above."""
    if setup:
        from benchmarks.peers.environments import set_up

        if failed := set_up(names or list(PEERS), folder, click.echo):
            raise click.ClickException(f"not installed: {', '.join(failed)}; the others are")
        return
    cores = cores_to_use(threads)
    other, ours = opened(against) if against else None, opened(data)

    from benchmarks.peers import contest
    from benchmarks.peers.report import table
    from benchmarks.peers.run import compare, worker_counts
    from benchmarks.record import keep
    from training import environment

    settings = contest.Settings(
        image_size=image_size,
        batch_size=batch_size,
        cores=cores,
        workers=workers or worker_counts(len(cores)),
        folder=folder,
        num_checked=contest.NUM_CHECKED,
        turn_s=min(contest.TURN_S, seconds),
    )
    wanted = [OURS, *(name for name in PEERS if name != OURS and (name in names or not names))]
    result = compare(wanted, ours, other, split, settings, seconds, repeats, say)
    click.echo(f"peers, {batch_size} × {image_size} px, {len(cores)} threads, {environment.cpu_model() or 'CPU'}; "
               f"median [range] of {repeats} × {seconds:g} s; ours/theirs with its 95 % interval")  # fmt: skip
    click.echo(table(result))
    for line in result.warnings:
        click.echo(f"  warning: {line}", err=True)
    keep(result, json_file, out)
    if failed := result.more["failed"]:
        raise click.ClickException(f"failed, and not measured: {', '.join(failed)}")


def say(line: str) -> None:
    """Progress, which is no part of the result."""
    click.echo(line, err=True)


def cores_to_use(threads: int) -> tuple[int, ...]:
    """The first `threads` cores that this process may use; all for 0. Raises ValueError where there are fewer."""
    allowed = sorted(os.sched_getaffinity(0))
    if threads > len(allowed):
        raise ValueError(f"--threads {threads}: this process may use {len(allowed)} cores; give at most so many")
    return tuple(allowed[: threads or len(allowed)])


def opened(data: str | None) -> ShardSet:
    """The packed dataset that --data names; the demo's and synthetic ones are made where they are not there yet."""
    if data is None:
        ensure_demo(Path(DEMO_DATA), say)
    elif data.startswith(images.PREFIX):
        data = str(images.ensure(data, say=say))
    return ShardSet.open(data or DEMO_DATA)
