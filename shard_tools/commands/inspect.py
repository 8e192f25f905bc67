"""The commands that inspect datasets: verify, info, preview. They print an error as one line and exit with 1."""

import json
import sys
from pathlib import Path

import click

from penstock.shard_tools.commands.options import local_path, path_or_url
from penstock.shard_tools.commands.running import one_line_errors, show_shards
from penstock.shard_tools.describe import UNTURNED
from penstock.shard_tools.workers import num_cpus
from penstock.shards.format import ShardSet


@click.command("verify")
@click.argument("out", type=local_path)
@click.option("--decode", is_flag=True, help="Also decode every image, as training does.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as one JSON list.")
@click.option("--fix", is_flag=True, help="Repair the dataset and remove samples beyond repair; implies --decode.")
@click.option(
    "--workers", type=click.IntRange(min=1), help="Number of worker processes.  [default: one for each CPU core]"
)
def verify_command(out: Path, decode: bool, as_json: bool, fix: bool, workers: int | None) -> None:
    """Check the dataset in OUT, and repair it with --fix.

    The command checks hashes, labels and counts, and that tars, indexes and tables agree. It prints one line per
    finding and exits with 1 if there are any.

    --fix rebuilds indexes and tables from the tars, and tar headers and labels from the table. It gives swapped
    shards their own names back and removes samples whose images are lost. Then it checks again and exits with 0 if no
    finding is left. It never writes to shards that were indexed in place.

    \b
    Example:
      python -m shard_tools verify data/imagenet --decode
    """
    from penstock.shard_tools.repair import repair
    from penstock.shard_tools.verify import verify

    def check() -> int:
        with one_line_errors():
            findings = verify(out, decode or fix, workers or num_cpus(), show_shards)
        if as_json:
            click.echo(json.dumps([finding._asdict() for finding in findings], indent=1))
        else:
            for finding in findings:
                click.echo(str(finding))
        return len(findings)

    left = check()
    if left and fix:
        with one_line_errors():
            for line in repair(out, workers):
                click.echo(line, err=True)
        click.echo("checking again", err=True)
        left = check()
    if left:
        sys.exit(1)
    if not as_json:
        shard_set = ShardSet.open(out)
        splits = shard_set.splits.values()
        click.echo(f"OK: {sum(map(len, splits))} samples, {sum(len(split.shards) for split in splits)} shards")
        if shard_set.made.get("unturned"):
            click.echo(f"{shard_set.made['unturned']} {UNTURNED}")


@click.command("info")
@click.argument("out", type=path_or_url)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
def info_command(out: Path | str, as_json: bool) -> None:
    """Show what the dataset in OUT contains and how it was made.

    The table lists splits, samples, bytes, classes and image sizes.
    """
    from penstock.shard_tools.describe import describe, histograms, summary

    with one_line_errors():
        shard_set = ShardSet.open(out)
    information = describe(shard_set)
    if as_json:
        click.echo(json.dumps(information, indent=1))
    else:
        click.echo(f"{summary(information)}\n\n{histograms(information)}")


@click.command("preview")
@click.argument("out", type=local_path)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--split", default="train", show_default=True, help="Split to draw from.")
@click.option("--num", type=click.IntRange(min=1, max=400), default=24, show_default=True, help="Number of samples.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed for the choice of samples."
)
@click.option(
    "--augment", metavar="RECIPE", help="Show each sample in a row with this recipe's training augmentations of it."
)
def preview_command(out: Path, file: Path, split: str, num: int, seed: int, augment: str | None) -> None:
    """Draw samples of the dataset in OUT on a sheet, a .png.

    The sheet shows the samples with their class names. It is saved as FILE.

    \b
    Examples:
      python -m shard_tools preview data/imagenet samples.png
      python -m shard_tools preview data/imagenet augmented.png --num 6 --augment rn50-90ep
    """
    from penstock.shard_tools.preview import preview

    with one_line_errors():
        preview(out, file, split, num, seed, augment)
    click.echo(str(file))


COMMANDS = (verify_command, info_command, preview_command)
