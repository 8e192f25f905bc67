"""The plan's draws for the other augmentations, compared with torchvision's draws and tables, and formulas."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms import autoaugment, v2

from penstock.pipeline.augment import AugmentConfig, train_params
from penstock.pipeline.augment.auto import OP_ID, OPS, POLICY, magnitudes
from penstock.pipeline.augment.colour import colour_map
from penstock.pipeline.augment.noise import gaussian_field, hashed_field, hashed_lines
from penstock.pipeline.plan import EpochPlan
from penstock.recipes import Recipe
from penstock.recipes.config import from_toml, load_config, to_toml
from tests.common.two_samples import KS_LIMIT, ks_distance

N = 20_000


def drawn(image_size: int = 224, **settings: Any) -> dict[str, np.ndarray]:
    side = np.full(N, 300)
    return train_params(EpochPlan(num_samples=N, seed=4), AugmentConfig(**settings), [(0, N)], side, side, image_size)


def sigmas(count: float, expected: float) -> float:
    return abs(count - expected) / math.sqrt(max(expected, 1))


# --- the policies


@pytest.mark.parametrize(("auto", "policy", "args"), [
    ("trivial", autoaugment.TrivialAugmentWide(), (31,)),
    ("rand", autoaugment.RandAugment(), (31, (96, 96))),
    ("autoaugment", autoaugment.AutoAugment(), (10, (96, 96))),
])  # fmt: skip
def test_magnitudes_are_torchvisions(auto: str, policy: Any, args: tuple[Any, ...]) -> None:
    table, space = magnitudes(auto, 96), policy._augmentation_space(*args)
    assert set(space) == set(OPS) - ({"Identity"} if auto == "autoaugment" else {"Invert"})
    for name, (values, signed) in space.items():
        expected = np.broadcast_to(values.numpy(), table.shape[1])
        np.testing.assert_allclose(table[OP_ID[name]], expected, rtol=1e-6, atol=1e-6, err_msg=name)
        if auto != "autoaugment":
            config = {"auto": auto} | ({"auto_magnitude": 20} if auto == "rand" else {})
            params = drawn(96, **config)
            chosen = params["auto_magnitude"][params["auto_op"] == OP_ID[name]]
            both = values if auto == "trivial" or not values.ndim else values[20]
            allowed = np.unique(np.concatenate([both.ravel(), -both.ravel()]) if signed else both.ravel())
            assert (
                np.isin(chosen, allowed.astype(np.float32)).all() or np.isclose(chosen[:, None], allowed).any(1).all()
            )
            if signed:  # half of those that are not 0 are negative
                assert sigmas((chosen < 0).sum(), (chosen != 0).sum() / 2) < 4


def test_the_imagenet_policy_is_torchvisions() -> None:
    theirs = autoaugment.AutoAugment()._get_policies(autoaugment.AutoAugmentPolicy.IMAGENET)
    assert [[(name, p, bin_ or 0) for name, p, bin_ in pair] for pair in theirs] == [list(pair) for pair in POLICY]


@pytest.mark.parametrize(("auto", "width"), [("trivial", 1), ("rand", 3)])
def test_operations_are_equally_likely_and_independent(auto: str, width: int) -> None:
    op = drawn(auto=auto, **({"auto_num_ops": 3} if auto == "rand" else {}))["auto_op"]
    assert op.shape == (N, width)
    for column in op.T:
        assert max(sigmas(count, N / 14) for count in np.bincount(column, minlength=14)) < 4.5
    for a, b in itertools.combinations(op.T, 2):
        table = np.zeros((14, 14))
        np.add.at(table, (a, b), 1)
        assert ((table - N / 196) ** 2 / (N / 196)).sum() < 195 + 5 * math.sqrt(2 * 195)


def test_autoaugment_takes_its_operations_as_often_as_the_policy_says() -> None:
    op = drawn(auto="autoaugment")["auto_op"]
    expected = np.zeros((2, len(OPS)))
    for pair in POLICY:
        for place, (name, probability, _) in enumerate(pair):
            expected[place, OP_ID[name]] += probability / 25
            expected[place, 0] += (1 - probability) / 25
    for place in range(2):
        counts = np.bincount(op[:, place], minlength=len(OPS))
        assert max(map(sigmas, counts, N * expected[place])) < 4.5


# --- geometry and colour


def test_rotation_and_vertical_flip() -> None:
    params = drawn(rotation=30, vflip=0.25)
    torch.manual_seed(0)
    theirs = [v2.RandomRotation(30).make_params([])["angle"] for _ in range(1000)]
    assert ks_distance(params["rotation"], np.array(theirs)) < KS_LIMIT * math.sqrt(1 / N + 1 / 1000)
    assert sigmas(params["flip_vertical"].sum(), N / 4) < 4


@pytest.mark.parametrize("settings", [{}, {"erase_scale": (0.4, 1.0), "erase_ratio": (0.2, 2.0)}])
def test_erasing_follows_torchvision(settings: dict[str, Any]) -> None:
    boxes = drawn(64, erase=1, **settings)["erase"].astype(float)
    config = AugmentConfig(erase=1, **settings)
    transform = v2.RandomErasing(1, scale=config.erase_scale, ratio=config.erase_ratio)
    torch.manual_seed(0)
    made = [transform.make_params([torch.empty(3, 64, 64)]) for _ in range(1000)]
    theirs = np.array([[p["i"], p["j"], p["h"], p["w"]] if p["v"] is not None else [0] * 4 for p in made], float)
    limit = KS_LIMIT * math.sqrt(1 / N + 1 / 1000)
    for column in range(4):
        assert ks_distance(boxes[:, column], theirs[:, column]) < limit
    assert ks_distance(boxes[:, 2] * boxes[:, 3], theirs[:, 2] * theirs[:, 3]) < limit
    rate = drawn(64, erase=0.3)["erase"][:, 2] > 0
    assert sigmas(rate.sum(), 0.3 * N) < 4


def test_the_colour_map_is_torchvisions_jitter_in_any_order() -> None:
    """Brightness, contrast and saturation on float images that nothing clips, in all six orders."""
    torch.manual_seed(0)
    image = 0.4 + 0.1 * torch.rand(3, 20, 20, dtype=torch.float64)
    factors = {"brightness": 0.8, "contrast": 1.4, "saturation": 0.3}
    matrix, gain = colour_map(**{name: np.array([value]) for name, value in factors.items()}, hue=np.zeros(1))
    gray = (image * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0).mean()
    ours = torch.einsum("ij,jhw->ihw", torch.from_numpy(matrix[0]), image) + gain[0] * gray
    for order in itertools.permutations(factors):
        theirs = image
        for name in order:
            theirs = getattr(v2.functional, f"adjust_{name}")(theirs, factors[name])
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)  # torchvision's luma has four digits


def test_lighting_has_the_covariance_of_the_paper() -> None:
    """Σ = σ² V diag(λ²) Vᵀ of RGB values 0 to 1 (Krizhevsky et al. 2012), figures of fb.resnet.torch's datasets."""
    values = torch.tensor([0.2175, 0.0188, 0.0045])
    vectors = torch.tensor([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
    expected = 0.1**2 * vectors @ torch.diag(values**2) @ vectors.T
    shift = drawn(lighting=0.1)["lighting"] / 255
    np.testing.assert_allclose(np.cov(shift.T), expected, rtol=0.06, atol=2e-6)
    assert np.abs(shift.mean(0)).max() < 4 * math.sqrt(float(expected.max()) / N)


# --- noise


def test_noise_is_normal_and_white() -> None:
    """Distribution, neighbours, rectangles (the field is a hash of a row's and a column's word), and the spectrum of a
    random matrix: a field with structure in rows and columns has singular values beyond √rows + √columns."""
    keys = np.array([[1, 2], [1, 3], [9, 2], [2**32 - 1, 0]], dtype=np.uint32)
    fields = gaussian_field(keys, 224)
    normal = torch.distributions.Normal(0, 1)
    for field in fields:
        values = np.sort(field.ravel())
        expected = normal.cdf(torch.from_numpy(values)).numpy()
        assert np.abs(expected - np.arange(len(values)) / len(values)).max() < 2.2 / math.sqrt(len(values))
        n = math.sqrt(field.size)
        for shifted in (np.roll(field, 1, 0), np.roll(field, 1, 1), np.roll(field, 1, 2)):
            assert abs((field * shifted).mean()) < 4 / n
        corners = field * np.roll(field, 1, 0)
        assert abs((corners * np.roll(corners, 1, 1)).mean()) < 4 / n
        assert np.linalg.svd(field.reshape(224, 672), compute_uv=False)[0] < math.sqrt(224) + math.sqrt(672) + 2
    for a, b in itertools.combinations(fields, 2):  # even where they share the key of the rows
        assert abs((a * b).mean()) < 4 / math.sqrt(a.size)


def test_hashes_spread_over_all_bits() -> None:
    words = hashed_lines(np.arange(200, dtype=np.uint32), 100)
    assert len(np.unique(words)) > 0.999 * words.size
    field = hashed_field(np.array([[1, 2]], np.uint32), 300, 300)
    corners = field[0, :-1, :-1], field[0, 1:, :-1], field[0, :-1, 1:], field[0, 1:, 1:]
    rectangles = np.bitwise_xor.reduce(corners)  # 0 in a bit that is a row's bit xor a column's
    for values in (words, field, np.ascontiguousarray(rectangles[::2, ::2])):
        ones = np.unpackbits(values.ravel().view(np.uint8).reshape(-1, 4), axis=1).mean(0)
        assert np.abs(ones - 0.5).max() < 4.5 * 0.5 / math.sqrt(values.size)


def test_rates_and_ranges_of_the_degradations() -> None:
    rates = {"blur": 0.5, "noise": 0.3, "salt_pepper": 0.2, "jpeg": 0.4, "grayscale": 0.1}
    ranges = {"noise_std": (5, 20), "salt_pepper_amount": (0.02, 0.05), "jpeg_quality": (40, 42)}
    params = drawn(blur_sigma=(0.5, 1.5), **rates, **ranges)
    for name, rate, low, high in (
        ("blur", 0.5, 0.5, 1.5),
        ("noise", 0.3, 5, 20),
        ("salt_pepper", 0.2, 0.02, 0.05),
        ("jpeg", 0.4, 40, 42),
    ):
        values = params[name][params[name] > 0]
        assert sigmas(len(values), rate * N) < 4
        assert low <= values.min() < low + 0.01 * (high - low) + 1e-6
        assert high >= values.max() > high - 0.01 * (high - low) - 1e-6
        assert abs(values.mean() - (low + high) / 2) < 4 * (high - low) / math.sqrt(6 * len(values))
    assert sigmas(params["grayscale"].sum(), 0.1 * N) < 4
    assert {40, 41, 42} == set(params["jpeg"]) - {0}


# --- settings


@pytest.mark.parametrize(("wrong", "message"), [
    ({"erase": 1.5}, r"erase: 1\.5 must be between 0 and 1"),
    ({"noise": 1, "noise_std": (5, 1)}, r"noise_std: \(5, 1\) must be low ≤ high"),
    ({"jpeg": 1, "jpeg_quality": (0, 50)}, r"jpeg_quality: .* between 1 and 100"),
    ({"rotation": -1}, "rotation"),
    ({"mixup": -1.0}, "mixup: -1.0 must be 0 or more"),
    ({"repeats": 0}, "repeats"),
    ({"blur": 1, "blur_sigma": (0, 1)}, "blur_sigma: .* above 0"),
    ({"auto": "rand", "auto_magnitude": 31}, "auto_magnitude: 31 must be between 0 and 30"),
    ({"crop": "centre", "crop_fraction": 0.0}, "crop_fraction"),
    ({"blur_sigma": (1, 2)}, "blur_sigma: has no effect with blur = 0"),
    ({"auto": "trivial", "auto_magnitude": 3}, r'auto_magnitude: has no effect unless auto = "rand"'),
    ({"rotation_filter": "nearest"}, "rotation_filter: has no effect with rotation = 0"),
    ({"crop_fraction": 0.5}, r'crop_fraction: has no effect unless crop = "centre"'),
])  # fmt: skip
def test_settings_out_of_range_or_without_effect_are_errors(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AugmentConfig(**wrong)


@pytest.mark.parametrize("preset", AugmentConfig.presets)
def test_presets_are_overridden_by_what_is_explicit_and_shown_resolved(preset: str, tmp_path: Path) -> None:
    values = AugmentConfig.presets[preset]
    config = load_config(Recipe, None, [f"augment.preset={preset}"]).augment
    assert config == AugmentConfig(preset=preset, **values)  # type: ignore[arg-type]
    file = tmp_path / "recipe.toml"
    file.write_text(f'[augment]\nerase = 0.7\npreset = "{preset}"\nmixup = 0.0\n', encoding="utf-8")
    recipe = load_config(Recipe, file, ["augment.hflip=0"])
    assert recipe.augment == AugmentConfig(**(values | {"preset": preset, "erase": 0.7, "mixup": 0, "hflip": 0}))
    assert from_toml(Recipe, to_toml(recipe), "config.toml") == recipe
    for name, value in values.items():
        if name not in ("erase", "mixup"):
            shown = f'"{value}"' if isinstance(value, str) else str(value)
            assert f"{name} = {shown}\n" in to_toml(recipe)


def test_an_unknown_preset_names_those_there_are() -> None:
    with pytest.raises(ValueError, match="'none', 'light', 'medium', 'strong'"):
        load_config(Recipe, None, ["augment.preset=heavy"])
