"""`DevicePixels`: a store's images in a GPU's memory. Batches are made there, in a few kernels.

The arithmetic is that of `pipeline.resize_kernel` (Pillow's filters), written with torch's operations. The same code
runs on a CPU, which the tests use. Nothing here waits for the GPU: all sizes follow from the plan, on the CPU.
"""

import math

import numpy as np
import torch
from torch import Tensor

from penstock.pipeline.holes import NO_SAMPLE
from penstock.pipeline.pixels import PixelStore
from penstock.pipeline.resize_kernel import (
    ANTIALIAS,
    BIAS,
    BOTTOM,
    FILTER,
    FLIP_X,
    FLIP_Y,
    GAIN,
    GEOMETRY_COLUMNS,
    LEFT,
    RADIUS,
    RIGHT,
    SHIFT_X,
    SHIFT_Y,
    TOP,
)

_SHARE = 0.5  # of the GPU's free memory, since the network has not allocated its own yet when a loader begins
_AXES = {"y": (TOP, BOTTOM, SHIFT_Y, FLIP_Y), "x": (LEFT, RIGHT, SHIFT_X, FLIP_X)}


def fits(store: PixelStore, device: torch.device) -> bool:
    """Whether a store's images need no more than half of a GPU's free memory."""
    return bool(store.pixels.nbytes <= _SHARE * torch.cuda.mem_get_info(device)[0])


class DevicePixels:
    """A copy on `device` of the images that `store` has now. `put` adds later ones.

    Raises torch.OutOfMemoryError if the memory is not sufficient.
    """

    def __init__(self, store: PixelStore, device: torch.device) -> None:
        self._store, self._device = store, device
        self._there = store.there.copy()
        self._pixels = torch.from_numpy(store.pixels).to(device)

    def put(self, sample_ids: np.ndarray) -> None:
        """Copy to the device the samples, (n,) ids, that only the store has; and the store's gray image, if needed."""
        slots = self._store.slots(sample_ids[sample_ids != NO_SAMPLE])
        for slot in slots[self._store.there[slots] > self._there[slots]].tolist():
            self._copy(self._store.span(slot))
            self._there[slot] = 1
        if len(slots) < len(sample_ids):
            self._copy(slice(self._store.gray.size))

    def _copy(self, span: slice) -> None:
        self._pixels[span].copy_(torch.from_numpy(self._store.pixels[span]))

    def batch(self, request: "Request", size: int, dtype: torch.dtype) -> Tensor:
        """Make a batch: (n, size, size, 3), normalised, of `dtype`."""
        rows = request.rows.to(self._device, non_blocking=True)
        if request.taps == (1, 1):
            levels = _taken(self._pixels, rows, size)
        else:
            levels = _resampled(self._pixels, rows, size, request)
        gain, bias = rows[:, None, None, GAIN : GAIN + 3].float(), rows[:, None, None, BIAS : BIAS + 3].float()
        return torch.addcmul(bias, levels, gain).to(dtype)


class Request:
    """The parameters, from the plan, for making a batch on a device.

    rows: (n, GEOMETRY_COLUMNS + 4) float64, pinned if possible: the geometry; the start of the region in the store and
        the distance of its rows, in pixels; its height and width.
    kind, antialias: the filter, the same for all images.
    taps: for each axis, y and x, the largest number of inputs of an output. width: of the widest region, in pixels.
    """

    def __init__(
        self, starts: np.ndarray, pitches: np.ndarray, shapes: np.ndarray, geometry: np.ndarray, size: int, pin: bool
    ) -> None:
        """starts, pitches, shapes, geometry: as for `resize_kernel.resize_images`."""
        rows = torch.empty(len(starts), GEOMETRY_COLUMNS + 4, dtype=torch.float64, pin_memory=pin)
        array = rows.numpy()
        array[:, :GEOMETRY_COLUMNS] = geometry
        array[:, _START], array[:, _PITCH] = starts // 3, pitches // 3
        array[:, [_HEIGHT, _WIDTH]] = shapes
        self.rows, self.width = rows, int(shapes[:, 1].max())
        self.kind, self.antialias = int(geometry[0, FILTER]), bool(geometry[0, ANTIALIAS])
        self.taps = _most_taps(geometry, size, "y"), _most_taps(geometry, size, "x")


_START, _PITCH, _HEIGHT, _WIDTH = range(GEOMETRY_COLUMNS, GEOMETRY_COLUMNS + 4)


def _most_taps(geometry: np.ndarray, size: int, axis: str) -> int:
    """The largest number of inputs of an output: 1 if each output is an unchanged pixel."""
    begin, end, *_ = _AXES[axis]
    scale, kind = (geometry[:, end] - geometry[:, begin]) / size, int(geometry[0, FILTER])
    if kind == 0 or (kind == 1 and (scale == 1).all() and (geometry[:, begin] % 1 == 0).all()):
        return 1
    stretch = max(1.0, float(scale.max())) if geometry[0, ANTIALIAS] else 1.0
    return math.ceil(2 * RADIUS[kind] * stretch) + 1


def _taken(pixels: Tensor, rows: Tensor, size: int) -> Tensor:
    """The images if each output is one input or black: (n, size, size, 3) float32 grey levels."""
    first_y, there_y = _nearest(rows, size, "y")
    first_x, there_x = _nearest(rows, size, "x")
    line = (rows[:, _START, None] + first_y * rows[:, _PITCH, None]).long()
    levels = pixels.view(-1, 3)[(line[:, :, None] + first_x.long()[:, None, :]).clamp_(min=0)].float()
    return levels * (there_y[:, :, None] & there_x[:, None, :])[..., None]


def _places(rows: Tensor, size: int, axis: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For each output of an axis its centre among the inputs, and whether it is not black: (n, size) both; for each
    image the scale of the window and the number of inputs: (n, 1) both."""
    begin, end, shift, flip = (rows[:, column, None] for column in _AXES[axis])
    place = torch.arange(size, device=rows.device, dtype=rows.dtype)
    source = torch.where(flip != 0, size - 1 - place, place) + shift
    scale = (end - begin) / size
    num_inputs = rows[:, _HEIGHT if axis == "y" else _WIDTH, None]
    return begin + (source + 0.5) * scale, (source >= 0) & (source < size), scale, num_inputs


def _nearest(rows: Tensor, size: int, axis: str) -> tuple[Tensor, Tensor]:
    """The input of each output of an axis, and whether it has one: (n, size) both."""
    centre, there, _, num_inputs = _places(rows, size, axis)
    return torch.minimum(centre.floor().clamp(min=0), num_inputs - 1), there


def _weights(rows: Tensor, size: int, axis: str, kind: int, antialias: bool, taps: int) -> tuple[Tensor, Tensor]:
    """The first input of each output of an axis, (n, size) float64, and its weights, (n, size, taps) float32."""
    centre, there, scale, num_inputs = _places(rows, size, axis)
    stretch = scale.clamp(min=1) if antialias else torch.ones_like(scale)
    support = RADIUS[kind] * stretch
    low = (centre - support + 0.5).floor().clamp(min=0)
    high = torch.minimum((centre + support + 0.5).floor(), num_inputs)
    place = low[..., None] + torch.arange(taps, device=rows.device, dtype=rows.dtype)
    weights = _filtered(kind, (place + 0.5 - centre[..., None]) / stretch[..., None]) * (place < high[..., None])
    weights = torch.where(there[..., None], weights / weights.sum(2, keepdim=True), 0)  # outside the sum may be 0
    return low, weights.float()


def _filtered(kind: int, x: Tensor) -> Tensor:
    """The filter's value at distances: linear, Keys' cubic with a = -1/2, or Lanczos of radius 3."""
    x = x.abs()
    if kind == 1:
        return (1 - x).clamp(min=0)
    if kind == 2:
        far = torch.where(x < 2, ((-0.5 * x + 2.5) * x - 4) * x + 2, 0)
        return torch.where(x < 1, (1.5 * x - 2.5) * x * x + 1, far)
    return torch.where(x < 3, torch.sinc(x) * torch.sinc(x / 3), 0)


def _resampled(pixels: Tensor, rows: Tensor, size: int, request: Request) -> Tensor:
    """The general case: (n, size, size, 3) float32 grey levels, rounded once."""
    kind, antialias, image = request.kind, request.antialias, pixels.view(-1, 3)
    taps_y, taps_x = request.taps
    first_y, weights_y = _weights(rows, size, "y", kind, antialias, taps_y)
    first_x, weights_x = _weights(rows, size, "x", kind, antialias, taps_x)
    start, pitch = rows[:, _START, None], rows[:, _PITCH, None]
    column = torch.minimum(torch.arange(request.width, device=rows.device, dtype=rows.dtype), rows[:, _WIDTH, None] - 1)
    last = rows[:, _HEIGHT, None] - 1
    lines = torch.zeros(len(rows), size, request.width, 3, device=rows.device)
    for tap in range(taps_y):
        line = (start + torch.minimum(first_y + tap, last).clamp(min=0) * pitch).long()
        lines.addcmul_(weights_y[:, :, tap, None, None], image[line[:, :, None] + column.long()[:, None, :]].float())
    levels = torch.zeros(len(rows), size, size, 3, device=rows.device)
    for tap in range(taps_x):
        place = (first_x + tap).clamp(0, request.width - 1).long()[:, None, :, None].expand(-1, size, -1, 3)
        levels.addcmul_(weights_x[:, None, :, tap, None], lines.gather(2, place))
    return levels.round_().clamp_(0, 255)
