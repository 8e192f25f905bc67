"""The compiled kernels in the CPU's graph, compared with the DALI operators that the GPU uses."""

from typing import Any

import numpy as np
import pytest

from penstock.pipeline.augment import AugmentConfig, train_params
from penstock.pipeline.augment import graph as augment_graph
from penstock.pipeline.augment.kernel import KERNELS
from penstock.pipeline.augment.params import Name, StepArray
from penstock.pipeline.augment.steps import step_arrays
from penstock.pipeline.config import DataConfig
from penstock.pipeline.plan import EpochPlan

NUM = 24
COLOURS = {"brightness": 0.4, "contrast": 0.8, "saturation": 0.8, "hue": 0.3, "lighting": 0.5, "grayscale": 0.3}
CASES: dict[str, dict[str, Any]] = {
    "colour": {"lighting": 0.5, "grayscale": 0.5},
    "colour_about_mean": COLOURS,
    "noise": {"noise": 0.7, "noise_std": (0.0, 80.0)},
    "salt_pepper": {"salt_pepper": 0.7, "salt_pepper_amount": (0.0, 1.0)},
    "blurred in between": COLOURS | {"blur": 0.5, "noise": 0.7, "salt_pepper": 0.7},
    "trivial": {"auto": "trivial"},
}
SAME = ("salt_pepper",)  # to the bit


def case(name: str, size: int) -> tuple[np.ndarray, dict[Name, np.ndarray]]:
    """(NUM, size, size, 3) uint8, and the arrays of their steps."""
    pixels = np.random.default_rng(size).integers(0, 256, (NUM, size, size, 3), dtype=np.uint8)
    config, sides = AugmentConfig(**CASES[name]), np.full(NUM, size)
    params = train_params(EpochPlan(num_samples=NUM, seed=2), config, [(0, NUM)], sides, sides, size, np.arange(NUM))
    return pixels, step_arrays(params, config, size)


def augmented(
    pixels: np.ndarray, arrays: dict[Name, np.ndarray], batch_size: int = NUM, threads: int = 1
) -> np.ndarray:
    from nvidia.dali import Pipeline, fn

    starts = iter(range(0, NUM, batch_size))

    def source() -> list[list[np.ndarray]]:
        start = next(starts)
        return [list(values[start : start + batch_size]) for values in (pixels, *arrays.values())]

    pipe: Any = Pipeline(batch_size=batch_size, num_threads=threads, device_id=None, prefetch_queue_depth=1)
    with pipe:
        images, *nodes = fn.external_source(source, num_outputs=1 + len(arrays), batch=True)
        pipe.set_outputs(augment_graph.augment_images(images, dict(zip(arrays, nodes, strict=True)), DataConfig()))
    pipe.build()
    found = []
    for _ in range(0, NUM, batch_size):
        (output,) = pipe.run()
        found += [np.asarray(output.at(i)).copy() for i in range(len(output))]
    return np.stack(found)


def test_every_kernel_has_a_case() -> None:
    kinds = {name: {array.kind for array in case(name, 4)[1] if isinstance(array, StepArray)} for name in CASES}
    assert all(kinds[kind] == {kind} for kind in KERNELS)


@pytest.mark.parametrize("size", [1, 2, 7, 33, 64])
@pytest.mark.parametrize("name", CASES)
def test_kernels_do_what_dalis_operators_do(monkeypatch: pytest.MonkeyPatch, name: str, size: int) -> None:
    """Within a level, where float32 arithmetic falls to the other side of a half; and never on images that do not
    take the step."""
    pixels, arrays = case(name, size)
    ours = augmented(pixels, arrays)
    monkeypatch.setattr(augment_graph, "has_kernels", lambda images: False)
    theirs = augmented(pixels, arrays)
    difference = np.abs(ours.astype(int) - theirs)
    assert difference.max() <= (0 if name in SAME else 1)
    assert (difference > 0).mean() < 1e-3 or (difference > 0).sum() <= 1
    takes = np.logical_or.reduce([values for array, values in arrays.items() if array.argument == "on"])  # type: ignore[union-attr]
    assert np.array_equal(ours[~takes], pixels[~takes])
    assert (ours[takes] != pixels[takes]).mean() > 0.05


@pytest.mark.parametrize(("batch_size", "threads"), [(1, 1), (5, 2), (NUM, 3)])
@pytest.mark.parametrize("name", CASES)
def test_the_same_bits_in_any_batch(name: str, batch_size: int, threads: int) -> None:
    pixels, arrays = case(name, 33)
    assert np.array_equal(augmented(pixels, arrays, batch_size, threads), augmented(pixels, arrays))


def test_kernels_are_made_only_for_steps_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    by_kernel = augment_graph._by_kernel
    monkeypatch.setattr(augment_graph, "_by_kernel", lambda kind, *rest: made.append(kind) or by_kernel(kind, *rest))
    for name in CASES:
        augmented(*case(name, 8))
    assert made == [*KERNELS, "colour_about_mean", "noise", "salt_pepper", "colour_about_mean"]
