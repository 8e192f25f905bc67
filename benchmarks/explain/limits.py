"""Physical limits of the machine, measured: arithmetic, memory, and how far an image's decoding shrinks with its size.

Each is the best of a few turns: what the hardware can do, not what it usually does.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import simplejpeg  # type: ignore[import-untyped]
import torch

from benchmarks.programs import Stopwatch
from shard_tools.encode import BadImage, EncodeConfig, encode
from shard_tools.jpeg import SOI

TURNS = 5
TURN_S = 0.2
COPY_BYTES = {"cpu": 1 << 28, "cuda": 1 << 30}  # beyond any cache
MATMUL_SIDE = {"cpu": 1024, "cuda": 8192}
SHRINK_S = 1.0  # for re-encoding images
SHRINK_IMAGES = (4, 64)  # at least, at most


def fastest_s(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that one call takes, in the fastest of `TURNS` turns of about `TURN_S`."""
    work()
    watch = Stopwatch(device)
    work()
    calls = max(1, round(TURN_S / watch.lap()))
    taken = []
    for _ in range(TURNS):
        watch = Stopwatch(device)
        for _ in range(calls):
            work()
        taken.append(watch.lap() / calls)
    return min(taken)


def copy_bytes_per_s(device: torch.device) -> float:
    """Memory bandwidth by a copy of a large buffer: bytes read and bytes written. On the CPU with all cores."""
    source = torch.ones(COPY_BYTES[device.type] // 4, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / fastest_s(lambda: target.copy_(source), device)


def matmul_flops_per_s(dtype: torch.dtype, device: torch.device) -> float:
    """The arithmetic's peak in practice: a large square matrix product, 2 n³ FLOPs."""
    side = MATMUL_SIDE[device.type]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * side**3 / fastest_s(lambda: torch.mm(a, b, out=out), device)


class Shrunk(NamedTuple):
    """What a smaller copy of the images costs, as shares of what they cost now: whole decoding in time, and bytes."""

    decode: float
    bytes: float


def shrunk(views: list[np.ndarray], short_side: int) -> Shrunk:
    """Re-encode some images as `pack --short-side` does, and decode both kinds with libjpeg-turbo in one thread. Where
    none is larger, the shares are 1."""
    least, most = SHRINK_IMAGES
    before, after, deadline = [], [], time.perf_counter() + SHRINK_S
    for view in views[:most]:
        try:
            small = encode(view.tobytes(), EncodeConfig(check="header", short_side=short_side)).jpeg
        except BadImage:
            continue
        if view[: len(SOI)].tobytes() == SOI:
            before.append(view.tobytes())
            after.append(small)
        if len(before) >= least and time.perf_counter() > deadline:
            break
    if before == after:
        return Shrunk(1.0, 1.0)
    cpu = torch.device("cpu")

    def decode_s(images: list[bytes]) -> float:
        return fastest_s(lambda: [simplejpeg.decode_jpeg(image, "RGB") for image in images], cpu)

    return Shrunk(decode_s(after) / decode_s(before), sum(map(len, after)) / sum(map(len, before)))
