"""What a GPU should reach, by its name, and what a figure beside that is called.

The bytes and the FLOP of a ResNet-50 training step at 224 px were counted, layer by layer: 477 MB an image where each
operation reads and writes its tensors (eager), 358 MB where BatchNorm's application, ReLU and the addition are one
pass (compiled), 195 MB where nothing but the convolutions touches memory. docs/gpu.md has the arithmetic.
"""

from collections.abc import Sequence
from typing import NamedTuple

STEP_BYTES = {"eager": 477e6, "fused": 358e6, "ideal": 195e6}  # an image
STEP_FLOP = 24.3e9  # an image, forward and backward
TOLERANCE = 0.9  # of what is published or was measured elsewhere

# One H100 in PyTorch: 3,500 images/s is good in eager mode, 4,300 compiled; as shares of their roofs at 3.0 TB/s.
GOOD_SHARE = {"eager": 3500 / 6290, "fused": 4300 / 8380}
LOADER_GOAL, LOADER_AMBITION = 8_000, 19_000  # images/s of original JPEGs; the ambition is DALI's own bar on a Hopper
OVER_DALI_EXAMPLE, OF_SYNTHETIC, OF_BARE_LOOP = 1.3, 0.97, 0.97
CIFAR_TOP1, CIFAR_FAST_TOP1 = 0.95, 0.90


class Bounds(NamedTuple):
    """Of a device: bytes copied on it (read and written, 10¹² a second), and 10¹² FLOP a second of a bf16 matmul."""

    copy_tb_s: float
    matmul_tflops: float


KNOWN = {"H100 80GB HBM3": Bounds(3.0, 790), "H200": Bounds(4.3, 790)}


def bounds_of(gpu: str | None) -> Bounds | None:
    """By the name that CUDA gives the GPU; None where nothing is expected of it."""
    return next((bounds for name, bounds in KNOWN.items() if name in (gpu or "")), None)


def roof(kind: str, copy_tb_s: float) -> float:
    """images/s of a ResNet-50 step that does nothing but move its bytes: `kind` of STEP_BYTES."""
    return copy_tb_s * 1e12 / STEP_BYTES[kind]


def step_goal(kind: str, bounds: Bounds | None) -> float | None:
    """images/s that a ResNet-50 step should reach, `kind` "eager" or "fused"."""
    return GOOD_SHARE[kind] * roof(kind, bounds.copy_tb_s) if bounds else None


# From the worst to the best: a stage is called what the worst of its rows is. A verdict may go on: "failed (SIGSEGV)".
ORDER = ("failed", "wrong", "slow", "not run", "skipped", "rehearsed", "measured", "ok")


def verdict(
    figure: float | None, at_least: float | None, at_most: float | None, right: bool | None, rehearsed: bool
) -> str:
    """wrong where `right` is False; slow where a figure misses its bar; measured where it has none. What ran small on a
    CPU says nothing of a GPU, so that only `wrong` counts there."""
    if right is False:
        return "wrong"
    if rehearsed:
        return "rehearsed"
    if figure is None or (at_least is None and at_most is None):
        return "ok" if right else "measured"
    missed = (at_least is not None and not figure >= at_least) or (at_most is not None and not figure <= at_most)
    return "slow" if missed else "ok"


def worst(verdicts: Sequence[str]) -> str:
    """The worst of some, "ok" of none. Of several that are equally bad the first."""
    return min(verdicts, key=rank, default="ok")


def rank(one: str) -> int:
    return next((place for place, name in enumerate(ORDER) if one.startswith(name)), 0)


def is_bad(one: str) -> bool:
    return one.startswith(("failed", "wrong"))
