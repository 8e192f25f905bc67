"""Is what a peer delivers what was asked for? Its batches' numbers (see `observe`) and the reference's → faults.

The crop law is told from crops of an image whose colours say where they come from: the distributions of the crops'
area, aspect ratio and centre are compared with the reference's by two-sample Kolmogorov-Smirnov tests.
"""

import math
from typing import Any

import numpy as np

from benchmarks.peers import gradient

MEAN_TOLERANCE = 0.05  # of normalised values; decoders and filters differ so much at most
STD_TOLERANCE = 0.06  # as a share: a resize without antialias leaves more contrast
STANDARD_ERRORS = 4.5  # of a difference between two samples; chance exceeds it in 7 of a million comparisons
LEVELS_TOLERANCE = 3.0  # grey levels, of an even colour
MAX_ERROR = 0.05  # of a crop's sides: how far its colours may be from those of a plain crop
KS_LEVEL = 1e-4  # chance alone fails a right crop law so rarely in one of the four tests
CHANNELS = ("red", "green", "blue")


def form_faults(seen: dict[str, Any], batch_size: int, image_size: int) -> list[str]:
    """What is wrong with shape, dtype or values."""
    wanted = [batch_size, 3, image_size, image_size]
    found = []
    if seen["shape"] != wanted:
        found.append(f"shape is {tuple(seen['shape'])}, not {tuple(wanted)}")
    if seen["dtype"] != "float32":
        found.append(f"dtype is {seen['dtype']}, not float32")
    if not seen["finite"]:
        found.append("has values that are not finite")
    return found


def pixel_faults(seen: dict[str, Any], reference: dict[str, Any]) -> list[str]:
    """Channels whose mean or standard deviation is another than the reference's, beyond what chance explains."""
    found = []
    theirs, ours = (moments(np.array(one["means"]), np.array(one["squares"])) for one in (seen, reference))
    for channel, name in enumerate(CHANNELS):
        for what, tolerance in (("mean", MEAN_TOLERANCE), ("std", STD_TOLERANCE * ours["std"][0][channel])):
            (a, error_a), (b, error_b) = ((m[what][0][channel], m[what][1][channel]) for m in (theirs, ours))
            allowed = tolerance + STANDARD_ERRORS * math.hypot(error_a, error_b)
            if abs(a - b) > allowed:
                found.append(f"{name}'s {what} is {a:.3f}, not {b:.3f} ± {allowed:.3f}")
    return found


def moments(means: np.ndarray, squares: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Mean and standard deviation of each channel over all images, each with its standard error: (3,) and (3,).

    means, squares: (N, 3), the mean and the mean square of each image. The error of the standard deviation is that of
    the variance by the delta method.
    """
    mean = means.mean(axis=0)
    deviations = squares - 2 * mean * means + mean**2  # of each image from the mean of all
    std = np.sqrt(deviations.mean(axis=0))
    root = math.sqrt(len(means))
    return {
        "mean": (mean, means.std(axis=0) / root),
        "std": (std, deviations.std(axis=0) / root / (2 * np.maximum(std, 1e-9))),
    }


def crop_faults(seen: dict[str, Any], reference: dict[str, Any]) -> list[str]:
    """How crops of the image that `gradient` makes differ from the reference's."""
    off = float(np.abs(np.array(seen["blue"]) - gradient.BLUE).max())
    if not off <= LEVELS_TOLERANCE:
        worst = float(max(seen["blue"], key=lambda value: abs(value - gradient.BLUE)))
        return [f"an even blue of {gradient.BLUE} comes out as {worst:.1f}: wrong normalisation or order of channels"]
    bent = float(np.quantile(seen["error"], 0.99))
    if not bent <= MAX_ERROR:
        return [f"colours are {bent:.0%} of the crop's side away from where a crop has them"]
    if any(seen["upside_down"]):
        return ["images are upside down"]
    found = []
    num, flipped = len(seen["flipped"]), sum(seen["flipped"])
    if abs(flipped / num - 0.5) > STANDARD_ERRORS * 0.5 / math.sqrt(num):
        found.append(f"{flipped / num:.0%} of the images are flipped, not half")
    for what, theirs in crop_laws(seen).items():
        ours = crop_laws(reference)[what]
        distance, limit = ks_distance(theirs, ours), ks_limit(len(theirs), len(ours))
        if distance > limit:
            middle, right = np.median(theirs), np.median(ours)
            found.append(
                f"the crops' {what} has another distribution (KS distance {distance:.3f} > {limit:.3f}; "
                f"median {middle:.2f}, not {right:.2f})"
            )
    return found


def crop_laws(crops: dict[str, Any]) -> dict[str, np.ndarray]:
    """What is compared of the crops: (N,) each; all but the aspect ratio as shares of the image's."""
    left, top, width, height = (np.array(crops[name]) for name in ("left", "top", "width", "height"))
    return {
        "area": width * height,
        "aspect ratio": width / height * (gradient.WIDTH / gradient.HEIGHT),
        "centre from the left": left + width / 2,
        "centre from the top": top + height / 2,
    }


def ks_distance(a: np.ndarray, b: np.ndarray) -> float:
    """The greatest difference between two samples' cumulative distributions."""
    places = np.concatenate([a, b])
    shares = [np.searchsorted(np.sort(one), places, side="right") / len(one) for one in (a, b)]
    return float(np.abs(shares[0] - shares[1]).max())


def ks_limit(num_a: int, num_b: int, level: float = KS_LEVEL) -> float:
    """What chance exceeds with probability `level` at most: Smirnov's asymptotic formula, one-sided terms summed."""
    return math.sqrt(-math.log(level / 2) / 2 * (num_a + num_b) / (num_a * num_b))
