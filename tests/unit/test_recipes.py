"""Every recipe: its header, that each key is read, and its curves compared with their published definitions."""

import math
import re
import tomllib
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from timm.optim.muon import get_lr_scale
from timm.scheduler import CosineLRScheduler

from penstock import train
from penstock.model.networks import build_model
from penstock.model.optim import build_optimizer, param_groups
from penstock.model.schedule import lr_at
from penstock.pipeline.augment import AugmentConfig
from penstock.recipes import FOLDER, Recipe, recipe_at
from penstock.recipes.config import diff, from_toml, keys, load_config
from penstock.recipes.config_names import SECTIONS, SYNONYMS, keys_like
from penstock.recipes.config_text import commented_toml
from penstock.recipes.phases import PhasesConfig
from penstock.settings import setting

FILES = {file.stem: file for file in sorted(FOLDER.glob("*.toml"))}
TABLES = {name: tomllib.loads(file.read_text(encoding="utf-8")) for name, file in FILES.items()}
RECIPES_PAGE = (FOLDER.resolve().parent / "docs/recipes.md").read_text(encoding="utf-8")
KEYS = [(name, section, key) for name, table in TABLES.items() for section in table for key in table[section]]


@cache
def _recipe(name: str) -> Recipe:
    return load_config(Recipe, FILES[name])


def _lr(recipe: Recipe, epoch: float) -> float:
    return lr_at(epoch, epochs=recipe.train.epochs, base_lr=recipe.optimizer.lr, config=recipe.schedule)


def test_the_recipes_that_people_look_for_are_there() -> None:
    ours = {"rn50-16ep", "rn50-32ep", "rn50-88ep", "rn50-90ep", "rn50-a3", "rn50-large-batch", "rn18-16ep"}
    assert ours | {"vit-s16-90ep", "tiny-imagenet-rn18", "cifar10-rn18", "cifar10-cpu", "cifar10-muon", "demo"} <= set(
        FILES
    )


@pytest.mark.parametrize("name", FILES)
def test_the_header_says_what_the_recipe_is(name: str) -> None:
    lines = FILES[name].read_text(encoding="utf-8").splitlines()
    header = "\n".join(line[2:] for line in lines[: lines.index("", 1)])
    assert re.match(r".+[:.].*\n", header), "what for"
    assert "train.py" in header
    assert name == "demo" or f"--recipe {name}" in header
    if "docs/recipes.md" not in header:  # which has the accuracy and the time of what was trained to its end
        assert re.search(r"top-1 0\.\d+", header)
        assert re.search(r"\b(minutes|hours|time|s)\b", header)
    assert re.search("GPU|A100|V100|CPU", header)
    assert "Measured here:" in header
    assert f"`{name}`" in RECIPES_PAGE
    assert "Hardware:" in header
    assert name == "demo" or "Source:" in header
    assert "Expected:" in header or "Measured here: docs/recipes.md" in header


@pytest.mark.parametrize("name", FILES)
def test_a_recipe_builds_its_network_and_its_phases(name: str) -> None:
    recipe = _recipe(name)
    with torch.device("meta"):
        build_model(recipe.model, 1000)
    curve = [_lr(recipe, epoch) for epoch in range(recipe.train.epochs + 1)]
    assert max(curve) > curve[-1] >= 0
    for epoch in range(recipe.train.epochs):
        assert not recipe_at(recipe, epoch).phases.start_epochs


def _toml(table: dict[str, Any]) -> str:
    def value(x: Any) -> str:
        if isinstance(x, list):
            return "[" + ", ".join(map(value, x)) + "]"
        return str(x).lower() if isinstance(x, bool) else f'"{x}"' if isinstance(x, str) else repr(x)

    return "\n".join(
        f"[{section}]\n" + "\n".join(f"{k} = {value(v)}" for k, v in table[section].items()) for section in table
    )


def _others(value: Any, kind: Any) -> list[Any]:
    """Values of the type that are not `value`, as TOML has them."""
    if get_origin(kind) is Literal:
        return [other for other in get_args(kind) if other != value]
    match value:
        case bool():
            return [not value]
        case int():
            return [value + 1, value - 1]
        case float():
            return [other for other in (0.5 * value, 0.9 * value + 0.02) if other != value]
        case str():
            return [f"{value}-other", "resnet34"]
        case list():
            return [[*value[:-1], last] for last in _others(value[-1], None)]
    raise TypeError(value)


@pytest.mark.parametrize(("name", "section", "key"), KEYS, ids=lambda part: part)
def test_every_key_is_read(tmp_path: Path, name: str, section: str, key: str) -> None:
    """Another value of the key is another recipe, in this setting and no other; or other settings lose their effect."""
    table = TABLES[name]
    kind = get_type_hints(type(getattr(_recipe(name), section)))[key]
    file = tmp_path / "other.toml"
    refused = []
    for other in _others(table[section][key], kind):
        file.write_text(_toml({**table, section: {**table[section], key: other}}), encoding="utf-8")
        try:
            changed = load_config(Recipe, file)
        except ValueError as error:  # perhaps the next value goes with the rest of the recipe
            refused.append(str(error))
            continue
        assert [line.partition(":")[0] for line in diff(_recipe(name), changed)] == [f"{section}.{key}"]
        return
    assert any(re.search(r": has no effect (unless|with)", message) for message in refused), refused


@pytest.mark.parametrize("name", FILES)
def test_a_misspelt_key_is_an_error_that_names_the_right_one(tmp_path: Path, name: str) -> None:
    file = tmp_path / "misspelt.toml"
    for section in TABLES[name]:
        for key in TABLES[name][section]:
            table = {part: dict(values) for part, values in TABLES[name].items()}
            table[section][f"{key}z"] = table[section].pop(key)
            file.write_text(_toml(table), encoding="utf-8")
            with pytest.raises(ValueError, match=rf"unknown key {section}\.{key}z: did you mean {section}\.{key}\?"):
                load_config(Recipe, file)


# The FFCV family: libffcv/ffcv-imagenet, rn50_configs/rn50_{16,32,88}_epochs.yaml, rn18_configs/rn18_16_epochs.yaml.
# epochs, start_ramp, end_ramp, lr, global batch (batch_size × world_size), weight decay
FFCV = {
    "rn50-16ep": (16, 11, 13, 1.7, 512 * 8, 1e-4),
    "rn50-32ep": (32, 23, 27, 1.7, 512 * 8, 1e-4),
    "rn50-88ep": (88, 65, 76, 1.7, 512 * 8, 1e-4),
    "rn18-16ep": (16, 11, 13, 0.5, 1024, 5e-5),
}


def _ffcv_resolution(epoch: int, start_ramp: int, end_ramp: int) -> int:
    """train_imagenet.py, get_resolution, with min_res 160 and max_res 192."""
    if epoch <= start_ramp:
        return 160
    if epoch >= end_ramp:
        return 192
    between = np.interp(epoch, [start_ramp, end_ramp], [160, 192])
    return int(np.round(between / 32)) * 32


@pytest.mark.parametrize("name", FFCV)
def test_the_ffcv_family_is_ffcvs(name: str) -> None:
    epochs, start_ramp, end_ramp, lr, global_batch_size, weight_decay = FFCV[name]
    recipe = _recipe(name)
    assert recipe.train.epochs == epochs
    for epoch in range(epochs):
        phase = recipe_at(recipe, epoch)
        assert phase.data.image_size == _ffcv_resolution(epoch, start_ramp, end_ramp), epoch
        assert phase.train.global_batch_size == global_batch_size
        # get_cyclic_lr with its default peak at epoch 2; train_loop interpolates between whole epochs
        ends = np.interp([epoch, epoch + 1], [0, 2, epochs], [1e-4 * lr, lr, 0])
        for share in (0, 0.25, 0.9):
            assert _lr(recipe, epoch + share) == pytest.approx(np.interp(share, [0, 1], ends), rel=1e-9)
    assert (recipe.data.val_image_size, recipe.train.val_flip) == (256, True)
    assert 256 / recipe.data.val_resize_size == pytest.approx(224 / 256, abs=0.002)  # DEFAULT_CROP_RATIO
    optimizer = recipe.optimizer
    assert (optimizer.name, optimizer.momentum, optimizer.nesterov, optimizer.weight_decay) == (
        "sgd",
        0.9,
        False,
        weight_decay,
    )
    assert (recipe.loss.name, recipe.loss.label_smoothing, recipe.model.blurpool) == ("cross_entropy", 0.1, True)
    assert recipe.augment == AugmentConfig()  # random-resized crops and flips


def test_the_ffcv_curves_in_numbers() -> None:
    """Worked out by hand: 1.7 · (1e-4 + 0.9999 / 2) at epoch 1, 1.7 · (16 − e) / 14 from epoch 2 on."""
    recipe = _recipe("rn50-16ep")
    expected = {0: 0.00017, 1: 0.850085, 2: 1.7, 9: 0.85, 12.5: 0.425, 16: 0.0}
    assert {epoch: _lr(recipe, epoch) for epoch in expected} == pytest.approx(expected)
    sizes = {name: [recipe_at(_recipe(name), e).data.image_size for e in (0, 11, 12, 24, 25, 70, 71)] for name in FFCV}
    assert sizes["rn50-16ep"] == [160, 160, 192, 192, 192, 192, 192]
    assert sizes["rn50-32ep"] == [160, 160, 160, 160, 192, 192, 192]
    assert sizes["rn50-88ep"] == [160, 160, 160, 160, 160, 160, 192]
    assert sizes["rn18-16ep"] == sizes["rn50-16ep"]


def test_a3_is_resnet_strikes_back() -> None:
    """Wightman, Touvron & Jégou 2021, table 2, column A3, and timm where it is silent."""
    recipe = _recipe("rn50-a3")
    data, augment, loss, optimizer = recipe.data, recipe.augment, recipe.loss, recipe.optimizer
    assert (data.image_size, data.val_image_size, data.val_resize_size) == (160, 224, math.floor(224 / 0.95))
    assert (recipe.train.epochs, recipe.train.global_batch_size, recipe.train.clip_grad_norm) == (100, 2048, 1.0)
    assert (optimizer.name, optimizer.lr, optimizer.weight_decay) == ("lamb", 8e-3, 0.02)
    assert (loss.name, loss.label_smoothing, loss.bce_target_threshold) == ("bce", 0.0, 0.2)
    assert (augment.mixup, augment.cutmix, augment.hflip, augment.scale) == (0.1, 1.0, 0.5, (0.08, 1.0))
    assert (augment.auto, augment.auto_magnitude / 30, augment.repeats, augment.erase) == ("rand", 0.6, 1, 0.0)
    assert (recipe.model.stochastic_depth, recipe.model.dropout, recipe.ema.decay) == (None, None, 0.0)
    assert not recipe.phases.start_epochs

    theirs = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=8e-3)
    scheduler = CosineLRScheduler(theirs, t_initial=100, lr_min=1e-6, warmup_t=5, warmup_lr_init=1e-4)
    for epoch in range(100):
        scheduler.step(epoch)
        assert _lr(recipe, epoch) == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-9)
    # 1e-4 + 4 / 5 · 7.9e-3; 1e-6 + 7.999e-3 · (1 + cos(π e / 100)) / 2
    expected = {0: 1e-4, 4: 6.42e-3, 5: 7.950763e-3, 50: 4.0005e-3, 75: 1.172427e-3, 100: 1e-6}
    assert {epoch: _lr(recipe, epoch) for epoch in expected} == pytest.approx(expected, rel=1e-5)


def test_90_epochs_are_nvidias() -> None:
    """DeepLearningExamples, lr_cosine_policy(2.048, 8, 90), evaluated once per epoch."""
    recipe = _recipe("rn50-90ep")
    for epoch in range(8, 90):
        assert _lr(recipe, epoch) == pytest.approx(0.5 * (1 + math.cos(math.pi * (epoch - 8) / (90 - 8))) * 2.048)
    assert (recipe.train.global_batch_size / 256) * 0.256 == recipe.optimizer.lr
    assert (recipe.optimizer.weight_decay, recipe.optimizer.momentum) == (1 / 32768, 0.875)


def test_the_large_batch_is_mlperfs() -> None:
    """training_results_v1.0, config_DGXA100_2x8x408.sh and PolySchedule of common/fit.py."""
    recipe = _recipe("rn50-large-batch")
    assert recipe.train.global_batch_size == 2 * 8 * 408
    for epoch in np.linspace(0, 44, 89):
        left = 1 - (epoch - 6) / (44 - 6)
        expected = 8.4 * epoch / 6 if epoch < 6 else 1e-4 + (8.4 - 1e-4) * left**2
        assert _lr(recipe, float(epoch)) == pytest.approx(expected)
    optimizer = recipe.optimizer
    assert (optimizer.name, optimizer.momentum, optimizer.weight_decay) == ("lars", 0.94, 2.5e-5)
    assert (optimizer.trust_coefficient, recipe.loss.label_smoothing) == (0.001, 0.1)


def test_vit_s16_is_big_visions() -> None:
    """configs/vit_s16_i1k.py, with its learning rate (utils.create_learning_rate_schedule) and its decay, which
    optax.add_decayed_weights adds after the factor lr, so that the schedule alone multiplies it."""
    recipe = _recipe("vit-s16-90ep")
    steps_per_epoch = 1_281_167 // 1024
    total, warmup = 90 * steps_per_epoch, 10_000
    for step in (0, 100, 5_000, 9_999, 10_001, 50_000, 100_000, total):
        relative = step / warmup if step < warmup else (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2
        lr = _lr(recipe, step / steps_per_epoch)
        assert lr == pytest.approx(1e-3 * relative, rel=1e-4, abs=1e-9)
        assert lr * recipe.optimizer.weight_decay == pytest.approx(1e-4 * relative, rel=1e-4, abs=1e-10)
    data, augment = recipe.data, recipe.augment
    assert (data.image_size, data.val_resize_size, data.val_image_size, recipe.train.global_batch_size) == (
        224,
        256,
        224,
        1024,
    )
    assert [(level - data.mean[0]) / data.std[0] for level in (0, 255)] == [-1, 1]  # value_range(-1, 1)
    assert (augment.scale, augment.auto, augment.auto_num_ops, augment.mixup, augment.cutmix) == (
        (0.05, 1),
        "rand",
        2,
        0.2,
        0,
    )
    assert augment.auto_magnitude / 30 == 10 / 10  # of its range: MAX_MAGNITUDE here, _MAX_LEVEL there
    assert (recipe.train.clip_grad_norm, recipe.loss.label_smoothing) == (1.0, 0.0)
    net = build_model(recipe.model, 1000, data.image_size)
    width, tokens = 384, 14 * 14
    block = 12 * width**2 + 13 * width  # qkv, projection and MLP with biases, two norms
    parts = (3 * 16**2 * width + width, tokens * width, 12 * block, 2 * width, 1000 * width + 1000)
    assert sum(p.numel() for p in net.parameters()) == sum(parts)
    decayed, *others = param_groups(net, 0.1)
    assert not [p for group in others for p in group["params"] if p.ndim >= 2 and p is not net.pos_embed]
    assert all(p is not net.pos_embed and p.ndim >= 2 for p in decayed["params"])
    assert not net.head.weight.any()


def test_cifar10_muon_is_airbench94_muons() -> None:
    """KellerJordan/cifar10-airbench, airbench94_muon.py: a learning rate that falls in a line from the first step."""
    recipe, steps = _recipe("cifar10-muon"), 8 * (50_000 // 2000)
    optimizer = recipe.optimizer
    assert (recipe.train.epochs, recipe.train.global_batch_size, recipe.loss.label_smoothing) == (8, 2000, 0.2)
    assert [_lr(recipe, step / 25) for step in range(steps)] == pytest.approx(
        [0.24 * (1 - i / steps) for i in range(steps)]
    )
    assert (optimizer.momentum, optimizer.nesterov, optimizer.ns_steps, optimizer.ns_coefficients) == (
        0.6,
        True,
        3,
        "original",
    )
    assert (recipe.augment.crop, recipe.augment.pad, recipe.augment.hflip_alternate) == ("pad", 2, True)
    with torch.device("meta"):
        net = build_model(recipe.model, 10)
    muons = [
        p
        for group in build_optimizer(net, optimizer).param_groups
        if not group["use_fallback"]
        for p in group["params"]
    ]
    assert [id(p) for p in muons] == [id(p) for p in net.parameters() if p.ndim == 4 and p.requires_grad]
    # what it adds to a weight, in a step: lr times the orthogonal matrix alone
    assert {get_lr_scale(p.flatten(1).shape, optimizer.adjust_lr) for p in muons} == {1.0}


# AugmentConfig.scaled, which phases use

FULL = AugmentConfig(
    scale=(0.2, 0.9), hflip=0.4, vflip=0.1, repeats=3, rotation=20, rotation_filter="nearest",
    auto="rand", auto_num_ops=3, auto_magnitude=15, mixup=0.8, cutmix=1.0,
    brightness=0.4, contrast=0.3, saturation=0.2, hue=0.1, lighting=0.1, grayscale=0.2, blur=0.5, blur_sigma=(0.2, 1.0),
    noise=0.3, noise_std=(1.0, 9.0), salt_pepper=0.1, salt_pepper_amount=(0.0, 0.2), jpeg=0.4, jpeg_quality=(20, 90),
    erase=0.25, erase_scale=(0.1, 0.2), erase_ratio=(0.5, 2.0),
)  # fmt: skip


def test_full_strength_is_the_augmentation_itself() -> None:
    assert FULL.scaled(1.0) == FULL


def test_no_strength_leaves_crops_flips_and_repeats() -> None:
    assert FULL.scaled(0.0) == AugmentConfig(scale=(0.2, 0.9), hflip=0.4, vflip=0.1, repeats=3)
    small = AugmentConfig(crop="pad", pad=2, auto="trivial", mixup=0.2)
    assert small.scaled(0.0) == AugmentConfig(crop="pad", pad=2)
    assert AugmentConfig(auto="autoaugment").scaled(0) == AugmentConfig()


def test_half_strength() -> None:
    """EfficientNetV2, section 4.2: what regularises at a half, the rest as it was."""
    half = FULL.scaled(0.5)
    changed = {field.name for field in fields(half) if getattr(half, field.name) != getattr(FULL, field.name)}
    probabilities = {"grayscale", "blur", "noise", "salt_pepper", "jpeg", "erase"}
    ranges = {"rotation", "brightness", "contrast", "saturation", "hue", "lighting"}
    assert changed == {"auto_magnitude", "mixup", "cutmix"} | probabilities | ranges
    assert half.auto_magnitude == 8  # 7.5 to the even number
    for name in changed - {"auto_magnitude"}:
        assert getattr(half, name) == getattr(FULL, name) / 2
    assert replace(FULL, auto="trivial", auto_num_ops=2, auto_magnitude=9).scaled(0.1).auto == "trivial"


@pytest.mark.parametrize("preset", AugmentConfig.presets)
@pytest.mark.parametrize("strength", [0.0, 0.01, 0.3, 0.99])
def test_presets_scale(preset: str, strength: float) -> None:
    """What comes out is an augmentation that its own checks take."""
    scaled = AugmentConfig(**AugmentConfig.presets[preset]).scaled(strength)
    assert scaled == AugmentConfig(**{field.name: getattr(scaled, field.name) for field in fields(scaled)})


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_a_strength_is_between_0_and_1(strength: float) -> None:
    with pytest.raises(ValueError, match=r"strength .* must be between 0 and 1"):
        FULL.scaled(strength)


def test_phases_scale_the_augmentation() -> None:
    phases = PhasesConfig(start_epochs=(0, 4), augment_strength=(0.5, 1.0))
    recipe = Recipe(augment=FULL, phases=phases)
    assert [recipe_at(recipe, epoch).augment.mixup for epoch in (0, 3, 4, 9)] == [0.4, 0.4, 0.8, 0.8]


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        (
            "[0.485, 0.456, 0.406]",
            "[0.229, 0.224, 0.225]",
            "Multiply by 255: mean = [123.675, 116.28, 103.53], std = [58.395, 57.12, 57.375]",
        ),
        ("[0.5, 0.5, 0.5]", "[0.5, 0.5, 0.5]", "255: mean = [127.5, 127.5, 127.5], std = [127.5, 127.5, 127.5]"),
        ("[0.5, 0.5, 0.5]", "[127.5, 127.5, 127.5]", "255: mean = [127.5, 127.5, 127.5]"),
        ("[123.675, 116.28, 103.53]", "[0.229, 0.224, 0.225]", "255: std = [58.395, 57.12, 57.375]"),
        ("[0, 0, 0]", "[1, 1, 1]", "255: std = [255.0, 255.0, 255.0]"),
        ("[0.5, 0.5, 0.5]", "[1, 1, 1]", "255: mean = [127.5, 127.5, 127.5], std = [255.0, 255.0, 255.0]"),
        ("[124, 116, 104]", "[0.229, 57, 57]", "255: std = [58.395, 57.0, 57.0]"),
        ("[124, 116, 104]", "[58, 0, 57]", "std: (58.0, 0.0, 57.0) must be above 0"),
        ("[124, 116, 104]", "[58, -57, 57]", "std: (58.0, -57.0, 57.0) must be above 0"),
        ("[124, 116, 104]", "[58, 57, inf]", "std: [58.0, 57.0, inf] must be in grey levels, 1 to 255"),
        ("[124, -116, 104]", "[58, 57, 57]", "mean: [124.0, -116.0, 104.0] must be in grey levels, 0 to 255"),
        ("[31537.1, 29651.4, 26400.2]", "[58, 57, 57]", "must be in grey levels, 0 to 255"),
        ("[124, 116]", "[58, 57, 57]", "data.mean = [124, 116]: expected an array of 3"),
        ("0.5", "[58, 57, 57]", "--set data.mean=0.5: data.mean = 0.5: expected an array of 3"),
    ],
)
def test_mean_and_std_are_grey_levels(mean: str, std: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as refused:
        load_config(Recipe, None, [f"data.mean={mean}", f"data.std={std}"])
    assert "\n" not in str(refused.value)
    pasted = re.findall(r"(mean|std) = (\[.*?\])", message.partition("Multiply")[2])
    if pasted:
        again = {"mean": mean, "std": std} | dict(pasted)
        load_config(Recipe, None, [f"data.{name}={values}" for name, values in again.items()])


@pytest.mark.parametrize(("mean", "std"), [("[0, 0, 0]", "[255, 255, 255]"), ("[104, 117, 123]", "[1, 1, 1]")])
def test_any_grey_levels_are_taken(mean: str, std: str) -> None:
    load_config(Recipe, None, [f"data.mean={mean}", f"data.std={std}"])


def test_a_value_that_its_section_refuses_is_told_with_its_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[data]\nmean = [0.485, 0.456, 0.406]\n", encoding="utf-8")
    with pytest.raises(ValueError, match=rf"^{file}: data.mean: .*: mean = \[123.675, 116.28, 103.53\]$"):
        load_config(Recipe, file)
    with pytest.raises(ValueError, match=r"^--set augment.hue=2: augment.hue: 2.0 must be between 0 and 0.5"):
        load_config(Recipe, None, ["augment.hue=2"])


def test_what_an_earlier_version_trained_with_is_read_back() -> None:
    """Such a network expects images as in its training, whatever its recipe says."""
    old = "[data]\nmean = [0.485, 0.456, 0.406]\nstd = [0.229, 0.224, 0.225]\n"
    assert from_toml(Recipe, old, "checkpoint").data.std == (0.229, 0.224, 0.225)


KEYS_OF_ALL = keys(Recipe)


@pytest.mark.parametrize("key", SYNONYMS)
def test_what_other_trainers_call_a_key_is_told_to_be_it(key: str) -> None:
    assert key in KEYS_OF_ALL
    for name in SYNONYMS[key].split():
        for given in (name, name.upper().replace("_", "-")):
            assert key in keys_like(given, KEYS_OF_ALL)
    assert key.rpartition(".")[2] not in SYNONYMS[key].split()


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("[optimizer]\nlearning_rate = 0.1", "unknown key optimizer.learning_rate: did you mean optimizer.lr?"),
        ("learning_rate = 0.1", "did you mean optimizer.lr?"),
        ("[train]\nbatch_size = 32", "did you mean train.global_batch_size?"),
        ("[data]\nbatch_size = 32", "did you mean train.global_batch_size?"),
        ("[train]\nworkers = 8", "did you mean data.threads?"),
        ("[train]\nlr = 0.1", "did you mean optimizer.lr?"),
        ("[optimizer]\ndecay = 0.1", "did you mean optimizer.weight_decay?"),
        ("warmup = 3", "did you mean schedule.warmup_epochs or ema.warmup?"),
        ("[augmentation]\nmixup = 0.2", "unknown key augmentation: did you mean the section [augment]?"),
        ("[Model]\nname = 'resnet18'", "did you mean the section [model]?"),
        ("[scheduler]\nname = 'step'", "did you mean the section [schedule]?"),
        ("[zzz]\nname = 1", "valid sections are data, augment, model"),
        ("model = 'resnet50'", "expected a section, [model]"),
    ],
)
def test_names_of_other_trainers_in_a_file(text: str, meant: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(meant)) as refused:
        load_config(Recipe, file)
    assert str(refused.value).startswith(f"{file}: ")


@pytest.mark.parametrize("section", SECTIONS)
def test_synonyms_of_sections_are_of_a_section_and_no_section(section: str) -> None:
    sections = {key.partition(".")[0] for key in KEYS_OF_ALL}
    assert section in sections
    assert not sections & set(SECTIONS[section].split())


@pytest.mark.parametrize(
    ("option", "meant"),
    [
        ("--pretrained=DEFAULT", "give --set model.pretrained=…"),
        ("--learning-rate=1", "give --set optimizer.lr=…"),
        ("-b", "give --set train.global_batch_size=…"),
        ("--output-dir=runs", "give --run-dir"),
        ("--config=a.toml", "give --recipe"),
        ("--recipes=demo", "Did you mean '--recipe'?"),
        ("--zzz", "No such option '--zzz'."),
    ],
)
def test_options_of_other_trainers(option: str, meant: str) -> None:
    result = CliRunner().invoke(train.main, [option])
    assert result.exit_code == 2
    assert meant in result.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", FILES)
def test_what_show_config_prints_is_the_recipe_with_every_key(name: str, tmp_path: Path) -> None:
    file = tmp_path / "shown.toml"
    shown = CliRunner().invoke(train.main, ["--recipe", name, "--show-config", "--no-machine-config"])
    assert shown.exit_code == 0
    file.write_text(shown.stdout, encoding="utf-8")
    assert load_config(Recipe, file) == _recipe(name)
    table = tomllib.loads(shown.stdout)
    assert [f"{section}.{key}" for section in table for key in table[section]] == KEYS_OF_ALL
    for key in ("# Passes over the training split.", "# Mean of each channel (R, G, B), in grey levels 0 … 255."):
        assert f"\n{key}" in shown.stdout


def test_comments_are_the_texts_first_sentences() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Section:
        """What it is. In two
        sentences."""

        low: int = setting(0, "The range, e.g. of Szegedy et al. 2016, over two lines. A second sentence.")
        high: int | None = setting(None, "Its other end")
        kind: Literal["x", "y"] = setting("x", "Which.")
        mode: Literal["a", "b"] = setting("a", 'By `"a"`. By "b"?')
        word: Literal["c", "d"] = setting("c", '"c" or "d". Never this.')
        edge: int = 1

    @dataclass(frozen=True, kw_only=True)
    class Tree:
        section: Section = field(default_factory=Section)

    assert commented_toml(Tree()).splitlines() == [
        "[section]",
        "# What it is. In two sentences.",
        "# The range, e.g. of Szegedy et al. 2016, over two lines.",
        "low = 0",
        "# Its other end",
        'high = "none"',
        '# Which. One of "x", "y".',
        'kind = "x"',
        '# By `"a"`. One of "a", "b".',
        'mode = "a"',
        '# "c" or "d".',
        'word = "c"',
        "edge = 1",
    ]
