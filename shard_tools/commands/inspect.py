"""The commands that look at datasets: verify, info. Input: the command line; errors are one line, exit 1."""

import json
import sys
from pathlib import Path

import click

from shard_tools.format import ShardSet
from shard_tools.report import describe, summary


@click.command("verify")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--decode", is_flag=True, help="Also decode every image and check its height and width.")
def verify_command(out: Path, decode: bool) -> None:
    """Check the dataset in OUT: hashes, tars against indexes against tables, labels, counts.

    Prints a line for each finding and exits with 1 if there is one.
    """
    from shard_tools.verify import verify

    findings = verify(out, decode)
    for finding in findings:
        click.echo(finding)
    if findings:
        sys.exit(1)
    splits = ShardSet.open(out).splits.values()
    click.echo(f"OK: {sum(map(len, splits))} samples, {sum(len(split.shards) for split in splits)} shards")


@click.command("info")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
def info_command(out: Path, as_json: bool) -> None:
    """Show what the dataset in OUT holds: splits, samples, bytes, classes, image sizes, how it was made."""
    try:
        information = describe(ShardSet.open(out))
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        click.echo(json.dumps(information, indent=1))
    else:
        click.echo(summary(information))


COMMANDS = (verify_command, info_command)
