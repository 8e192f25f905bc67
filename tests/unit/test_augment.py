"""The drawn parameters compared with torchvision's: two-sample tests on crops, ranges and rates on the rest."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from penstock.pipeline.augment import AugmentConfig, centre_crop_params, train_params
from penstock.pipeline.augment.colour import colour_jitter
from penstock.pipeline.augment.geometry import pad_crop, random_resized_crop
from penstock.pipeline.plan import EpochPlan
from tests.common.two_samples import KS_LIMIT, ks_distance

NUM_DRAWS = 22


def our_boxes(
    height: int, width: int, n: int, scale: tuple[float, float], ratio: tuple[float, float], seed: int = 0
) -> np.ndarray:
    """(n, 4) top, left, height, width."""
    draws = EpochPlan(num_samples=n, seed=seed).uniforms("random_resized_crop", 0, n, NUM_DRAWS)
    params = random_resized_crop(draws, np.full(n, height), np.full(n, width), scale, ratio)
    assert params["anchor"].dtype == params["shape"].dtype == np.int32
    return np.concatenate([params["anchor"], params["shape"]], axis=1)


def torchvision_boxes(
    height: int, width: int, n: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> np.ndarray:
    torch.manual_seed(0)
    transform = v2.RandomResizedCrop(224, scale=scale, ratio=ratio)
    image = torch.empty(3, height, width, dtype=torch.uint8)
    boxes = [transform.make_params([image]) for _ in range(n)]
    return np.array([[box["top"], box["left"], box["height"], box["width"]] for box in boxes])


SETTINGS = [((0.08, 1.0), (3 / 4, 4 / 3)), ((0.35, 1.0), (3 / 4, 4 / 3)), ((0.2, 0.5), (0.5, 3.0))]
SIZES = [(375, 500), (500, 333), (32, 32), (60, 400), (9, 7)]


@pytest.mark.parametrize(("scale", "ratio"), SETTINGS)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_crops_follow_torchvision(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> None:
    n, m = 20_000, 1_000
    ours = our_boxes(height, width, n, scale, ratio).astype(float)
    theirs = torchvision_boxes(height, width, m, scale, ratio).astype(float)
    limit = KS_LIMIT * math.sqrt(1 / n + 1 / m)
    measures = {
        "area": lambda box: box[:, 2] * box[:, 3] / (height * width),
        "log ratio": lambda box: np.round(np.log(box[:, 3] / box[:, 2]), 6),
        "centre row": lambda box: box[:, 0] + box[:, 2] / 2,
        "centre column": lambda box: box[:, 1] + box[:, 3] / 2,
        "top": lambda box: box[:, 0],
        "left": lambda box: box[:, 1],
        "height": lambda box: box[:, 2],
        "width": lambda box: box[:, 3],
    }
    for name, measure in measures.items():
        assert ks_distance(measure(ours), measure(theirs)) < limit, name
    corner = [box[:, 0] / np.maximum(height - box[:, 2], 1) * box[:, 1] / np.maximum(width - box[:, 3], 1)
              for box in (ours, theirs)]  # fmt: skip
    assert ks_distance(*corner) < limit  # row and column are as independent as theirs


@pytest.mark.parametrize(("height", "width"), [*SIZES, (1, 1), (1, 500), (500, 1), (2, 3), (65_000, 3), (3000, 4000)])
@pytest.mark.parametrize(("scale", "ratio"), [*SETTINGS, ((0.01, 0.02), (1.0, 1.0)), ((1.0, 1.0), (0.1, 0.2))])
def test_crops_lie_inside_the_image(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> None:
    top, left, crop_h, crop_w = our_boxes(height, width, 2_000, scale, ratio).T
    assert crop_h.min() >= 1
    assert crop_w.min() >= 1
    assert top.min() >= 0
    assert left.min() >= 0
    assert (top + crop_h).max() <= height
    assert (left + crop_w).max() <= width


@pytest.mark.parametrize(("height", "width"), [(20, 900), (900, 20), (41, 1001), (1001, 41), (30, 100), (1, 7), (7, 1)])
def test_when_no_crop_fits_the_fallback_is_torchvisions(height: int, width: int) -> None:
    """Whole-area crops of a bounded ratio do not fit into these images: both fall back to the same centre crop."""
    scale, ratio = (1.0, 1.0), (3 / 4, 4 / 3)
    theirs = torchvision_boxes(height, width, 3, scale, ratio)
    assert np.array_equal(our_boxes(height, width, 3, scale, ratio), theirs)


def test_a_fallback_inside_the_ratio_is_the_whole_image() -> None:
    """The middle branch: the image has an allowed ratio, and yet nothing fits (every try asks for another ratio)."""
    draws = np.zeros((1, NUM_DRAWS))
    draws[:, :10] = 1 - 1e-12  # the whole area, at the lowest ratio
    params = random_resized_crop(draws, np.array([100]), np.array([110]), (0.08, 1.0), (3 / 4, 4 / 3))
    assert params["anchor"].tolist() == [[0, 0]]
    assert params["shape"].tolist() == [[100, 110]]


def test_the_crops_reach_every_border() -> None:
    top, left, crop_h, crop_w = our_boxes(40, 40, 20_000, (0.08, 0.3), (0.75, 1.33)).T
    for slack, start in ((40 - crop_h, top), (40 - crop_w, left)):
        assert (start == 0).any()
        assert (start == slack).any()


@pytest.mark.parametrize("hflip", [0.0, 0.1, 0.5, 1.0])
def test_flip_rate(hflip: float) -> None:
    n = 20_000
    side = np.full(n, 50)
    params = train_params(EpochPlan(num_samples=n), AugmentConfig(hflip=hflip), [(0, n)], side, side, 224)
    assert params["mirror"].dtype == np.int32
    assert set(np.unique(params["mirror"])) <= {0, 1}
    assert abs(params["mirror"].mean() - hflip) <= 4 * math.sqrt(hflip * (1 - hflip) / n)
    sizes = params["shape"].prod(axis=1)
    if 0 < hflip < 1:  # nothing to do with the crop
        assert abs(np.corrcoef(params["mirror"], sizes)[0, 1]) < 4 / math.sqrt(n)


@pytest.mark.parametrize(
    "config",
    [
        AugmentConfig(brightness=0.4, contrast=0.3, saturation=0.2, hue=0.1),
        AugmentConfig(brightness=1.5, hue=0.5),
        AugmentConfig(contrast=0.5),
    ],
)
def test_colour_factors_follow_torchvision(config: AugmentConfig) -> None:
    n, m = 20_000, 1_500
    draws = EpochPlan(num_samples=n).uniforms("colour_jitter", 0, n, 4)
    ours = colour_jitter(draws, config)
    torch.manual_seed(0)
    names = ("brightness", "contrast", "saturation", "hue")
    transform = v2.ColorJitter(**{name: getattr(config, name) for name in names})
    theirs = [transform.make_params([torch.empty(3, 4, 4)]) for _ in range(m)]
    limit = KS_LIMIT * math.sqrt(1 / n + 1 / m)
    for name in names:
        assert ours[name].dtype == np.float32
        neutral = 0.0 if name == "hue" else 1.0
        if getattr(config, name) == 0:
            assert np.all(ours[name] == neutral)
            continue
        values = ours[name] / 360 if name == "hue" else ours[name]
        low, high = getattr(transform, name)
        assert values.min() >= np.float32(low) - 1e-6
        assert values.max() <= np.float32(high) + 1e-6
        assert values.max() - values.min() > 0.999 * (high - low)
        assert ks_distance(values, np.array([params[f"{name}_factor"] for params in theirs])) < limit


@pytest.mark.parametrize("order", ["global", "block"])
def test_alternating_flips_flip_each_image_every_other_epoch_and_half_of_them_in_each(order: Any) -> None:
    n = 1001
    seen = np.zeros((4, n), dtype=int)
    for epoch in range(4):
        plan = EpochPlan(num_samples=n, seed=5, epoch=epoch, order=order)
        ids = plan.sample_ids(0, n)
        side = np.full(n, 50)
        params = train_params(plan, AugmentConfig(hflip_alternate=True), [(0, n)], side, side, 224, ids)
        assert params["mirror"].dtype == np.int32
        seen[epoch, ids] = params["mirror"]
        rest = side[700:]
        tail = train_params(plan, AugmentConfig(hflip_alternate=True), [(700, n - 700)], rest, rest, 224, ids[700:])
        assert np.array_equal(tail["mirror"], params["mirror"][700:])
    assert (seen.sum(axis=1) == [n // 2, n - n // 2] * 2).all()
    assert np.array_equal(seen[1:], 1 - seen[:-1])
    assert abs(np.corrcoef(seen[0], np.arange(n))[0, 1]) < 4 / math.sqrt(n)  # nothing to do with the stored order
    other = EpochPlan(num_samples=n, seed=6)
    mirror = train_params(other, AugmentConfig(hflip_alternate=True), [(0, n)], side, side, 224, np.arange(n))["mirror"]
    assert 0.4 < (mirror == seen[0]).mean() < 0.6


def test_parameters_belong_to_positions() -> None:
    rng = np.random.default_rng(0)
    heights, widths = rng.integers(8, 600, 100), rng.integers(8, 600, 100)
    plan, config = EpochPlan(num_samples=1000, seed=2), AugmentConfig(brightness=0.4, hue=0.1)
    full = train_params(plan, config, [(300, len(heights))], heights, widths, 224)
    for cut in (1, 50, 99):
        head = train_params(plan, config, [(300, cut)], heights[:cut], widths[:cut], 224)
        tail = train_params(plan, config, [(300 + cut, len(heights) - cut)], heights[cut:], widths[cut:], 224)
        turned = np.r_[cut:100, :cut]
        runs = [(300 + cut, 100 - cut), (300, cut)]
        both = train_params(plan, config, runs, heights[turned], widths[turned], 224)
        assert full.keys() == head.keys() == tail.keys() == both.keys()
        for name, values in full.items():
            assert np.array_equal(np.concatenate([head[name], tail[name]]), values)
            assert np.array_equal(both[name], values[turned])


@pytest.mark.parametrize("resize_size", [32, 40, 256])
@pytest.mark.parametrize("image_size", [24, 32])
def test_centre_crop_window_is_torchvisions(image_size: int, resize_size: int) -> None:
    """The window in stored pixels, times the scale, is `CenterCrop`'s box in `Resize`'s output; the decoded region
    lies in the image, and holds all that a triangle filter as wide as the scale reaches."""
    rng = np.random.default_rng(0)
    heights, widths = rng.integers(1, 700, 300), rng.integers(1, 700, 300)
    heights[:20], widths[:20] = 1, rng.integers(1, 700, 20)
    params = centre_crop_params(heights, widths, image_size, resize_size)
    for i in range(300):
        height, width = int(heights[i]), int(widths[i])
        resized = v2.functional.resize(torch.empty(1, height, width, device="meta"), [resize_size]).shape[-2:]
        for axis, (side, out) in enumerate(zip((height, width), resized, strict=True)):
            scale = side / out
            corner = round((out - image_size) / 2.0)  # as torchvision's center_crop
            anchor, length = int(params["anchor"][i, axis]), int(params["shape"][i, axis])
            start, end = params["roi_start"][i, axis] + anchor, params["roi_end"][i, axis] + anchor
            assert start == pytest.approx(corner * scale, abs=1e-3)
            assert end == pytest.approx((corner + image_size) * scale, abs=1e-3)
            assert anchor >= 0
            assert length >= 1
            assert anchor + length <= side
            reach = max(scale, 1.0)
            assert anchor == 0 or anchor <= start - reach
            assert anchor + length == side or anchor + length >= end + reach


def test_the_centre_crop_decodes_little_more_than_it_needs() -> None:
    params = centre_crop_params(np.array([4000]), np.array([3000]), 224, 256)
    window = params["roi_end"] - params["roi_start"]
    assert np.all(params["shape"] - window < 2 * (3000 / 256 + 3))


@pytest.mark.parametrize(
    ("wrong", "names"),
    [
        ({"scale": (0.0, 1.0)}, "scale"),
        ({"scale": (0.5, 0.1)}, "scale"),
        ({"scale": (0.5, 1.1)}, "scale"),
        ({"ratio": (0.0, 1.0)}, "ratio"),
        ({"ratio": (2.0, 1.0)}, "ratio"),
        ({"hflip": 1.5}, "hflip"),
        ({"hflip": 0.4, "hflip_alternate": True}, "hflip: 0.4 has no effect with hflip_alternate"),
        ({"hflip": -0.1}, "hflip"),
        ({"brightness": -1.0}, "brightness"),
        ({"contrast": float("nan")}, "contrast"),
        ({"saturation": -0.1}, "saturation"),
        ({"hue": 0.6}, "hue"),
    ],
)
def test_settings_out_of_range_are_errors(wrong: dict[str, object], names: str) -> None:
    with pytest.raises(ValueError, match=names):
        AugmentConfig(**wrong)  # type: ignore[arg-type]


def test_pad_crop_moves_the_whole_image_as_torchvision_does() -> None:
    """Each move in -pad…pad equally likely, rows and columns apart: the law of `RandomCrop(size, padding=pad)`."""
    n, pad = 20_000, 4
    draws = EpochPlan(num_samples=n, seed=3).uniforms("pad_crop", 0, n, 2)
    params = pad_crop(draws, np.full(n, 32), np.full(n, 40), pad)
    assert (params["anchor"] == 0).all()
    assert (params["shape"] == [32, 40]).all()
    counts = np.zeros((2 * pad + 1, 2 * pad + 1))
    np.add.at(counts, tuple((params["shift"] + pad).T), 1)
    expected = n / counts.size
    assert ((counts - expected) ** 2 / expected).sum() < 80 + 5 * np.sqrt(2 * 80)  # χ², 80 degrees of freedom
    torch.manual_seed(0)
    theirs = [v2.RandomCrop(32, padding=pad).make_params([torch.zeros(3, 32, 32)]) for _ in range(500)]
    assert {p["top"] for p in theirs} == set(range(2 * pad + 1)), "the oracle draws from as many places"


@pytest.mark.parametrize("settings", [{"crop": "pad", "scale": (0.5, 1.0)}, {"pad": 2}, {"crop": "pad", "pad": -1}])
def test_crop_settings_that_nothing_would_read_are_errors(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"scale|pad"):
        AugmentConfig(**settings)
