"""`python -m training.report RUN…`"""

from pathlib import Path

import click

from shard_tools.terminal import Command
from training.report import COMPARISON_FILE, write_comparison, write_report


@click.command(cls=Command, context_settings={"max_content_width": 110})
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN…")
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The page; the picture lies beside it as .png. [default: RUN/report.html; of several runs "
    f"{COMPARISON_FILE} beside the first one]",
)
def main(runs: tuple[Path, ...], out: Path | None) -> None:
    """Write report.png and report.html of a run directory, finished or not.

    With several, one more page and picture overlay the curves of all.
    """
    try:
        if len(runs) == 1:
            written = [write_report(runs[0], out)]
        else:
            first = runs[0] if runs[0].name not in ("", "..") else runs[0].resolve()  # "." has no parent by its name
            out = out or first.parent / COMPARISON_FILE
            written = [write_report(run) for run in runs] + [write_comparison(runs, out)]
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"{error.filename}: {error.strerror}") from None
    for paths in written:
        click.echo("\n".join(map(click.format_filename, paths)))


if __name__ == "__main__":
    main(prog_name="python -m training.report")
