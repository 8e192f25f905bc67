"""Statistical tests of whether two samples come from one distribution."""

import numpy as np

KS_LIMIT = 2.23  # × sqrt(1/n + 1/m): the two-sample Kolmogorov-Smirnov bound at p = 1e-4


def ks_distance(a: np.ndarray, b: np.ndarray) -> float:
    """The largest distance between two samples' distribution functions."""
    points = np.concatenate([a, b])
    at_or_below = [np.searchsorted(np.sort(x), points, side="right") / len(x) for x in (a, b)]
    return float(np.abs(at_or_below[0] - at_or_below[1]).max())
