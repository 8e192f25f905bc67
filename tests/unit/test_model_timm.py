"""timm's networks compared with timm itself: parameters, logits, options, images and weights."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from timm.data import resolve_data_config
from timm.layers import DropPath
from torch import Tensor, nn

from penstock import train
from penstock.model.config import ModelConfig
from penstock.model.heads import heads_of
from penstock.model.networks import build_model
from penstock.model.pretrained import load_pretrained
from penstock.model.timm_networks import classes_of, published_weights
from penstock.model.weight_files import read_weights
from penstock.recipes import Recipe
from penstock.recipes.config import from_toml, to_toml
from penstock.recipes.machine import load_recipe
from penstock.shard_tools.sources.imagenet import imagenet_classes
from penstock.shards.format import ClassInfo
from penstock.training.distributed import World
from penstock.training.learner import build_learner

SMALL = ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"]  # timm's own for tests


def build(name: str, num_classes: int = 7, image_size: int | None = None, **options: Any) -> nn.Module:
    torch.manual_seed(1)
    return build_model(ModelConfig(name=f"timm/{name}", **options), num_classes, image_size)


def assert_same(net: nn.Module, other: nn.Module) -> None:
    theirs = other.state_dict()
    assert list(net.state_dict()) == list(theirs)
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("name", SMALL)
def test_it_is_timms_network(name: str, channels_last: bool) -> None:
    net, oracle = build(name, channels_last=channels_last), timm.create_model(name, num_classes=7)
    assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in oracle.parameters())
    oracle.load_state_dict(net.state_dict())
    size = oracle.pretrained_cfg["input_size"][-1]
    images = torch.randn(2, 3, size, size)
    logits = net.eval()(images)
    assert logits.shape == (2, 7)
    torch.testing.assert_close(logits, oracle.eval()(images), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "name",
    [*SMALL, "dla34", "vgg11", "levit_128s", "crossvit_tiny_240", "deit_tiny_distilled_patch16_224", "davit_tiny"],
)
def test_heads_are_those_that_timm_names(name: str) -> None:
    with torch.device("meta"):
        net = build(name)
    expected = net.pretrained_cfg["classifier"]
    assert list(heads_of(net).values()) == ([expected] if isinstance(expected, str) else list(expected))


def test_dropout_and_stochastic_depth_are_timms() -> None:
    net = build("test_resnet", stochastic_depth=0.2, dropout=0.3)
    oracle = timm.create_model("test_resnet", num_classes=7, drop_path_rate=0.2, drop_rate=0.3)
    rates = [[m.drop_prob for m in one.modules() if isinstance(m, DropPath)] for one in (net, oracle)]
    assert rates[0] == rates[1]
    assert max(rates[0]) == pytest.approx(0.2)
    assert net.drop_rate == oracle.drop_rate == 0.3
    images = torch.randn(4, 3, 32, 32)
    logits = []
    oracle.load_state_dict(net.state_dict())
    for one in (net, oracle):
        torch.manual_seed(3)
        logits.append(one.train()(images))
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("zero", [True, False])
def test_zero_init_residual_is_timms(zero: bool) -> None:
    net = build("test_resnet", zero_init_residual=zero)
    torch.manual_seed(1)
    oracle = timm.create_model("test_resnet", num_classes=7, zero_init_last=zero)
    assert_same(net, oracle)
    assert any(p.ndim == 1 and name.endswith("weight") and not p.any() for name, p in net.named_parameters()) == zero


def test_a_network_without_zero_initialised_branches_is_as_it_is() -> None:
    assert_same(build("test_vit", zero_init_residual=False), build("test_vit"))


def test_further_keywords_are_timms() -> None:
    arguments = ("class_token=false", "global_pool=avg", "fc_norm=false")
    net = build("test_vit", timm_args=arguments)
    oracle = timm.create_model("test_vit", num_classes=7, class_token=False, global_pool="avg", fc_norm=False)
    oracle.load_state_dict(net.state_dict())
    images = torch.randn(2, 3, 160, 160)
    torch.testing.assert_close(net.eval()(images), oracle.eval()(images))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vgg11", {"stochastic_depth": 0.1}, "timm/vgg11 has no stochastic_depth: remove it"),
        ("test_vit", {"zero_init_residual": True}, "timm/test_vit has no zero_init_residual"),
        ("test_resnet", {"aux_logits": True}, "has no aux_logits"),
        ("test_resnet", {"stem": "small"}, "has no stem = small: that is for torchvision's"),
        ("test_vit", {"blurpool": True}, "has no blurpool: it has no strided convolution"),
        ("test_vit", {"timm_args": ("zzz=1",)}, "timm cannot build it with zzz=1.*unexpected keyword argument 'zzz'"),
        ("test_vit", {"timm_args": ("zzz",)}, "timm_args: 'zzz' must be NAME=VALUE"),
        ("test_vit", {"timm_args": ("img_size=32",)}, "timm_args: 'img_size=32' is set by data.image_size"),
        ("test_vit", {"timm_args": ("in_chans=1",)}, "timm_args: 'in_chans=1' is set by the images, which are RGB"),
        ("resnet5Od", {}, "did you mean timm/resnet50d"),
        ("test_resnet.r160_in1k", {}, 'name = "timm/test_resnet", pretrained = "r160_in1k"'),
    ],
)
def test_what_a_network_lacks_is_told(name: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        build(name, **options)
    assert "\n" not in str(refused.value)


def test_blurpool_goes_before_timms_strided_convolutions() -> None:
    plain, blurred = (build("test_resnet", zero_init_residual=False, blurpool=blur).eval() for blur in (False, True))
    blurred.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert not torch.allclose(plain(images), blurred(images))
    with pytest.raises(ValueError, match="timm_args: has no effect with name"):
        ModelConfig(name="resnet18", timm_args=("a=1",))


# The images


def loaded(tmp_path: Path, text: str, *overrides: str) -> tuple[Recipe, str]:
    file = tmp_path / "recipe.toml"
    file.write_text(text, encoding="utf-8")
    return load_recipe(file, overrides, device="cpu", path=tmp_path / "machine.toml")


@pytest.mark.parametrize(
    "name",
    [
        "test_resnet",
        "test_vit",
        "resnet50d",
        "vit_base_patch32_clip_224",
        "tf_efficientnet_b3",
        "beit_base_patch16_384",
    ],
)
@pytest.mark.parametrize("tagged", [False, True])
def test_what_nobody_gives_is_timms(tmp_path: Path, name: str, tagged: bool) -> None:
    """timm.data.resolve_data_config, as used by timm's train.py."""
    tags = [tag for tag in published_weights(ModelConfig(name=f"timm/{name}")) if tag != "DEFAULT"]
    chosen = tags[-1] if tagged else ""
    expected = resolve_data_config(
        pretrained_cfg=timm.get_pretrained_cfg(f"{name}.{chosen}" if chosen else name).to_dict()
    )
    recipe, line = loaded(tmp_path, f'[model]\nname = "timm/{name}"\npretrained = "{chosen}"')
    data, size = recipe.data, expected["input_size"][-1]
    assert data.mean == pytest.approx([255 * share for share in expected["mean"]], abs=1e-4)
    assert data.std == pytest.approx([255 * share for share in expected["std"]], abs=1e-4)
    assert (data.image_size, data.val_image_size) == (size, size)
    assert data.val_resize_size == int(size / expected["crop_pct"])
    assert data.interpolation == {"bicubic": "cubic", "bilinear": "linear"}[expected["interpolation"]]
    assert line.startswith(f"defaults of timm/{name}: data.image_size = {size}, ")
    assert "\n" not in line
    assert from_toml(Recipe, to_toml(recipe), "config") == recipe


def test_what_somebody_gives_stays(tmp_path: Path) -> None:
    text = '[model]\nname = "timm/test_vit"\n[data]\nmean = [1, 2, 3]\nval_resize_size = 99\n'
    recipe, line = loaded(tmp_path, text, "data.interpolation=linear", "data.image_size=64")
    data = recipe.data
    assert (data.mean, data.val_resize_size, data.interpolation, data.image_size) == ((1, 2, 3), 99, "linear", 64)
    assert (data.std, data.val_image_size) == ((127.5, 127.5, 127.5), 64)  # built for 64 px, so validated at 64
    assert line == "defaults of timm/test_vit: data.val_image_size = 64, data.std = [127.5, 127.5, 127.5]"
    whole, said = loaded(tmp_path, to_toml(recipe))  # a run's config.toml
    assert (whole, said) == (recipe, "")
    assert loaded(tmp_path, '[model]\nname = "resnet18"') == (Recipe(model=ModelConfig(name="resnet18")), "")
    free, _ = loaded(tmp_path, '[model]\nname = "timm/test_resnet"\n[data]\nimage_size = 64')
    assert (free.data.image_size, free.data.val_image_size) == (64, 160)
    with pytest.raises(ValueError, match=r"recipe.toml: data.val_resize_size: 9 must be at least val_image_size 160"):
        loaded(tmp_path, '[model]\nname = "timm/test_vit"\n[data]\nval_resize_size = 9')


def test_it_is_built_for_the_recipes_size_and_takes_no_other(tmp_path: Path) -> None:
    recipe, _ = loaded(tmp_path, '[model]\nname = "timm/test_vit"\n[data]\nimage_size = 64')
    world = World(rank=0, world_size=1, local_rank=0, local_world_size=1, device=torch.device("cpu"))
    assert build_learner(recipe, 7, world).net(torch.randn(1, 3, 64, 64)).shape == (1, 7)
    other = replace(recipe, data=replace(recipe.data, val_image_size=32))
    with pytest.raises(ValueError, match=r"data\.val_image_size = 32: timm/test_vit accepts only images of 64 px"):
        build_learner(other, 7, world)
    free = replace(other, model=replace(recipe.model, timm_args=("dynamic_img_size=true",)))
    assert build_learner(free, 7, world).net(torch.randn(1, 3, 32, 32)).shape == (1, 7)


def test_settings_are_shown_as_the_run_has_them() -> None:
    shown = CliRunner().invoke(
        train.main, ["--set", "model.name=timm/test_vit", "--show-config", "--no-machine-config"]
    )
    assert shown.exit_code == 0
    assert "\nmean = [127.5, 127.5, 127.5]\n" in shown.stdout
    assert "\nimage_size = 32\n" in shown.stdout  # the demo's


# Weights


def saved(kind: str, net: nn.Module, folder: Path) -> Path:
    """A weights file like those of timm's train.py and its hub."""
    path = folder / ("model.safetensors" if kind == "hub" else "model_best.pth.tar")
    state = net.state_dict()
    if kind == "hub":
        save_file(state, path, {"format": "pt"})
    else:
        torch.save({"epoch": 3, "arch": "test", "state_dict": state, "version": 2, "metric": 0.5}, path)
    return path


@pytest.mark.parametrize(("name", "kind"), [("test_resnet", "hub"), ("test_vit", "train.py"), ("levit_128s", "hub")])
def test_a_file_of_timms_is_read(name: str, kind: str, tmp_path: Path) -> None:
    donor = timm.create_model(name, num_classes=7)
    path = str(saved(kind, donor, tmp_path))
    net = build(name)
    said = load_pretrained(net, ModelConfig(name=f"timm/{name}", pretrained=path))
    assert_same(net, donor)
    assert said.startswith(f"pretrained weights: {path}")
    other = build(name, 5)
    fresh = {key: tensor.clone() for key, tensor in other.state_dict().items()}
    said = load_pretrained(other, ModelConfig(name=f"timm/{name}", pretrained=path))
    heads = list(heads_of(other).values())
    for head in heads:
        assert f"{head} is reinitialised, 7 → 5 classes" in said
    for key, tensor in other.state_dict().items():
        is_head = any(key.startswith(f"{head}.") for head in heads)
        assert torch.equal(tensor, fresh[key] if is_head else donor.state_dict()[key]), key


def test_positions_are_resampled_for_another_size(tmp_path: Path) -> None:
    donor = timm.create_model("test_vit", num_classes=7)
    path = saved("hub", donor, tmp_path)
    overlay = {"file": str(path), "num_classes": 7}
    oracle = timm.create_model("test_vit", num_classes=7, img_size=96, pretrained=True, pretrained_cfg_overlay=overlay)
    net = build("test_vit", 7, 96)
    load_pretrained(net, ModelConfig(name="timm/test_vit", pretrained=str(path)))
    assert_same(net, oracle)
    with pytest.raises(ValueError, match="not weights of this timm/test_resnet"):
        load_pretrained(build("test_resnet"), ModelConfig(name="timm/test_resnet", pretrained=str(path)))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, nn.Module]:
    """The hub's answer for each of its repositories, in place of the network."""
    answers: dict[str, nn.Module] = {}

    def load(repository: str, *_: object, **__: object) -> dict[str, Tensor]:
        return dict(answers[repository].state_dict())

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", load)
    monkeypatch.setattr("penstock.model.timm_networks._require_hub", lambda *_: None)
    return answers


@pytest.mark.parametrize("tag", ["DEFAULT", "r160_in1k", "test_resnet.r160_in1k", "timm/test_resnet.r160_in1k"])
def test_weights_of_the_hub_have_imagenets_classes(hub: dict[str, nn.Module], tag: str) -> None:
    donor = hub["timm/test_resnet.r160_in1k"] = timm.create_model("test_resnet")
    imagenet = [ClassInfo(*item) for item in imagenet_classes().items()]
    config = ModelConfig(name="timm/test_resnet", pretrained=tag)
    recipe = Recipe(model=config)
    world = World(rank=0, world_size=1, local_rank=0, local_world_size=1, device=torch.device("cpu"))
    said: list[str] = []
    net = build_learner(recipe, 1000, world, said.append, imagenet).net
    assert_same(net, donor)
    assert said[0].startswith("pretrained weights: timm/test_resnet.r160_in1k")
    some = [imagenet[label] for label in (7, 3)]
    net = build_learner(recipe, 2, world, said.append, some).net
    assert torch.equal(net.fc.weight, donor.fc.weight[[7, 3]])
    assert "fc keeps the rows of the dataset's classes, 2 of 1000" in said[1]
    net = build_learner(recipe, 2, world, said.append, [ClassInfo("cat", "cat"), ClassInfo("dog", "dog")]).net
    assert "fc is reinitialised, 1000 → 2 classes, none in common" in said[2]
    assert torch.equal(net.conv1[0].weight, donor.conv1[0].weight)


def test_classes_of_published_weights() -> None:
    weights = published_weights(ModelConfig(name="timm/convnext_tiny"))
    names = classes_of(weights["fb_in1k"])
    assert names is not None
    assert [key for key, _ in names] == list(imagenet_classes())
    wide = classes_of(weights["fb_in22k"])
    assert wide is not None
    assert len(wide) == weights["fb_in22k"].num_classes


@pytest.mark.parametrize(
    ("name", "pretrained", "message"),
    [
        (
            "test_resnet",
            "a9_in1k",
            r"neither a file nor one of timm's weights of timm/test_resnet \(DEFAULT, r160_in1k\)",
        ),
        ("test_coatnet", "DEFAULT", "no such file; timm publishes no weights of timm/test_coatnet"),
        (
            "test_resnet",
            "DEFAULT",
            r"DEFAULT: download failed \(.*refused.*download https://huggingface.co/timm/test_resnet.r160_in1k/",
        ),
    ],
)
def test_weights_that_cannot_be_had(
    name: str, pretrained: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # where nothing answers
    with pytest.raises(ValueError, match=message) as refused:
        read_weights(ModelConfig(name=f"timm/{name}", pretrained=pretrained))
    assert re.fullmatch(r"[^\n]+", str(refused.value))
