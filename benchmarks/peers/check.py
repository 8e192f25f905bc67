"""Are a peer's batches what was asked for? Batches → what their images are like → faults, a line each.

Marked images are such that a crop tells all: red and green grow along the image, so a crop's colours say where it was
cut out; its even blue says which image it is, and the number of that is its label. Of the images that are timed, mean
and contrast are compared. NumPy alone: it also runs in the peers' environments.
"""

import math
from collections.abc import Iterable
from types import SimpleNamespace

import numpy as np

WIDTH, HEIGHT, NUM_MARKED = 320, 240, 32
LEVELS_TOLERANCE = 3.0  # grey levels, of an even colour
MARGIN = 0.1  # at each border of a crop, where the resize repeats pixels, this share is left out of the fit
MAX_ERROR = 0.05  # of a crop's sides: how far its colours may be from those of a plain crop
STANDARD_ERRORS = 4.5  # of a difference between two samples; chance exceeds it in 7 of a million comparisons
MEAN_TOLERANCE = 0.05  # of normalised values; decoders and filters differ so much at most
SQUARE_TOLERANCE = 0.12  # as a share: a resize without antialias leaves more contrast
CROP_LAW = ("flipped", "area", "aspect ratio", "centre from the left", "centre from the top")
CHANNELS = ("red", "green", "blue")

Seen = dict[str, np.ndarray]  # see `describe`


def blue_of(label: np.ndarray | int) -> np.ndarray:
    """Grey levels, far enough apart to be told from each other."""
    return 16 + 7 * np.asarray(label)


def marked_image(label: int) -> np.ndarray:
    """(HEIGHT, WIDTH, 3) uint8: red grows from 0 at the left to 255 at the right, green so from top to bottom."""
    red, green = np.meshgrid(np.linspace(0, 255, WIDTH), np.linspace(0, 255, HEIGHT))
    return np.stack([red, green, np.full_like(red, blue_of(label))], axis=-1).round().astype(np.uint8)


def describe(batches: Iterable[tuple[np.ndarray, np.ndarray]], num_images: int, job: SimpleNamespace) -> Seen:
    """What the first `num_images` images, or some more, are like: name → (N,).

    label; of each channel the mean and the mean square of the normalised values. Of crops of marked images also blue,
    in grey levels; bent, how far colours are from a crop's, as a share of its sides; upside down; and CROP_LAW, with
    area and centre as shares of the image's.

    Raises ValueError for images that are not (job.batch_size, 3, job.image_size, job.image_size) finite float32, or
    labels that are not (job.batch_size,) integers.
    """
    parts: list[Seen] = []
    wanted = (job.batch_size, 3, job.image_size, job.image_size)
    for images, labels in batches:
        if images.shape != wanted or images.dtype != np.float32:
            raise ValueError(f"images are {images.shape} {images.dtype}, not {wanted} float32")
        if not np.isfinite(images).all():
            raise ValueError("images have values that are not finite")
        if labels.shape != wanted[:1] or labels.dtype.kind not in "iu":
            raise ValueError(f"labels are {labels.shape} {labels.dtype}, not {wanted[:1]} integers")
        values = images.astype(np.float64)
        means, squares = values.mean(axis=(2, 3)), (values**2).mean(axis=(2, 3))
        levels = values * np.reshape(job.std, (3, 1, 1)) + np.reshape(job.mean, (3, 1, 1))
        x, width, error_x = interval(levels[:, 0].mean(axis=1), WIDTH)
        y, height, error_y = interval(levels[:, 1].mean(axis=2), HEIGHT)
        # A peer may use the memory of its batches again, as FFCV does
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
    """(N, S) grey levels along one axis → the middle and the length of what they show, as shares of the image, the
    length negative where it runs backwards; the root mean square distance from the line, as a share of the length."""
    num_pixels = profile.shape[1]
    inner = slice(int(num_pixels * MARGIN), num_pixels - int(num_pixels * MARGIN))
    places = ((np.arange(num_pixels) + 0.5) / num_pixels - 0.5)[inner]  # of the crop, from its middle
    shown = (profile[:, inner] / 255 * (extent - 1) + 0.5) / extent  # of the image, 0 to 1
    length, middle = np.polyfit(places, shown.T, 1)
    length = np.where(np.abs(length) < 1e-9, 1e-9, length)
    distance = np.sqrt(((shown - middle[:, None] - length[:, None] * places) ** 2).mean(axis=1))
    return middle, length, distance / np.abs(length)


def marked_faults(seen: Seen, ours: Seen) -> list[str]:
    """What is wrong with crops of marked images: labels, pixels, how often each image comes; and how they are drawn,
    where that is not as in ours."""
    off = np.abs(seen["blue"] - blue_of(seen["label"]))
    if off.max() > LEVELS_TOLERANCE:
        label, blue = (seen[name][off.argmax()] for name in ("label", "blue"))
        what = "wrong label, normalisation or order of channels"
        return [f"the even blue {blue_of(label)} of label {label} comes out as {blue:.1f}: {what}"]
    if (bent := float(np.quantile(seen["bent"], 0.99))) > MAX_ERROR:
        return [f"colours are {bent:.0%} of the crop's side away from where a crop has them"]
    if seen["upside down"].any():
        return ["images are upside down"]
    counts = np.bincount(seen["label"], minlength=NUM_MARKED)
    worst, mean = np.abs(counts - counts.mean()).argmax(), counts.mean()
    if abs(counts[worst] - mean) > STANDARD_ERRORS * math.sqrt(mean):
        return [f"image {worst} comes {counts[worst]} times where each should {mean:.0f} times: not once an epoch"]
    found = []
    for name in CROP_LAW:
        middle = ours[name].mean()
        found += differing(f"the mean of the crops' {name}", seen[name], ours[name])
        found += differing(f"the variance of the crops' {name}", *((one[name] - middle) ** 2 for one in (seen, ours)))
    return found


def pixel_faults(seen: Seen, ours: Seen) -> list[str]:
    """Channels whose mean or mean square is another than ours, beyond what decoders and chance explain."""
    found = []
    for name in CHANNELS:
        mean, square = f"{name}'s mean", f"{name}'s mean square"
        found += differing(mean, seen[mean], ours[mean], MEAN_TOLERANCE)
        found += differing(square, seen[square], ours[square], SQUARE_TOLERANCE * float(ours[square].mean()))
    return found


def differing(what: str, theirs: np.ndarray, ours: np.ndarray, tolerance: float = 0.0) -> list[str]:
    """A line if two samples' means differ by more than the tolerance and what chance explains."""
    error = math.hypot(*(one.std() / math.sqrt(len(one)) for one in (theirs, ours)))
    allowed = tolerance + STANDARD_ERRORS * error
    if abs(theirs.mean() - ours.mean()) <= allowed:
        return []
    return [f"{what} is {theirs.mean():.3f}, not {ours.mean():.3f} ± {allowed:.3f}"]
