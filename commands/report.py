"""`train.py report`: the page and the picture of runs, written again, or of several in one."""

from pathlib import Path

import click

from training.report import COMPARISON_FILE, write_comparison, write_report


def run(runs: tuple[Path, ...], out: Path | None) -> None:
    """What `train.py report` does; its options are in commands/options.py."""
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
