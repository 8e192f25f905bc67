"""The arithmetic of the CPU's resize, compiled by Numba for the current machine (once, if the code can be cached).

One pass does the crop window, the filter, flips, the shift and the normalisation. The filters and their sampling are
Pillow's (`Resample.c`), and thus torchvision's with antialias=True: if an image shrinks, the support is stretched by
the scale. Values are float32 throughout and rounded once, while Pillow rounds after each of its passes.
"""

import math

import numba
import numpy as np
from numba import carray, types
from numba.extending import overload

from penstock.pipeline.compiling import compiled, pointer
from penstock.pipeline.config import Interpolation

INTERPOLATIONS: tuple[Interpolation, ...] = ("nearest", "linear", "cubic", "lanczos")
RADIUS = (0.5, 1.0, 2.0, 3.0)

# The columns of a geometry row, one row a sample, float64.
TOP, LEFT, BOTTOM, RIGHT = 0, 1, 2, 3  # the part of the decoded region that becomes the output, in its pixels
SHIFT_Y, SHIFT_X = 4, 5  # shift of the output's top left corner, in output pixels; black outside the window
FLIP_Y, FLIP_X = 6, 7  # 1 to flip up-down, left-right
FILTER, ANTIALIAS = 8, 9  # index in INTERPOLATIONS; 0 keeps the filter's support if the image shrinks
GAIN, BIAS = 10, 13  # three columns each: float output is pixel × gain + bias, by channel
GEOMETRY_COLUMNS = 16

numba.config.SLP_VECTORIZE = 1  # type: ignore[attr-defined]  # the horizontal pass: 0.07 instead of 0.13 ms an image
_FAST = {"contract", "nsz"}
_inlined = compiled(fastmath=_FAST, error_model="numpy", inline="always")  # a call with arrays costs 0.1 µs per row
_U = np.uintp  # for non-negative indices: numba's support of negative ones prevents vectorised loops
_1, _2, _3, _4, _5, _6, _7, _8, _9 = map(_U, range(1, 10))


@compiled()
def _filter(kind: int, x: float) -> float:
    x = abs(x)
    if kind == 1:
        return max(0.0, 1.0 - x)
    if kind == 2:  # Keys' cubic with a = -1/2
        if x < 1.0:
            return (1.5 * x - 2.5) * x * x + 1.0
        return ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0 if x < 2.0 else 0.0
    if x >= 3.0:
        return 0.0
    if x == 0.0:
        return 1.0
    x *= math.pi
    return math.sin(x) / x * math.sin(x / 3) / (x / 3)


@compiled()
def _taps(n_in, start, end, shift, flip, kind, antialias, num_taps, first, count, weights):
    """Compute the inputs of each output and their weights. An output without inputs is black.

    Args:
        n_in: inputs along this axis; start, end: the window among them.
        first, count: (n_out,) int64, filled. weights: (n_out, num_taps) float32 zeros, filled.

    Returns:
        the largest count.
    """
    n_out = len(first)
    scale = (end - start) / n_out
    stretch = max(scale, 1.0) if antialias else 1.0
    support = RADIUS[kind] * stretch
    most = 0
    for o in range(n_out):
        place = n_out - 1 - o if flip else o
        first[place] = count[place] = 0
        source = o + shift
        if source < 0 or source >= n_out:
            continue
        centre = start + (source + 0.5) * scale
        if kind == 0:
            low = min(max(math.floor(centre), 0), n_in - 1)
            high = low + 1
            weights[place, 0] = 1.0
        else:
            low = max(0, math.floor(centre - support + 0.5))
            high = min(n_in, math.floor(centre + support + 0.5), low + num_taps)
            total = 0.0
            for k in range(high - low):
                distance = low + k + 0.5 - centre
                weight = _filter(kind, distance if stretch == 1.0 else distance / stretch)
                weights[place, k] = weight
                total += weight
            if total != 1.0:
                for k in range(high - low):
                    weights[place, k] = _filter(kind, (low + k + 0.5 - centre) / stretch) / total
            while high > low + 1 and weights[place, high - low - 1] == 0:
                high -= 1
        first[place], count[place] = low, high - low
        most = max(most, high - low)
    return most


@_inlined
def _vertical(image, width, pitch, first, count, weights, y, row):
    """Compute one output row of the vertical pass.

    Args:
        image: (≥ (height - 1) × pitch + width,) uint8, width and pitch counting channels.
        weights: (n_out, ≥ count) float32, of which row y is this output's. row: (width,) float32, filled.
    """
    n, r0 = _U(width), _U(first * pitch)
    if count == 0:
        row[:width] = 0
        return
    w0, r1, r2 = weights[y, 0], r0 + _U(pitch), r0 + _U(2 * pitch)
    if count == 1:
        for j in range(n):
            row[j] = w0 * np.float32(image[r0 + j])
        return
    w1 = weights[y, 1]
    if count == 2:
        for j in range(n):
            row[j] = w0 * np.float32(image[r0 + j]) + w1 * np.float32(image[r1 + j])
        return
    w2 = weights[y, 2]
    for j in range(n):
        row[j] = w0 * np.float32(image[r0 + j]) + w1 * np.float32(image[r1 + j]) + w2 * np.float32(image[r2 + j])
    for k in range(3, count - 1, 2):
        r0, r1 = _U((first + k) * pitch), _U((first + k + 1) * pitch)
        w0, w1 = weights[y, k], weights[y, k + 1]
        for j in range(n):
            row[j] += w0 * np.float32(image[r0 + j]) + w1 * np.float32(image[r1 + j])
    if count % 2 == 0:
        r0, w0 = _U((first + count - 1) * pitch), weights[y, count - 1]
        for j in range(n):
            row[j] += w0 * np.float32(image[r0 + j])


@compiled(fastmath=_FAST, error_model="numpy")  # not inlined, or its vector operations are lost
def _horizontal(row, first, w, stride, most, line):
    """Compute one output row of the horizontal pass. Each pixel computes four values instead of three, so that each
    step is one vector operation.

    Args:
        row: float32, zeros after the last pixel for `most` + 2 more. first: (n_out,) int64. most: the largest number
            of taps. w: (n_out × stride,) float32, each output's taps and zeros after the last; stride > most.
        line: (3 × n_out + 1,) float32, filled.
    """
    stride, o, p = _U(stride), _U(0), _U(0)
    if most <= 2:
        for x in range(len(first)):
            b = _U(3 * first[x])
            w0, w1 = w[p], w[p + _1]
            a0 = w0 * row[b] + w1 * row[b + _3]
            a1 = w0 * row[b + _1] + w1 * row[b + _4]
            a2 = w0 * row[b + _2] + w1 * row[b + _5]
            a3 = w0 * row[b + _3] + w1 * row[b + _6]
            line[o], line[o + _1], line[o + _2], line[o + _3] = a0, a1, a2, a3
            o, p = o + _3, p + stride
    elif most == 3:
        for x in range(len(first)):
            b = _U(3 * first[x])
            w0, w1, w2 = w[p], w[p + _1], w[p + _2]
            a0 = w0 * row[b] + w1 * row[b + _3] + w2 * row[b + _6]
            a1 = w0 * row[b + _1] + w1 * row[b + _4] + w2 * row[b + _7]
            a2 = w0 * row[b + _2] + w1 * row[b + _5] + w2 * row[b + _8]
            a3 = w0 * row[b + _3] + w1 * row[b + _6] + w2 * row[b + _9]
            line[o], line[o + _1], line[o + _2], line[o + _3] = a0, a1, a2, a3
            o, p = o + _3, p + stride
    else:
        for x in range(len(first)):
            b, q = _U(3 * first[x]), p
            a0 = a1 = a2 = a3 = np.float32(0)
            for _ in range((most + 1) // 2):
                w0, w1 = w[q], w[q + _1]
                a0 += w0 * row[b] + w1 * row[b + _3]
                a1 += w0 * row[b + _1] + w1 * row[b + _4]
                a2 += w0 * row[b + _2] + w1 * row[b + _5]
                a3 += w0 * row[b + _3] + w1 * row[b + _6]
                b, q = b + _6, q + _2
            line[o], line[o + _1], line[o + _2], line[o + _3] = a0, a1, a2, a3
            o, p = o + _3, p + stride


@_inlined
def _take(image, start, count, first, counts, line):
    """Copy one output row without interpolation: the result of `_vertical` and `_horizontal` with weights of 1.

    Args:
        start: where the input row begins. count: 0 for a black row. first, counts: (n_out,) int64.
        line: (≥ 3 × n_out,) float32, filled.
    """
    o, s = _U(0), _U(start)
    for x in range(len(first)):
        if count and counts[x]:
            b = s + _U(3 * first[x])
            line[o], line[o + _1], line[o + _2] = image[b], image[b + _1], image[b + _2]
        else:
            line[o] = line[o + _1] = line[o + _2] = np.float32(0)
        o += _3


@compiled(error_model="numpy")
def _num_taps(start: float, end: float, n_out: int, kind: int) -> int:
    """An upper bound of the inputs of an output."""
    return int(2 * RADIUS[kind] * max((end - start) / n_out, 1.0)) + 4


@compiled(error_model="numpy")
def _set_levels(geometry, gain, bias):
    """Fill `gain` and `bias`, (3 × n_out,) float32, for `_store`."""
    for o in range(0, len(gain), 3):
        for c in range(3):
            gain[o + c], bias[o + c] = geometry[GAIN + c], geometry[BIAS + c]


@compiled(fastmath=_FAST, error_model="numpy")
def _resize(image, height, width, pitch, geometry, out, size_y, size_x, weights_y, weights_x, row, line, gain, bias):
    """`resize_image`, with working memory from the caller.

    Args:
        size_y, size_x: (2, out_height) and (2, out_width) int64.
        weights_y, weights_x: (out_height, ≥ taps) and (out_width, ≥ taps) float32, zeros.
        row: (≥ 3 × (width + taps) + 1,) float32. line: (3 × out_width + 1,) float32. gain, bias: (3 × out_width,).
    """
    first_y, count_y, first_x, count_x = size_y[0], size_y[1], size_x[0], size_x[1]
    n = 3 * len(first_x)
    kind, antialias = int(geometry[FILTER]), geometry[ANTIALIAS] != 0
    most_y = _taps(
        height, geometry[TOP], geometry[BOTTOM], int(geometry[SHIFT_Y]), geometry[FLIP_Y] != 0, kind, antialias,
        weights_y.shape[1] - 2, first_y, count_y, weights_y,
    )  # fmt: skip
    most = _taps(
        width, geometry[LEFT], geometry[RIGHT], int(geometry[SHIFT_X]), geometry[FLIP_X] != 0, kind, antialias,
        weights_x.shape[1] - 2, first_x, count_x, weights_x,
    )  # fmt: skip
    if most_y <= 1 and most <= 1:  # each output is one input with weight 1, or black
        for y in range(len(first_y)):
            _take(image, first_y[y] * pitch, count_y[y], first_x, count_x, line)
            _store(line, gain, bias, out, y * n)
        return
    row[3 * width : 3 * (width + most + 2) + 1] = 0
    w, stride = weights_x.reshape(-1), weights_x.shape[1]
    for y in range(len(first_y)):
        _vertical(image, 3 * width, pitch, first_y[y], count_y[y], weights_y, y, row)
        _horizontal(row, first_x, w, stride, most, line)
        _store(line, gain, bias, out, y * n)


@compiled(fastmath=_FAST, error_model="numpy")
def resize_image(image, height, width, pitch, geometry, out, out_height, out_width):
    """Resize one image, or a region of one.

    Args:
        image: uint8, RGB, rows of width × 3 values that begin `pitch` values apart. geometry: (GEOMETRY_COLUMNS,)
            float64.
        out: (out_height × out_width × 3,) float32, normalised; or uint8, not normalised.
    """
    kind = int(geometry[FILTER])
    taps_y = _num_taps(geometry[TOP], geometry[BOTTOM], out_height, kind)
    taps_x = _num_taps(geometry[LEFT], geometry[RIGHT], out_width, kind)
    gain, bias = np.empty(3 * out_width, np.float32), np.empty(3 * out_width, np.float32)
    _set_levels(geometry, gain, bias)
    _resize(
        image, height, width, pitch, geometry, out,
        np.empty((2, out_height), np.int64), np.empty((2, out_width), np.int64),
        np.zeros((out_height, taps_y), np.float32), np.zeros((out_width, taps_x), np.float32),
        np.empty(3 * (width + taps_x + 2) + 1, np.float32), np.empty(3 * out_width + 1, np.float32), gain, bias,
    )  # fmt: skip


@compiled(fastmath=_FAST, error_model="numpy", nogil=True)
def resize_images(addresses, pitches, shapes, geometry, out, size, begin, end):
    """Resize the regions `begin` to `end` of n, which may lie anywhere in memory, without Python's lock.

    Args:
        addresses: (n,) int64, of the first value of each region, uint8. pitches: (n,) int64, values from one row of
            it to the next. shapes: (n, 2) int32, its height and width.
        geometry: (n, GEOMETRY_COLUMNS) float64, with one filter, gain and bias for all.
        out: (n × size × size × 3,), as for `resize_image`. size: pixels.
    """
    kind, values, taps, width = int(geometry[begin, FILTER]), 3 * size * size, 0, 0
    for i in range(begin, end):
        row = geometry[i]
        taps_y, taps_x = _num_taps(row[TOP], row[BOTTOM], size, kind), _num_taps(row[LEFT], row[RIGHT], size, kind)
        taps, width = max(taps, taps_y, taps_x), max(width, shapes[i, 1])
    gain, bias = np.empty(3 * size, np.float32), np.empty(3 * size, np.float32)
    _set_levels(geometry[begin], gain, bias)
    size_y, size_x = np.empty((2, size), np.int64), np.empty((2, size), np.int64)
    weights_y, weights_x = np.zeros((size, taps), np.float32), np.zeros((size, taps), np.float32)
    row, line = np.empty(3 * (width + taps + 2) + 1, np.float32), np.empty(3 * size + 1, np.float32)
    for i in range(begin, end):
        weights_y[:], weights_x[:] = 0, 0
        num_values = (shapes[i, 0] - 1) * pitches[i] + 3 * shapes[i, 1]
        _resize(
            carray(pointer(addresses[i]), (num_values,), np.uint8), shapes[i, 0], shapes[i, 1], pitches[i], geometry[i],
            out[i * values : (i + 1) * values], size_y, size_x, weights_y, weights_x, row, line, gain, bias,
        )  # fmt: skip


@compiled(nogil=True)
def copy_values(addresses, starts, ends, out):
    """Copy uint8 values from addresses, (n,) int64, to the places from `starts` to `ends` in `out`, (n,) int64 both."""
    for i in range(len(addresses)):
        num_values = ends[i] - starts[i]
        out[starts[i] : ends[i]] = carray(pointer(addresses[i]), (num_values,), np.uint8)


def _store(line: np.ndarray, gain: np.ndarray, bias: np.ndarray, out: np.ndarray, start: int) -> None:
    """Round a line to grey levels, normalise them unless `out` is uint8, and write them to `out` from `start` on."""


@overload(_store, jit_options={"fastmath": _FAST}, inline="always")
def _store_for(line, gain, bias, out, start):
    def normalised(line, gain, bias, out, start):
        o = _U(start)
        for j in range(_U(len(gain))):
            out[o + j] = min(max(np.rint(line[j]), np.float32(0)), np.float32(255)) * gain[j] + bias[j]

    def levels(line, gain, bias, out, start):
        o = _U(start)
        for j in range(_U(len(gain))):
            out[o + j] = np.uint8(min(max(np.rint(line[j]), np.float32(0)), np.float32(255)))

    return levels if out.dtype == types.uint8 else normalised
