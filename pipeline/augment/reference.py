"""Execute the drawn parameters on one image by Pillow and torchvision, as the reference for `augment/graph.py`.

An operation that torchvision has is torchvision's, on the PIL image if possible. The others follow their papers. The
noise fields are the plan's (`pipeline.augment.noise`).
"""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.autoaugment import _apply_op
from torchvision.transforms.v2 import functional as F

from penstock.pipeline.augment import AugmentConfig, AugmentParams
from penstock.pipeline.augment.auto import OPS
from penstock.pipeline.augment.noise import blur_radius, gaussian_field, hashed_field, salt_pepper_threshold
from penstock.pipeline.config import DataConfig

Step = Callable[[Image.Image, AugmentParams, AugmentConfig, DataConfig], Image.Image]


def reference_augment(
    image: Image.Image, params: AugmentParams, config: AugmentConfig, data: DataConfig
) -> Image.Image:
    """Apply the augmentations that follow crop, resize and shift.

    Args:
        image: RGB, image_size × image_size.
        params: one sample's row of each of `train_params`'s arrays.
    """
    for name, step in STEPS.items():
        if name in params:
            image = step(image, params, config, data)
    return image


def _mirror(image: Image.Image, params: AugmentParams, *_: object) -> Image.Image:
    return F.horizontal_flip(image) if params["mirror"] else image


def _flip_vertical(image: Image.Image, params: AugmentParams, *_: object) -> Image.Image:
    return F.vertical_flip(image) if params["flip_vertical"] else image


def _rotation(image: Image.Image, params: AugmentParams, config: AugmentConfig, _: object) -> Image.Image:
    degrees = float(params["rotation"])
    if config.rotation_filter == "linear":
        # Pillow's bilinear rotation is black within half a pixel of the border; the tensors' fades out, without `fill`.
        pixels = F.rotate(F.pil_to_tensor(image), degrees, interpolation=InterpolationMode.BILINEAR)
        return _to_image(pixels)
    turned: Image.Image = F.rotate(image, degrees, interpolation=InterpolationMode.NEAREST)
    return turned


def _auto(image: Image.Image, params: AugmentParams, *_: object) -> Image.Image:
    for op, magnitude in zip(params["auto_op"].tolist(), params["auto_magnitude"].tolist(), strict=True):
        image = _apply_op(image, OPS[op], magnitude, InterpolationMode.NEAREST, None)
    return image


def _jitter(image: Image.Image, params: AugmentParams, config: AugmentConfig, _: object) -> Image.Image:
    for name in ("brightness", "contrast", "saturation", "hue"):
        if getattr(config, name):
            amount = float(params[name]) / (360 if name == "hue" else 1)
            image = getattr(F, f"adjust_{name}")(image, amount)
    return image


def _lighting(image: Image.Image, params: AugmentParams, *_: object) -> Image.Image:
    return _rounded(np.asarray(image) + params["lighting"])


def _grayscale(image: Image.Image, params: AugmentParams, *_: object) -> Image.Image:
    return F.rgb_to_grayscale(image, num_output_channels=3) if params["grayscale"] else image


def _blur(image: Image.Image, params: AugmentParams, config: AugmentConfig, _: object) -> Image.Image:
    if not params["blur"]:
        return image
    size = 2 * blur_radius(config.blur_sigma[1]) + 1
    sigma = float(params["blur"])
    return _to_image(F.gaussian_blur(F.pil_to_tensor(image), [size, size], [sigma, sigma]))


def _noise(image: Image.Image, params: AugmentParams, *_: object) -> Image.Image:
    field = gaussian_field(params["noise_key"][None], image.width)[0]
    return _rounded(np.asarray(image) + params["noise"] * field)


def _salt_pepper(image: Image.Image, params: AugmentParams, *_: object) -> Image.Image:
    field = hashed_field(params["salt_pepper_key"][None], image.width, image.width)[0]
    low, pixels = salt_pepper_threshold(params["salt_pepper"]), np.asarray(image).copy()
    pixels[field < low], pixels[field > ~low] = 0, 255
    return Image.fromarray(pixels)


def _jpeg(image: Image.Image, params: AugmentParams, *_: object) -> Image.Image:
    if not params["jpeg"]:
        return image
    return _to_image(F.jpeg(F.pil_to_tensor(image), int(params["jpeg"])))


def _erase(image: Image.Image, params: AugmentParams, _: object, data: DataConfig) -> Image.Image:
    top, left, height, width = params["erase"].tolist()
    if not height:
        return image
    colour = torch.tensor(data.mean).round().to(torch.uint8)[:, None, None]
    return _to_image(F.erase(F.pil_to_tensor(image), top, left, height, width, colour))


def _to_image(pixels: torch.Tensor) -> Image.Image:
    image: Image.Image = F.to_pil_image(pixels)
    return image


def _rounded(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


# Parameter → the operation that it causes if it is present, in the order of execution.
STEPS: dict[str, Step] = {
    "mirror": _mirror,
    "flip_vertical": _flip_vertical,
    "rotation": _rotation,
    "auto_op": _auto,
    "brightness": _jitter,
    "lighting": _lighting,
    "grayscale": _grayscale,
    "blur": _blur,
    "noise": _noise,
    "salt_pepper": _salt_pepper,
    "jpeg": _jpeg,
    "erase": _erase,
}
