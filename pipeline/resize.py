"""The CPU's resize as a node of the DALI graph: one fused kernel, run in DALI's threads without Python or its lock.

DALI's own CPU `resize` and `crop_mirror_normalize` take 0.75 ms an image of 224 px and more, as much as decoding it;
this takes 0.14. It is called through DALI's Numba operator ("NumbaFunction" in its reference). On the GPU DALI's
operators do the work.
"""

import functools
from collections.abc import Callable

import numpy as np
from numba import carray, types
from numba.core import cgutils
from numba.core.ccallback import CFunc
from numba.extending import intrinsic

from pipeline.augment.params import AugmentParams
from pipeline.compiling import compiled, compiled_callback
from pipeline.config import Interpolation
from pipeline.dali import Node
from pipeline.resize_kernel import (
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
    """What the kernel needs to know of each sample: (n, GEOMETRY_COLUMNS) float64.

    Args:
        params: the plan's arrays: `shape`, and where there are such `roi_start`, `roi_end`, `shift`, `mirror` and
            `flip_vertical` (see `pipeline.augment`).
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


@intrinsic
def _pointer(context, address):
    """An integer as a pointer, which is how DALI's operator hands over its arrays."""
    return types.voidptr(address), lambda cg, builder, signature, args: builder.inttoptr(args[0], cgutils.voidptr_t)


_ADDRESS, _COUNT = types.uint64, types.int32
_RUN = types.void(_ADDRESS, _ADDRESS, _ADDRESS, _COUNT, _ADDRESS, _ADDRESS, _ADDRESS, _COUNT)
_SETUP = types.void(_ADDRESS, _ADDRESS, _COUNT, _ADDRESS, _ADDRESS, _COUNT, _COUNT)


@compiled()
def _arguments(outs, out_shapes, ins, in_shapes):
    """What the operator is called with, for one output and the inputs (image, geometry)."""
    ins, in_shapes = carray(_pointer(ins), 2, np.uint64), carray(_pointer(in_shapes), 2, np.uint64)
    outs, out_shapes = carray(_pointer(outs), 1, np.uint64), carray(_pointer(out_shapes), 1, np.uint64)
    in_shape, out_shape = carray(_pointer(in_shapes[0]), 3, np.int64), carray(_pointer(out_shapes[0]), 3, np.int64)
    image = carray(_pointer(ins[0]), (in_shape[0] * in_shape[1] * 3,), np.uint8)
    return image, in_shape, carray(_pointer(ins[1]), (GEOMETRY_COLUMNS,), np.float64), outs[0], out_shape


@compiled_callback(_RUN)
def _run_normalised(outs, out_shapes, out_ndims, num_outs, ins, in_shapes, in_ndims, num_ins):
    image, size, geometry, address, out_size = _arguments(outs, out_shapes, ins, in_shapes)
    out = carray(_pointer(address), (out_size[0] * out_size[1] * 3,), np.float32)
    resize_image(image, size[0], size[1], 3 * size[1], geometry, out, out_size[0], out_size[1])


@compiled_callback(_RUN)
def _run_levels(outs, out_shapes, out_ndims, num_outs, ins, in_shapes, in_ndims, num_ins):
    image, size, geometry, address, out_size = _arguments(outs, out_shapes, ins, in_shapes)
    out = carray(_pointer(address), (out_size[0] * out_size[1] * 3,), np.uint8)
    resize_image(image, size[0], size[1], 3 * size[1], geometry, out, out_size[0], out_size[1])


@functools.cache  # also keeps the compiled code alive
def _setup(image_size: int) -> CFunc:
    """The function that tells DALI the output's shape."""

    @compiled_callback(_SETUP)
    def setup(out_shapes, out_ndims, num_outs, in_shapes, in_ndims, num_ins, num_samples):
        for address in carray(_pointer(out_shapes), (num_samples,), np.uint64):
            shape = carray(_pointer(address), 3, np.int64)
            shape[0], shape[1], shape[2] = image_size, image_size, 3

    return setup


def resize(images: Node, geometry: Node, image_size: int, *, normalise: bool) -> Node:
    """A node of the DALI graph: decoded regions (H, W, 3) uint8 → (image_size, image_size, 3).

    Args:
        images, geometry: DALI nodes; geometry as `geometry()` makes it.
        normalise: give float32 (pixel - mean) / std; otherwise uint8.
    """
    from nvidia.dali import types as dali
    from nvidia.dali.plugin.numba import NumbaFunction

    class Compiled(NumbaFunction):
        """Takes addresses: the plug-in would compile its wrapper at every start, for 3 s, and never keep it."""

        def _get_run_fn_cpu(self, run_fn: int, *_: object) -> int:
            return run_fn

        def _get_setup_fn_cpu(self, setup_fn: int) -> int:
            return setup_fn

    make: Callable[..., Callable[..., Node]] = Compiled  # its annotations ask for Python functions
    operator = make(
        run_fn=(_run_normalised if normalise else _run_levels).address,
        setup_fn=_setup(image_size).address,
        out_types=[dali.FLOAT if normalise else dali.UINT8],
        in_types=[dali.UINT8, dali.FLOAT64],
        outs_ndim=[3],
        ins_ndim=[3, 1],
    )
    return operator(images, geometry)
