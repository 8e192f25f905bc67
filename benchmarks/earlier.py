"""Compare a result with an earlier one, measured at another time: `--compare FILE`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from penstock.benchmarks import record
from penstock.benchmarks.measure import CONFIDENCE, RESAMPLED, Ratio
from penstock.benchmarks.record import Result
from penstock.training import environment

DEVICE = {"CPU": "cpu", "cores allowed": "cores_allowed", "GPU": "gpu"}  # these must be equal for a comparison


def read(file: Path, force: bool) -> Result:
    """Read the earlier result. Raises ValueError if it comes from a different device, unless `force`."""
    earlier, here = record.read(file), dict(environment.describe())
    differences = [
        f"{what} {earlier.env.get(key)} there, {here[key]} here"
        for what, key in DEVICE.items()
        if earlier.env.get(key) != here[key]
    ]
    if differences and not force:
        shown = "; ".join(differences)
        raise ValueError(f"{file}: comes from a different device ({shown}). To compare anyway, give --force.")
    return earlier


def compared(result: Result, earlier: Result, file: Path) -> Result:
    """Return the result with ratios to the earlier one added, for each program that both have.

    Adds a warning for each setting that differs. Raises ValueError if the two have no program in common.
    """
    shared = [name for name in result.programs if name in earlier.programs]
    if not shared:
        raise ValueError(f"{file}: has no program in common with this result. It has {', '.join(earlier.programs)}.")
    ratios = {
        f"{name} / {name} of {file}": ratio_of_medians(*(one.programs[name].images_per_s for one in (result, earlier)))
        for name in shared
    }
    now, then = ({"benchmark": one.benchmark} | one.settings for one in (result, earlier))
    differing = [key for key in now if key in then and now[key] != then[key] and key not in ("seconds", "repeats")]
    lines = [f"{key}: {then[key]} in {file}, {now[key]} here" for key in differing]
    return replace(result, ratios=result.ratios | ratios, warnings=[*result.warnings, *lines])


def ratio_of_medians(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Return the ratio of two programs that ran at different times, so it includes the machine's drift.

    Both sides are resampled independently. min and max come from the extreme repeats.
    """
    a, b, rng = np.array(ours), np.array(theirs), np.random.default_rng(0)
    medians = [np.median(one[rng.integers(len(one), size=(RESAMPLED, len(one)))], axis=1) for one in (a, b)]
    low, high = np.quantile(medians[0] / medians[1], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    bounds = a.min() / b.max(), a.max() / b.min()
    return Ratio(*(float(value) for value in (np.median(a) / np.median(b), low, high, *bounds)))
