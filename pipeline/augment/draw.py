"""Draw the parameters of every augmentation: (seed, epoch, position) → parameters in their natural units."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from penstock.pipeline.augment import colour, noise
from penstock.pipeline.augment.auto import chosen_ops, num_ops
from penstock.pipeline.augment.config import AugmentConfig
from penstock.pipeline.augment.geometry import centre_crop_params, pad_crop, random_resized_crop
from penstock.pipeline.augment.params import AugmentParams
from penstock.pipeline.permutation import permute, philox_key
from penstock.pipeline.plan import EpochPlan


@dataclass(frozen=True)
class Draws:
    """The plan's random numbers at n positions, given as runs of (start, count). Each stream is independent."""

    plan: EpochPlan
    runs: Sequence[tuple[int, int]]

    def __call__(self, stream: str, num_draws: int) -> np.ndarray:
        """(n, num_draws) uniform in [0, 1)."""
        draws = [self.plan.uniforms(stream, start, count, num_draws) for start, count in self.runs]
        return draws[0] if len(draws) == 1 else np.concatenate(draws)

    def happens(self, stream: str, probability: float) -> np.ndarray:
        """(n,) bool, true with this probability."""
        happening: np.ndarray = self(stream, 1)[:, 0] < probability
        return happening


def train_params(
    plan: EpochPlan,
    config: AugmentConfig,
    runs: Sequence[tuple[int, int]],
    heights: np.ndarray,
    widths: np.ndarray,
    image_size: int,
    sample_ids: np.ndarray | None = None,
) -> AugmentParams:
    """Draw the parameters of the training augmentation at n positions.

    Args:
        runs: the positions, as runs of (start, count). Each run costs one call for each stream of random numbers.
        heights, widths: (n,) pixels of the samples at these positions.
        image_size: pixels, the side of the output.
        sample_ids: (n,) the samples at these positions; only `hflip_alternate` needs them.

    Returns:
        anchor, shape, and the crop's other arrays (see `random_resized_crop`, `pad_crop`, `centre_crop_params`).
        mirror, flip_vertical: (n,) int32, 1 to flip.
        rotation: (n,) float32, degrees counter-clockwise.
        auto_op, auto_magnitude: see `chosen_ops`.
        brightness, contrast, saturation, hue: see `colour_jitter`.
        lighting: (n, 3) float32, added to R, G, B. grayscale: (n,) bool.
        blur: (n,) float32, sigma in pixels. noise: (n,) float32, standard deviation in grey levels.
        salt_pepper: (n,) float32, the fraction of pixels. jpeg: (n,) int32, the quality. 0 in these changes nothing.
        noise_key, salt_pepper_key: (n, 2) uint32, see `noise.py`.
        erase: (n, 4) int32: top, left, height, width in pixels; a height of 0 erases nothing.
        Arrays of augmentations that are off are missing; `mirror` is always there.
    """
    draws = Draws(plan, runs)
    params = _crop(draws, config, heights, widths, image_size)
    params |= _flips(draws, config, sample_ids)
    if config.rotation:
        params["rotation"] = ((2 * draws("rotation", 1)[:, 0] - 1) * config.rotation).astype(np.float32)
    if config.auto != "none":
        params |= chosen_ops(draws(config.auto, 1 + 3 * num_ops(config)), config, image_size)
    params |= _colours(draws, config)
    params |= _degradations(draws, config)
    if config.erase:
        on, box = np.split(draws("erase", 23), [1], axis=1)
        params["erase"] = noise.erased_box(
            box, on[:, 0] < config.erase, image_size, config.erase_scale, config.erase_ratio
        )
    return params


def _crop(
    draws: Draws, config: AugmentConfig, heights: np.ndarray, widths: np.ndarray, image_size: int
) -> AugmentParams:
    match config.crop:
        case "pad":
            return pad_crop(draws("pad_crop", 2), heights, widths, config.pad)
        case "centre":
            return centre_crop_params(heights, widths, image_size, round(image_size / config.crop_fraction))
        case "random_resized":
            return random_resized_crop(draws("random_resized_crop", 22), heights, widths, config.scale, config.ratio)


def _flips(draws: Draws, config: AugmentConfig, sample_ids: np.ndarray | None) -> AugmentParams:
    params: AugmentParams = {}
    if config.hflip_alternate:
        assert sample_ids is not None
        params["mirror"] = alternating(draws.plan, sample_ids)
    else:
        params["mirror"] = draws.happens("hflip", config.hflip).astype(np.int32)
    if config.vflip:
        params["flip_vertical"] = draws.happens("vflip", config.vflip).astype(np.int32)
    return params


def _colours(draws: Draws, config: AugmentConfig) -> AugmentParams:
    params: AugmentParams = {}
    if config.jitters_colour:
        params |= colour.colour_jitter(draws("colour_jitter", 4), config)
    if config.lighting:
        params["lighting"] = colour.lighting(draws("lighting", 6), config.lighting)
    if config.grayscale:
        params["grayscale"] = draws.happens("grayscale", config.grayscale)
    return params


def _degradations(draws: Draws, config: AugmentConfig) -> AugmentParams:
    """Draw blur, noise and JPEG compression: whether an image gets it, how much, and the key of a noise."""
    params: AugmentParams = {}
    if config.blur:
        on, amount = draws("blur", 2).T
        params["blur"] = noise.in_range(amount, on < config.blur, config.blur_sigma)
    if config.noise:
        on, amount, *key = draws("noise", 4).T
        params["noise"] = noise.in_range(amount, on < config.noise, config.noise_std)
        params["noise_key"] = noise.noise_keys(np.stack(key, 1))
    if config.salt_pepper:
        on, amount, *key = draws("salt_pepper", 4).T
        params["salt_pepper"] = noise.in_range(amount, on < config.salt_pepper, config.salt_pepper_amount)
        params["salt_pepper_key"] = noise.noise_keys(np.stack(key, 1))
    if config.jpeg:
        on, amount = draws("jpeg", 2).T
        params["jpeg"] = noise.quality(amount, on < config.jpeg, config.jpeg_quality)
    return params


def alternating(plan: EpochPlan, sample_ids: np.ndarray) -> np.ndarray:
    """(n,) int32: each sample's value alternates between 0 and 1 from epoch to epoch. In every epoch half are 1."""
    shuffled = permute(sample_ids, plan.num_samples, philox_key(plan.seed, 0, "hflip_alternate"))
    return ((shuffled + plan.epoch) % 2).astype(np.int32)
