"""`train.py report`: write the page and the picture of a run again (`training/report/`), or compare several runs."""

from pathlib import Path

import click

from penstock.training.refusal import told_in_a_line
from penstock.training.report import COMPARISON_FILE, write_comparison, write_report


def run(runs: tuple[Path, ...], out: Path | None) -> None:
    """Run `train.py report`. Its options are in commands/options.py."""
    with told_in_a_line(runs[0]):
        if len(runs) == 1:
            written = [write_report(runs[0], out)]
        else:
            first = runs[0] if runs[0].name not in ("", "..") else runs[0].resolve()  # "." has no parent
            out = out or first.parent / COMPARISON_FILE
            written = [write_report(run) for run in runs] + [write_comparison(runs, out)]
    for picture, page in written:
        click.echo(f"{click.format_filename(picture)}\n{click.format_filename(page)}")
