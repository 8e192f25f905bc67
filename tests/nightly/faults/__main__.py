"""`python -m tests.nightly.faults`: run each fault for several rounds at random places, and print a table."""

import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from tests.nightly.faults.bench import Bench
from tests.nightly.faults.cases import CASES

WIDTH = max(map(len, CASES))


@click.command()
@click.option("--rounds", type=click.IntRange(min=1), default=1, show_default=True, help="Rounds of each fault.")
@click.option("--only", multiple=True, metavar="TEXT", help="Only faults with TEXT in their names. May be repeated.")
@click.option("--seed", default=0, show_default=True, help="Seed for the places of the faults.")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), metavar="FILE", help="Also write the table as JSON."
)
def main(rounds: int, only: tuple[str, ...], seed: int, json_file: Path | None) -> None:
    """Inject each fault into whole runs at random places, and print a table of the outcomes.

    The exit status is 1 if a run did not recover correctly.
    """
    names = [name for name in CASES if not only or any(text.lower() in name.lower() for text in only)]
    if not names:
        raise click.UsageError(f"--only {' or '.join(only)}: no such fault; known faults are {', '.join(CASES)}")
    click.echo(f"{'fault':{WIDTH}}  rounds  failed  lost steps  wrong samples  recovery s  round s")
    rows = []
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        bench = Bench(Path(folder), random.Random(seed))
        for name in names:
            rows.append(row := measure(bench, name, rounds))
            recovery = "–" if row["recovery_s"] is None else f"{row['recovery_s']:.1f}"
            click.echo(
                f"{name:{WIDTH}}  {rounds:6}  {len(row['failed']):6}  {row['lost_steps']:10}  "
                f"{row['wrong_samples']:13}  {recovery:>10}  {row['round_s']:7.1f}"
            )
            for complaint in row["failed"]:
                click.echo(f"    {complaint}", err=True)
            if json_file:
                json_file.write_text(json.dumps(rows, indent=1) + "\n")
    raise SystemExit(any(row["failed"] for row in rows))


def measure(bench: Bench, name: str, rounds: int) -> dict[str, Any]:
    """Return a row of the table: sums of steps and samples, medians of times."""
    outcomes, failed, times = [], [], []
    for _ in range(rounds):
        began = time.monotonic()
        try:
            outcomes.append(CASES[name](bench))
        except (AssertionError, PermissionError) as error:
            failed.append(str(error)[-3000:])
        times.append(time.monotonic() - began)
    recoveries = [outcome.recovery_s for outcome in outcomes if outcome.recovery_s is not None]
    return {
        "fault": name,
        "rounds": rounds,
        "failed": failed,
        "lost_steps": sum(outcome.lost_steps for outcome in outcomes),
        "wrong_samples": sum(outcome.wrong_samples for outcome in outcomes),
        "recovery_s": statistics.median(recoveries) if recoveries else None,
        "round_s": statistics.median(times),
    }


if __name__ == "__main__":
    main()
