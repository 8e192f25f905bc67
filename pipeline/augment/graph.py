"""The augmentations as nodes of the DALI graph: uint8 images and the plan's steps → uint8 images.

Each step runs only on the samples that need it: DALI splits the batch without a copy and merges it again, as in its
conditional execution. So an operation costs only its share of the images, and nothing if no image needs it.
On the CPU, colours and noise are compiled kernels (`pipeline/augment/kernel.py`), each as a separate node.
DALI's operators: docs.nvidia.com/deeplearning/dali, "Operation Reference".
"""

from collections.abc import Callable
from itertools import groupby
from typing import Any

import numpy as np

from penstock.pipeline.augment.noise import MIX, SECOND, UINT32
from penstock.pipeline.augment.params import Name, StepArray
from penstock.pipeline.config import DataConfig
from penstock.pipeline.dali import Arguments, Node


def augment_images(images: Node, params: dict[Name, Node], config: DataConfig) -> Node:
    """Apply the steps that `pipeline.augment.steps.step_arrays` made, one after the other.

    Args:
        images: uint8 (S, S, 3), RGB, on the CPU or the GPU.
        params: array name → node on the CPU; arrays that belong to no step are ignored.
        config: has the mean colour that fills erased boxes.

    Returns:
        images in the same form: uint8 (S, S, 3), layout "HWC".
    """
    from nvidia.dali import fn

    images = fn.reshape(images, layout="HWC")
    steps = [name for name in params if isinstance(name, StepArray)]
    for (_, kind), group in groupby(steps, key=lambda name: (name.number, name.kind)):
        arguments = {name.argument: params[name] for name in group}
        if kind == "erase":
            arguments["colour"] = np.rint(config.mean)
        images = _where(arguments.pop("on"), images, arguments, OPERATIONS[kind])
    return images


def _where(on: Node, images: Node, arguments: Arguments, operation: Callable[..., Node]) -> Node:
    """Apply `operation` to the samples with `on` true."""
    from nvidia.dali import fn

    split, merge = fn._conditional.split, fn._conditional.merge  # type: ignore[attr-defined]
    chosen, others = split(images, predicate=on)
    arguments = {
        name: value if isinstance(value, np.ndarray) else split(value, predicate=on)[0]
        for name, value in arguments.items()
    }
    return merge(operation(chosen, **arguments), others, predicate=on)


def _beside(value: Node, images: Node) -> Node:
    """The node on the device of the images, for an operation that needs it as an input instead of an argument."""
    return value.gpu() if images.device == "gpu" else value


def has_kernels(images: Node) -> bool:
    """Whether compiled kernels are used for the steps that have one. Otherwise DALI's operators do all steps.

    The kernels are for the CPU only. The operators run on either device, so that tests can run them without a GPU.
    """
    return bool(images.device == "cpu")


def _by_kernel(kind: str, images: Node, *arrays: tuple[Node, Any, int]) -> Node:
    """Apply a step by its kernel with these arrays, each given with its type and number of axes."""
    from nvidia.dali import fn, types

    from penstock.pipeline.augment.kernel import kernel, same_shape
    from penstock.pipeline.compiled_node import compiled_node

    made = compiled_node(kernel(kind), same_shape(), types.UINT8, (images, types.UINT8, 3), *arrays)
    return fn.reshape(made, layout="HWC")


def _warp_nearest(images: Node, matrix: Node) -> Node:
    from nvidia.dali import fn, types

    return fn.warp_affine(images, matrix=matrix, interp_type=types.INTERP_NN, fill_value=0)


def _warp_linear(images: Node, matrix: Node) -> Node:
    from nvidia.dali import fn, types

    return fn.warp_affine(images, matrix=matrix, interp_type=types.INTERP_LINEAR, fill_value=0)


def _colour(images: Node, matrix: Node, offset: Node) -> Node:
    from nvidia.dali import fn, types

    if has_kernels(images):
        return _by_kernel("colour", images, (matrix, types.FLOAT, 2), (offset, types.FLOAT, 1))
    return fn.coord_transform(images, M=matrix, T=offset, dtype=types.UINT8)


def _colour_about_mean(images: Node, matrix: Node, offset: Node, mean_weights: Node) -> Node:
    from nvidia.dali import fn, types

    if has_kernels(images):
        arrays = (matrix, types.FLOAT, 2), (offset, types.FLOAT, 1), (mean_weights, types.FLOAT, 2)
        return _by_kernel("colour_about_mean", images, *arrays)
    mean = fn.reductions.mean(images, axes=[0, 1])
    shift = fn.reductions.sum(_beside(mean_weights, images) * mean, axes=[1])
    mapped = fn.coord_transform(images, M=matrix, T=offset, dtype=types.FLOAT)  # the shift cannot be its argument:
    return fn.cast(mapped + shift, dtype=types.UINT8)  # it would have to come back from the GPU


def _bits(images: Node, mask: Node, threshold: Node) -> Node:
    from nvidia.dali import types

    inverted = (images >= _beside(threshold, images)) * types.Constant(255, dtype=types.UINT8)
    return (images & _beside(mask, images)) ^ inverted


def _filter(images: Node, kernel: Node) -> Node:
    from nvidia.dali import fn

    return fn.filter(images, _beside(kernel, images))


def _blur(images: Node, row: Node, column: Node) -> Node:
    """Blur along rows, then columns. It takes a fifth of the time of DALI's `gaussian_blur` on the CPU and rounds once
    more."""
    return _filter(_filter(images, row), column)


def _autocontrast(images: Node) -> Node:
    """Pillow's autocontrast: stretch each channel to 0 … 255, rounded down. A channel with one level stays as it is."""
    from nvidia.dali import fn, types

    lowest, highest = fn.reductions.min(images, axes=[0, 1]), fn.reductions.max(images, axes=[0, 1])
    spread = fn.cast(highest, dtype=types.FLOAT) - lowest
    flat = spread == 0
    scale = types.Constant(255.0) / (spread + flat * types.Constant(255.0))
    offset = -1.0 * lowest * scale * (1.0 - flat) - (0.5 - 1e-3)
    return fn.cast(images * scale + offset, dtype=types.UINT8)


def _equalize(images: Node) -> Node:
    from nvidia.dali import fn

    return fn.equalize(images)


def _hashed(rows: Node, columns: Node, images: Node) -> Node:
    """`noise.hashed_field` in the graph."""
    from nvidia.dali import types

    def word(value: int) -> Node:
        return types.Constant(value, dtype=types.UINT32)

    bits = (_beside(rows, images) ^ _beside(columns, images)) * word(MIX[0])
    return (bits ^ (bits // word(2**16))) * word(MIX[1])


def _noise(images: Node, rows: Node, columns: Node, std: Node) -> Node:
    """Add `noise.gaussian_field` times the standard deviation."""
    from nvidia.dali import fn, math, types

    if has_kernels(images):
        return _by_kernel("noise", images, (rows, types.UINT32, 3), (columns, types.UINT32, 2), (std, types.FLOAT, 0))

    def number(value: float) -> Node:
        return types.Constant(value, dtype=types.FLOAT)

    bits = _hashed(rows, columns, images)
    radius = math.sqrt(math.log(bits * number(1 / UINT32) + number(0.5 / UINT32)) * number(-2.0))
    angle = (bits * types.Constant(SECOND, dtype=types.UINT32)) * number(2 * np.pi / UINT32)
    return fn.cast_like(images + radius * math.cos(angle) * _beside(std, images), images)


def _salt_pepper(images: Node, rows: Node, columns: Node, low: Node) -> Node:
    from nvidia.dali import types

    if has_kernels(images):
        arrays = (rows, types.UINT32, 3), (columns, types.UINT32, 2), (low, types.UINT32, 0)
        return _by_kernel("salt_pepper", images, *arrays)
    bits, white = _hashed(rows, columns, images), types.Constant(255, dtype=types.UINT8)
    low, all_bits = _beside(low, images), types.Constant(UINT32 - 1, dtype=types.UINT32)
    return (images & (bits >= low) * white) | (bits > (low ^ all_bits)) * white


def _jpeg(images: Node, quality: Node) -> Node:
    from nvidia.dali import fn

    return fn.jpeg_compression_distortion(images, quality=quality)


def _erase(images: Node, anchor: Node, shape: Node, colour: np.ndarray) -> Node:
    from nvidia.dali import fn

    return fn.erase(images, anchor=anchor, shape=shape, axes=[0, 1], fill_value=colour.tolist())


OPERATIONS: dict[str, Callable[..., Node]] = {
    "warp_nearest": _warp_nearest,
    "warp_linear": _warp_linear,
    "colour": _colour,
    "colour_about_mean": _colour_about_mean,
    "bits": _bits,
    "filter": _filter,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "blur": _blur,
    "noise": _noise,
    "salt_pepper": _salt_pepper,
    "jpeg": _jpeg,
    "erase": _erase,
}
