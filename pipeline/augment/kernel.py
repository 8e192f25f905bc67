"""The colour map and the noises on the CPU, compiled by Numba: each is one pass over an image, a node of DALI's graph.

On the CPU, DALI's operators take 1.4 ms for the colours of a 224 px image, 3.7 ms for its noise and 0.8 ms for salt and
pepper. These kernels take 0.04, 0.11 and 0.03 ms. On the GPU the operators are used (`pipeline/augment/graph.py`).
Values are float32 and rounded at the end of each step, halves up. The words of a noise are integers, identical to the
plan's.

Loops over pixels are written for LLVM's vectoriser: no branches, no calls, no index that may be negative. So logarithm
and cosine are polynomials here; the C library's functions compute one number at a time.
"""

import functools
import math

import numpy as np
from numba import carray, types
from numba.core.ccallback import CFunc
from numba.extending import intrinsic

from penstock.pipeline.augment.noise import MIX, SECOND
from penstock.pipeline.compiled_node import RUN, SETUP
from penstock.pipeline.compiling import compiled, compiled_callback, pointer

_FAST = {"contract", "nsz"}
_inlined = compiled(fastmath=_FAST, error_model="numpy", inline="always")
_U, _W, _I, _F = np.uintp, np.uint32, np.int32, np.float32  # an index (see resize_kernel.py), a word, its bits, a value
_1, _2, _3, _16 = _U(1), _U(2), _U(3), _W(16)
_PART = _U(3 * 2**16)  # of an image: its sums have room in 32 bits
_MIX_0, _MIX_1, _SECOND = map(_W, (*MIX, SECOND))
_SQRT_HALF, _MANTISSA = _I(0x3F3504F3), _I(23)  # of float32: √½'s bits; the places of a mantissa
_LN_2, _LOG_1, _LOG_2, _LOG_3 = map(_F, (math.log(2), 1 / 3, 1 / 5, 1 / 7))
_QUARTER_TURN, _RADIANS = _I(2**30), _F(2 * math.pi / 2**32)  # of 2³² a turn
_SIN_1, _SIN_2, _SIN_3, _SIN_4, _SIN_5 = (_F((-1) ** k / math.factorial(2 * k + 1)) for k in range(1, 6))


def _as_is(context, builder, signature, args):
    return builder.bitcast(args[0], context.get_value_type(signature.return_type))


@intrinsic
def _bits(context, value):
    """A float32's bits as int32."""
    return types.int32(types.float32), _as_is


@intrinsic
def _value(context, bits):
    """The float32 of an int32's bits."""
    return types.float32(types.int32), _as_is


@_inlined
def _level(x):
    """Convert a value to a grey level like DALI's operators on the CPU: saturated, halves rounded up."""
    return np.uint8(min(max(x, _F(0)), _F(255)) + _F(0.5))


@_inlined
def _mixed(word):
    """The word of `noise.hashed_field`, from a row's word xor a column's."""
    word = _W(word * _MIX_0)
    return _W((word ^ (word >> _16)) * _MIX_1)


@_inlined
def _log_uniform(word):
    """log((word + ½) / 2³²), float32, within 1.5e-7. For values below -1 this error is relative.

    The bits of x give x = m · 2^e with m from √½ to √2. log m = 2 artanh s = 2 (s + s³/3 + s⁵/5 + …) with
    s = (m - 1) / (m + 1). |s| is at most 0.172, so the terms after s⁷/7 are below 3e-8.
    """
    bits = _bits(_F(word) + _F(0.5))
    exponent = _I(bits - _SQRT_HALF) >> _MANTISSA
    m = _value(_I(bits - (exponent << _MANTISSA)))
    s = (m - _F(1)) / (m + _F(1))
    z = s * s
    return _F(_I(exponent - _I(32))) * _LN_2 + _F(2) * s * (_F(1) + z * (_LOG_1 + z * (_LOG_2 + z * _LOG_3)))


@_inlined
def _cosine(word):
    """cos(2π word / 2³²), float32, with an error of 2e-7.

    As a signed number the word is at most half a turn, and cos x = sin(π/2 - |x|). This is Taylor's series of the sine
    within a quarter of a turn; its terms after x¹¹/11! are below 6e-8.
    """
    x = _F(_I(_QUARTER_TURN - abs(_I(word)))) * _RADIANS
    z = x * x
    return x * (_F(1) + z * (_SIN_1 + z * (_SIN_2 + z * (_SIN_3 + z * (_SIN_4 + z * _SIN_5)))))


@compiled(fastmath=_FAST, error_model="numpy")
def map_colours(image, matrix, offset, out):
    """Map each pixel to matrix · pixel + offset.

    Args:
        image, out: (3 n,) uint8, RGB. matrix: (9,) float32, row by row. offset: (3,) float32.
    """
    m00, m01, m02, m10, m11, m12, m20, m21, m22 = matrix
    t0, t1, t2 = offset
    for pixel in range(_U(len(image)) // _3):
        i = _3 * pixel
        r, g, b = _F(image[i]), _F(image[i + _1]), _F(image[i + _2])
        out[i] = _level(m00 * r + m01 * g + m02 * b + t0)
        out[i + _1] = _level(m10 * r + m11 * g + m12 * b + t1)
        out[i + _2] = _level(m20 * r + m21 * g + m22 * b + t2)


@compiled(error_model="numpy")
def mean_colour(image):
    """The mean colour, from exact sums: (3 n,) uint8, RGB → (3,) float64."""
    total, n = np.zeros(3), _U(len(image))
    for begin in range(_U(0), n, _PART):
        r = g = b = _W(0)
        for pixel in range(min(_PART, n - begin) // _3):
            i = begin + _3 * pixel
            r, g, b = _W(r + image[i]), _W(g + image[i + _1]), _W(b + image[i + _2])
        total[0] += r
        total[1] += g
        total[2] += b
    return total / (n // _3)


@compiled(fastmath=_FAST, error_model="numpy")
def add_noise(image, rows, columns, std, out):
    """Add `noise.gaussian_field` times the standard deviation.

    Args:
        image, out: (S × S × 3,) uint8. rows: (S,) uint32; columns: (3 S,) uint32, `noise.hashed_lines`. std: float32.
    """
    n = _U(len(columns))
    for y in range(_U(len(rows))):
        row, begin = rows[y], y * n
        for x in range(n):
            word = _mixed(_W(row ^ columns[x]))
            radius = math.sqrt(_F(-2) * _log_uniform(word))
            out[begin + x] = _level(_F(image[begin + x]) + std * radius * _cosine(_W(word * _SECOND)))


@compiled(error_model="numpy")
def add_salt_pepper(image, rows, columns, low, out):
    """Make pixels black if their word in `noise.hashed_field` is below `low`, white if it is above 2³² - 1 - `low`.

    Args:
        image, out: (S × S × 3,) uint8. rows, columns: (S,) uint32, `noise.hashed_lines`. low: uint32.
    """
    n, high, none, all_bits = _U(len(columns)), _W(~low), np.uint8(0), np.uint8(255)
    for y in range(_U(len(rows))):
        row, begin = rows[y], y * n
        for x in range(n):
            word, i = _mixed(_W(row ^ columns[x])), _3 * (begin + x)
            kept, salt = all_bits if word >= low else none, all_bits if word > high else none
            out[i] = (image[i] & kept) | salt
            out[i + _1] = (image[i + _1] & kept) | salt
            out[i + _2] = (image[i + _2] & kept) | salt


@_inlined
def _array(addresses, place, size, dtype):
    """The array of `size` values at the address that the operator's list has at this place."""
    return carray(pointer(carray(pointer(addresses), place + 1, np.uint64)[place]), size, dtype)


@_inlined
def _images(outs, ins, in_shapes):
    """The image's side, the image and the output, flat."""
    side = _array(in_shapes, 0, 3, np.int64)[0]
    return side, _array(ins, 0, side * side * 3, np.uint8), _array(outs, 0, side * side * 3, np.uint8)


def _colour(outs, out_shapes, out_ndims, num_outs, ins, in_shapes, in_ndims, num_ins):
    _, image, out = _images(outs, ins, in_shapes)
    map_colours(image, _array(ins, 1, 9, np.float32), _array(ins, 2, 3, np.float32), out)


def _colour_about_mean(outs, out_shapes, out_ndims, num_outs, ins, in_shapes, in_ndims, num_ins):
    _, image, out = _images(outs, ins, in_shapes)
    given, weights, mean = _array(ins, 2, 3, np.float32), _array(ins, 3, 9, np.float32), mean_colour(image)
    offset = np.empty(3, np.float32)
    for c in range(3):
        offset[c] = given[c] + (weights[3 * c : 3 * c + 3] * mean).sum()
    map_colours(image, _array(ins, 1, 9, np.float32), offset, out)


def _noise(outs, out_shapes, out_ndims, num_outs, ins, in_shapes, in_ndims, num_ins):
    side, image, out = _images(outs, ins, in_shapes)
    rows, columns = _array(ins, 1, side, np.uint32), _array(ins, 2, 3 * side, np.uint32)
    add_noise(image, rows, columns, _array(ins, 3, 1, np.float32)[0], out)


def _salt_pepper(outs, out_shapes, out_ndims, num_outs, ins, in_shapes, in_ndims, num_ins):
    side, image, out = _images(outs, ins, in_shapes)
    rows, columns = _array(ins, 1, side, np.uint32), _array(ins, 2, side, np.uint32)
    add_salt_pepper(image, rows, columns, _array(ins, 3, 1, np.uint32)[0], out)


def _same_shape(out_shapes, out_ndims, num_outs, in_shapes, in_ndims, num_ins, num_samples):
    for sample in range(num_samples):
        shape, image = _array(out_shapes, sample, 3, np.int64), _array(in_shapes, sample, 3, np.int64)
        for axis in range(3):
            shape[axis] = image[axis]


# by kind of step
KERNELS = {"colour": _colour, "colour_about_mean": _colour_about_mean, "noise": _noise, "salt_pepper": _salt_pepper}


@functools.cache  # also keeps the compiled code alive
def kernel(kind: str) -> CFunc:
    """The callback that `compiled_node` runs for a kind of step, on its image and arrays. Compiled at first use."""
    return compiled_callback(RUN)(KERNELS[kind])


@functools.cache
def same_shape() -> CFunc:
    """The callback that gives a node's output the shape of its first input."""
    return compiled_callback(SETUP)(_same_shape)
