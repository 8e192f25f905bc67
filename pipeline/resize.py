"""The CPU's resize as a node of the DALI graph: one fused kernel that runs in DALI's threads, without Python's lock.

DALI's own CPU `resize` and `crop_mirror_normalize` take 0.75 ms or more for an image of 224 px, as much as decoding it;
this takes 0.14 ms. On the GPU, DALI's operators do the work.
"""

import functools

import numpy as np
from numba import carray
from numba.core.ccallback import CFunc

from penstock.pipeline.augment.params import AugmentParams
from penstock.pipeline.compiled_node import RUN, SETUP, compiled_node
from penstock.pipeline.compiling import compiled, compiled_callback, pointer
from penstock.pipeline.config import Interpolation
from penstock.pipeline.dali import Node
from penstock.pipeline.resize_kernel import (
    ANTIALIAS,
    BIAS,
    BOTTOM,
    FILTER,
    FLIP_X,
    FLIP_Y,
    GAIN,
    GEOMETRY_COLUMNS,
    INTERPOLATIONS,
    LEFT,
    RIGHT,
    SHIFT_X,
    SHIFT_Y,
    TOP,
    resize_image,
)


def geometry(
    params: AugmentParams,
    *,
    interpolation: Interpolation,
    antialias: bool,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> np.ndarray:
    """The kernel's parameters for each sample: (n, GEOMETRY_COLUMNS) float64.

    Args:
        params: the plan's arrays: `shape`, and if present `roi_start`, `roi_end`, `shift`, `mirror` and `flip_vertical`
            (see `pipeline.augment`).
    """
    shape = params["shape"]
    rows = np.zeros((len(shape), GEOMETRY_COLUMNS))
    rows[:, [TOP, LEFT]] = params.get("roi_start", 0)
    rows[:, [BOTTOM, RIGHT]] = params.get("roi_end", shape)
    rows[:, [SHIFT_Y, SHIFT_X]] = params.get("shift", 0)
    rows[:, FLIP_Y] = params.get("flip_vertical", 0)
    rows[:, FLIP_X] = params.get("mirror", 0)
    rows[:, FILTER] = INTERPOLATIONS.index(interpolation)
    rows[:, ANTIALIAS] = antialias
    rows[:, GAIN : GAIN + 3] = 1 / np.asarray(std)
    rows[:, BIAS : BIAS + 3] = -np.asarray(mean) / np.asarray(std)
    return rows


@compiled()
def _arguments(outs, out_shapes, ins, in_shapes):
    """The operator's arguments as arrays, for one output and the inputs (image, geometry)."""
    ins, in_shapes = carray(pointer(ins), 2, np.uint64), carray(pointer(in_shapes), 2, np.uint64)
    outs, out_shapes = carray(pointer(outs), 1, np.uint64), carray(pointer(out_shapes), 1, np.uint64)
    in_shape, out_shape = carray(pointer(in_shapes[0]), 3, np.int64), carray(pointer(out_shapes[0]), 3, np.int64)
    image = carray(pointer(ins[0]), (in_shape[0] * in_shape[1] * 3,), np.uint8)
    return image, in_shape, carray(pointer(ins[1]), (GEOMETRY_COLUMNS,), np.float64), outs[0], out_shape


@compiled_callback(RUN)
def _run_normalised(outs, out_shapes, out_ndims, num_outs, ins, in_shapes, in_ndims, num_ins):
    image, size, geometry, address, out_size = _arguments(outs, out_shapes, ins, in_shapes)
    out = carray(pointer(address), (out_size[0] * out_size[1] * 3,), np.float32)
    resize_image(image, size[0], size[1], 3 * size[1], geometry, out, out_size[0], out_size[1])


@compiled_callback(RUN)
def _run_levels(outs, out_shapes, out_ndims, num_outs, ins, in_shapes, in_ndims, num_ins):
    image, size, geometry, address, out_size = _arguments(outs, out_shapes, ins, in_shapes)
    out = carray(pointer(address), (out_size[0] * out_size[1] * 3,), np.uint8)
    resize_image(image, size[0], size[1], 3 * size[1], geometry, out, out_size[0], out_size[1])


@functools.cache  # also keeps the compiled code alive
def _setup(image_size: int) -> CFunc:
    """The function that sets the output's shape for DALI."""

    @compiled_callback(SETUP)
    def setup(out_shapes, out_ndims, num_outs, in_shapes, in_ndims, num_ins, num_samples):
        for address in carray(pointer(out_shapes), (num_samples,), np.uint64):
            shape = carray(pointer(address), 3, np.int64)
            shape[0], shape[1], shape[2] = image_size, image_size, 3

    return setup


def resize(images: Node, geometry: Node, image_size: int, *, normalise: bool) -> Node:
    """A node of the DALI graph: decoded regions (H, W, 3) uint8 → (image_size, image_size, 3).

    Args:
        images, geometry: DALI nodes; geometry as `geometry()` makes it.
        normalise: return float32 (pixel - mean) / std; otherwise uint8.
    """
    from nvidia.dali import types

    return compiled_node(
        _run_normalised if normalise else _run_levels,
        _setup(image_size),
        types.FLOAT if normalise else types.UINT8,
        (images, types.UINT8, 3),
        (geometry, types.FLOAT64, 1),
    )
