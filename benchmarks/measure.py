"""Time programs: warm up to a steady state, alternate the repeats, and compute ratios of the samples.

A machine's speed drifts with its clocks and its other users. So the compared programs alternate, A B C A B C …, and a
ratio is taken repeat by repeat. Drift slower than a round then cancels.
"""

import statistics
import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from time import monotonic
from typing import NamedTuple, Protocol

import numpy as np

from penstock.benchmarks.text import shown_rate

STEADY_TURNS = 3
STEADY = 0.05  # how far the last turns may lie from their median
RESAMPLED = 10_000
CONFIDENCE = 0.95


class Sample(NamedTuple):
    """One repeat of one program."""

    images_per_s: float
    data_wait: float = 0.0  # share of the time spent waiting for data, 0 to 1
    ahead: float = 0.0  # batches of work that a GPU had left when the CPU had launched all of it


class Program(Protocol):
    """A program that can be timed."""

    name: str

    def run(self, seconds: float) -> Sample:
        """Work for about `seconds`, and count images. Images decoded before the start must not count."""

    def close(self) -> None: ...


class Ratio(NamedTuple):
    """The ratio of two programs' rates, repeat by repeat: its median, bootstrap interval, and the least and most."""

    median: float
    low: float
    high: float
    min: float
    max: float


class Unsteady(UserWarning):
    """A program was measured before its speed was steady."""


def is_steady(rates: Sequence[float]) -> bool:
    """Return whether the last three rates lie within 5% of their median and do not keep rising."""
    last = rates[-STEADY_TURNS:]
    if len(last) < STEADY_TURNS:
        return False
    middle = statistics.median(last)
    rising = all(a < b for a, b in pairwise(last))
    return not rising and all(abs(rate - middle) <= STEADY * middle for rate in last)


def warm_up(
    program: Program, turn_s: float = 1.0, limit_s: float = 30.0, clock: Callable[[], float] = monotonic
) -> list[float]:
    """Run the program in turns until it is steady. Returns the turns' images/s.

    The first turn also builds and compiles the program, so `limit_s` counts from its end. If the program is not steady
    by then, the function issues an `Unsteady` warning and returns.
    """
    rates = [program.run(turn_s).images_per_s]
    started = clock()
    while not is_steady(rates):
        if clock() - started >= limit_s:
            last = ", ".join(shown_rate(rate) for rate in rates[-STEADY_TURNS:])
            message = f"{program.name}: not steady after {limit_s:g} s of warm-up (last turns: {last} images/s)"
            warnings.warn(message, Unsteady, stacklevel=2)
            break
        rates.append(program.run(turn_s).images_per_s)
    return rates


def in_turn(
    programs: Sequence[Program], seconds: float, repeats: int, clock: Callable[[], float] = monotonic
) -> dict[str, list[Sample]]:
    """Warm up each program, then run them A B C A B C …, `seconds` each, `repeats` times. Returns name → repeats.

    A warm-up turn takes at most a second. The warm-up takes at most as long as ten repeats.
    """
    for program in programs:
        warm_up(program, min(1.0, seconds), min(30.0, 10 * seconds), clock)
    samples: dict[str, list[Sample]] = {program.name: [] for program in programs}
    for _ in range(repeats):
        for program in programs:
            samples[program.name].append(program.run(seconds))
    return samples


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Return the ratio of two programs that ran alternately, repeat by repeat.

    The interval is the percentile bootstrap's for the median (Efron and Tibshirani, An Introduction to the Bootstrap,
    1993, chapter 13), with a fixed seed. Up to five repeats it is the range, which covers the true median with
    probability 1 - 2^(1-n): 0.75 for three, 0.94 for five. For six to twenty it covers 0.87 to 0.94 in simulations.

    Raises ValueError if the two do not have the same number of repeats, or have none.
    """
    ratios = np.array([a / b for a, b in zip(ours, theirs, strict=True)])
    if not len(ratios):
        raise ValueError("a ratio needs at least one repeat")
    drawn = np.random.default_rng(0).integers(len(ratios), size=(RESAMPLED, len(ratios)))
    low, high = np.quantile(np.median(ratios[drawn], axis=1), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Ratio(float(np.median(ratios)), float(low), float(high), float(ratios.min()), float(ratios.max()))
