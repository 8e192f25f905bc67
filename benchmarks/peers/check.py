"""Check whether a peer's batches are correct: describe the images, then list faults, one line each.

In marked images, red and green grow along the image, so a crop's colours show where it was cut out. Blue is even, and
shows which image it is. The image's number is its label. For the timed images, mean and contrast are compared. This
module needs only NumPy, since it also runs in the peers' environments.
"""

import math
from collections.abc import Iterable
from types import SimpleNamespace

import numpy as np

WIDTH, HEIGHT, NUM_MARKED = 320, 240, 32
LEVELS_TOLERANCE = 3.0  # grey levels, of an even colour
MARGIN = 0.1  # share of a crop excluded from the fit at each border, where the resize repeats pixels
MAX_ERROR = 0.05  # of a crop's side: how far its colours may be from those of a plain crop
STANDARD_ERRORS = 4.5  # of a difference between two samples; chance exceeds it in 7 of a million comparisons
MEAN_TOLERANCE = 0.05  # of normalised values: the most by which decoders and filters differ
SQUARE_TOLERANCE = 0.12  # as a share, since a resize without antialias leaves more contrast
CROP_LAW = ("flipped", "area", "aspect ratio", "centre from the left", "centre from the top")
CHANNELS = ("red", "green", "blue")

Seen = dict[str, np.ndarray]  # see `describe`


def blue_of(label: np.ndarray | int) -> np.ndarray:
    """Return a label's grey level of blue. The levels are far enough apart to be distinguished."""
    return 16 + 7 * np.asarray(label)


def marked_image(label: int) -> np.ndarray:
    """Make a marked image, (HEIGHT, WIDTH, 3) uint8: red grows from 0 to 255 left to right, green top to bottom."""
    red, green = np.meshgrid(np.linspace(0, 255, WIDTH), np.linspace(0, 255, HEIGHT))
    return np.stack([red, green, np.full_like(red, blue_of(label))], axis=-1).round().astype(np.uint8)


def describe(batches: Iterable[tuple[np.ndarray, np.ndarray]], num_images: int, job: SimpleNamespace) -> Seen:
    """Describe at least the first `num_images` images: name → (N,).

    For all images: the label, and each channel's mean and mean square of the normalised values. For crops of marked
    images also: blue, in grey levels; bent, the distance of the colours from a crop's, as a share of its sides; upside
    down; and CROP_LAW, with area and centre as shares of the image's.

    Raises ValueError if images are not (job.batch_size, 3, job.image_size, job.image_size) finite float32, or labels
    are not (job.batch_size,) integers.
    """
    parts: list[Seen] = []
    wanted = (job.batch_size, 3, job.image_size, job.image_size)
    for images, labels in batches:
        if images.shape != wanted or images.dtype != np.float32:
            raise ValueError(f"images are {images.shape} {images.dtype}, not {wanted} float32")
        if not np.isfinite(images).all():
            raise ValueError("images have values that are NaN or infinite")
        if labels.shape != wanted[:1] or labels.dtype.kind not in "iu":
            raise ValueError(f"labels are {labels.shape} {labels.dtype}, not {wanted[:1]} integers")
        values = images.astype(np.float64)
        means, squares = values.mean(axis=(2, 3)), (values**2).mean(axis=(2, 3))
        levels = values * np.reshape(job.std, (3, 1, 1)) + np.reshape(job.mean, (3, 1, 1))
        x, width, error_x = interval(levels[:, 0].mean(axis=1), WIDTH)
        y, height, error_y = interval(levels[:, 1].mean(axis=2), HEIGHT)
        # A peer may reuse the memory of its batches, as FFCV does
        seen = {"label": labels.copy(), "blue": levels[:, 2].mean(axis=(1, 2)), "bent": np.maximum(error_x, error_y)}
        seen |= {"upside down": height < 0, "flipped": width < 0, "area": np.abs(width * height)}
        seen |= {"aspect ratio": np.abs(width / height) * (WIDTH / HEIGHT)}
        seen |= {"centre from the left": x, "centre from the top": y}
        for channel, name in enumerate(CHANNELS):
            seen |= {f"{name}'s mean": means[:, channel], f"{name}'s mean square": squares[:, channel]}
        parts.append(seen)
        if len(parts) * job.batch_size >= num_images:
            break
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def interval(profile: np.ndarray, extent: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fit a line to (N, S) grey levels along one axis.

    Returns the middle and the length of the region that they show, as shares of the image, and the root mean square
    distance from the line, as a share of the length. The length is negative if the region is reversed.
    """
    num_pixels = profile.shape[1]
    inner = slice(int(num_pixels * MARGIN), num_pixels - int(num_pixels * MARGIN))
    places = ((np.arange(num_pixels) + 0.5) / num_pixels - 0.5)[inner]  # of the crop, from its middle
    shown = (profile[:, inner] / 255 * (extent - 1) + 0.5) / extent  # of the image, 0 to 1
    length, middle = np.polyfit(places, shown.T, 1)
    length = np.where(np.abs(length) < 1e-9, 1e-9, length)
    distance = np.sqrt(((shown - middle[:, None] - length[:, None] * places) ** 2).mean(axis=1))
    return middle, length, distance / np.abs(length)


def marked_faults(seen: Seen, ours: Seen) -> list[str]:
    """List the faults in crops of marked images.

    Checks the labels, the pixels, how often each image appears, and whether the crops follow our distribution.
    """
    off = np.abs(seen["blue"] - blue_of(seen["label"]))
    if off.max() > LEVELS_TOLERANCE:
        label, blue = (seen[name][off.argmax()] for name in ("label", "blue"))
        what = "wrong label, normalisation or channel order"
        return [f"blue should be {blue_of(label)} for label {label} but is {blue:.1f}: {what}"]
    if (bent := float(np.quantile(seen["bent"], 0.99))) > MAX_ERROR:
        return [f"colours are {bent:.0%} of the crop's side away from their place in a crop"]
    if seen["upside down"].any():
        return ["images are upside down"]
    counts = np.bincount(seen["label"], minlength=NUM_MARKED)
    worst, mean = np.abs(counts - counts.mean()).argmax(), counts.mean()
    if abs(counts[worst] - mean) > STANDARD_ERRORS * math.sqrt(mean):
        return [f"image {worst} appears {counts[worst]} times instead of {mean:.0f}: not once per epoch"]
    found = []
    for name in CROP_LAW:
        middle = ours[name].mean()
        found += differing(f"the mean of the crops' {name}", seen[name], ours[name])
        found += differing(f"the variance of the crops' {name}", *((one[name] - middle) ** 2 for one in (seen, ours)))
    return found


def pixel_faults(seen: Seen, ours: Seen) -> list[str]:
    """List the channels with a mean or mean square that differs from ours by more than decoders and chance explain."""
    found = []
    for name in CHANNELS:
        mean, square = f"{name}'s mean", f"{name}'s mean square"
        found += differing(mean, seen[mean], ours[mean], MEAN_TOLERANCE)
        found += differing(square, seen[square], ours[square], SQUARE_TOLERANCE * float(ours[square].mean()))
    return found


def differing(what: str, theirs: np.ndarray, ours: np.ndarray, tolerance: float = 0.0) -> list[str]:
    """Return a line if two samples' means differ by more than the tolerance plus chance."""
    error = math.hypot(*(one.std() / math.sqrt(len(one)) for one in (theirs, ours)))
    allowed = tolerance + STANDARD_ERRORS * error
    if abs(theirs.mean() - ours.mean()) <= allowed:
        return []
    return [f"{what} is {theirs.mean():.3f}, not {ours.mean():.3f} ± {allowed:.3f}"]
