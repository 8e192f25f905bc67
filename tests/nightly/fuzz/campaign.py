"""The fuzzing campaign: `python -m tests.nightly.fuzz --cases 100000` prints a table of targets, cases and violations.

The exit status is 1 if there are violations. Case i of a target is a pure function of (seed, target, i):
`--only TARGET --first i --cases 1` runs it again. Each target runs in its own process, which turns a crash of the
interpreter or a hang in C into a finding.
"""

import multiprocessing
import os
import re
import sys
import tempfile
import time
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from random import Random
from typing import Any

import click

from tests.nightly.fuzz.oracle import Hang, Violation
from tests.nightly.fuzz.targets import TARGETS, Target, case, run_case

STALLED_S = 300.0  # a process that begins loads torch
GIVE_UP = 1000  # violations of one target
SHOWN = 20  # kinds of them


def work(
    name: str, seed: int, first: int, stop: int, at: "Synchronized[int]", slowest: "Synchronized[float]", found: Any
) -> None:
    """Run the cases first…stop-1 of a target. `at` holds the number of the current case."""
    target: Target = TARGETS[name]
    target.valid()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        for i in range(first, stop):
            at.value = i
            started = time.perf_counter()
            try:
                run_case(target, case(target, Random(f"{seed} {name} {i}")), Path(folder, "case"))
            except (Violation, Hang) as error:
                found.put((i, str(error)))
            slowest.value = max(slowest.value, time.perf_counter() - started)
    at.value = stop


def campaign(name: str, seed: int, first: int, count: int) -> tuple[float, list[tuple[int, str]]]:
    """Run all cases of a target, even if the process dies. Returns the slowest case's seconds and the violations."""
    context = multiprocessing.get_context("spawn")
    found: Any = context.SimpleQueue()
    slowest, at = context.Value("d", 0.0), context.Value("q", first - 1)
    violations: list[tuple[int, str]] = []
    begin, stop = first, first + count
    while begin < stop and len(violations) < GIVE_UP:
        process = context.Process(target=work, args=(name, seed, begin, stop, at, slowest, found))
        process.start()
        seen, since = at.value, time.monotonic()
        while process.is_alive():
            process.join(0.2)
            while not found.empty():
                violations.append(found.get())
            if at.value != seen:
                seen, since = at.value, time.monotonic()
            elif time.monotonic() - since > STALLED_S:
                process.kill()
        while not found.empty():
            violations.append(found.get())
        if process.exitcode == 0:
            break
        violations.append((at.value, f"the process ended with {process.exitcode} (a crash, or a hang in C)"))
        begin = max(at.value, begin) + 1
    return slowest.value, violations


@click.command()
@click.option("--cases", default=100_000, show_default=True, help="Total number of cases, divided among the targets.")
@click.option("--seed", default=1, show_default=True, help="Seed for the cases.")
@click.option("--only", type=click.Choice(list(TARGETS)), help="Run all cases on this target.")
@click.option("--first", default=0, show_default=True, help="Number of the first case.")
def main(cases: int, seed: int, only: str | None, first: int) -> None:
    """Damage every kind of input, and check how the program responds.

    The exit status is 1 if there are violations: anything except a correct result or an error in one line.
    """
    total = sum(target.cases for target in TARGETS.values())
    ran = failed = 0
    click.echo(f"{'target':<24}{'cases':>9}{'violations':>12}{'slowest, s':>12}{'cases/s':>9}")
    for name, target in TARGETS.items():
        if only not in (None, name):
            continue
        count = cases if only else -(-cases * target.cases // total)
        started = time.perf_counter()
        slowest_s, violations = campaign(name, seed, first, count)
        rate = count / (time.perf_counter() - started)
        click.echo(f"{name:<24}{count:>9,}{len(violations):>12,}{slowest_s:>12.2f}{rate:>9.0f}")
        kinds: dict[str, list[int]] = {}
        for i, message in violations:
            kinds.setdefault(re.sub(r"\d+|'[^']*'", "…", message)[:90], []).append(i)
        for numbers in sorted(kinds.values(), key=len, reverse=True)[:SHOWN]:
            message = next(message for i, message in violations if i == numbers[0])
            click.echo(f"  {len(numbers)} × as case {numbers[0]}: {message}", err=True)
        ran, failed = ran + count, failed + len(violations)
    click.echo(f"{'all':<24}{ran:>9,}{failed:>12,}")
    sys.exit(failed > 0)
