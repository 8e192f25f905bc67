"""Networks: torchvision is the oracle for the state dict and the outputs, the paper for the CIFAR ResNets."""

import inspect

import pytest
import torch
import torchvision
from torch import nn

from model.cifar_resnet import CIFAR_RESNETS, BasicBlock
from model.networks import ModelConfig, build_model, list_networks

# A RegNet copies a number out of a tensor when it is built, which the meta device refuses; one is tested for real.
ON_META = [name for name in list_networks() if not name.startswith("regnet")]


@pytest.mark.parametrize("name", ON_META)
def test_every_network_builds_with_its_head(name: str) -> None:
    with torch.device("meta"):
        *_, head = build_model(name, 7).parameters()
    assert head.shape[0] == 7


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "regnet_x_400mf"])
def test_state_dict_and_outputs_are_torchvisions(name: str) -> None:
    torch.manual_seed(0)
    oracle = torchvision.models.get_model(name, weights=None, num_classes=7).eval()
    torch.manual_seed(1)
    model = build_model(name, 7).eval()
    model.load_state_dict(oracle.state_dict(), strict=True)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(images), oracle(images), rtol=1e-4, atol=1e-4)
    oracle.load_state_dict(model.state_dict(), strict=True)


@pytest.mark.parametrize(("name", "size"), [("googlenet", 64), ("inception_v3", 75)])
def test_networks_with_auxiliary_heads_answer_one_tensor_in_training(name: str, size: int) -> None:
    with torch.device("meta"):
        logits = build_model(name, 3).train()(torch.randn(2, 3, size, size))
    assert isinstance(logits, torch.Tensor)
    assert logits.shape == (2, 3)


@pytest.mark.parametrize("channels_last", [True, False])
def test_channels_last(channels_last: bool) -> None:
    weight = build_model("resnet18", 2, channels_last=channels_last).get_parameter("layer1.0.conv1.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last) == channels_last


@pytest.mark.parametrize(
    ("name", "last_norm", "setting", "is_zero"),
    [
        ("resnet50", "layer3.0.bn3", None, True),
        ("resnet18", "layer1.1.bn2", True, True),
        ("resnet18", "layer1.1.bn2", False, False),
        ("cifar_resnet14", "layer2.1.bn2", None, True),
        ("cifar_resnet14", "layer2.1.bn2", False, False),
    ],
)
def test_zero_init_residual(name: str, last_norm: str, setting: bool | None, is_zero: bool) -> None:
    weight = build_model(name, 10, zero_init_residual=setting).get_parameter(f"{last_norm}.weight")
    assert bool((weight == 0).all()) == is_zero


def test_small_stem_keeps_the_resolution() -> None:
    model = build_model("resnet18", 10, stem="small").eval()
    sizes: list[torch.Size] = []
    model.layer1.register_forward_pre_hook(lambda module, inputs: sizes.append(inputs[0].shape))
    model(torch.randn(1, 3, 32, 32))
    assert sizes == [(1, 64, 32, 32)]
    # As torchvision initialises its stem: fan-out is 64 · 3 · 3.
    assert model.conv1.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.1)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet5O", {}, "did you mean .*resnet50"),
        ("cifar_resnet22", {}, "did you mean .*cifar_resnet20"),
        ("qqq", {}, "list_networks"),
        ("vgg16", {"stem": "small"}, "vgg16 has no small stem"),
        ("cifar_resnet20", {"stem": "small"}, "no small stem"),
        ("resnet18", {"stem": "tiny"}, "unknown stem 'tiny'"),
        ("vgg16", {"zero_init_residual": True}, "vgg16 has no zero_init_residual"),
    ],
)
def test_options_that_a_network_does_not_have_are_errors(name: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_model(name, 10, **options)


def test_at_least_one_class() -> None:
    with pytest.raises(ValueError, match="at least 1 class"):
        build_model("resnet18", 0)


def test_config_has_the_builders_defaults() -> None:
    defaults = {name: p.default for name, p in inspect.signature(build_model).parameters.items()}
    config = vars(ModelConfig())
    assert {name: config[name] for name in ("stem", "zero_init_residual", "channels_last")}.items() <= defaults.items()


# He et al. 2015, table 6: millions of parameters with 10 classes.
@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85)])
def test_cifar_resnets_have_the_papers_size(depth: int, millions: float) -> None:
    model = build_model(f"cifar_resnet{depth}", 10)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == millions


@pytest.mark.parametrize("name", CIFAR_RESNETS)
def test_cifar_resnets_have_as_many_layers_as_their_name_says(name: str) -> None:
    layers = [m for m in build_model(name, 10).modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert name == f"cifar_resnet{len(layers)}"


@pytest.mark.parametrize("size", [16, 17, 32, 64])
def test_cifar_resnets_take_any_size(size: int) -> None:
    assert build_model("cifar_resnet8", 4)(torch.randn(2, 3, size, size)).shape == (2, 4)


def test_cifar_shortcut_is_option_a() -> None:
    """With the residual branch at zero a block subsamples and appends zero channels, and nothing else."""
    block = BasicBlock(16, 32, stride=2).eval()
    nn.init.zeros_(block.bn2.weight)
    x = torch.rand(2, 16, 5, 5)
    out = block(x)
    torch.testing.assert_close(out[:, :16], x[:, :, [0, 2, 4]][:, :, :, [0, 2, 4]])
    assert out.shape == (2, 32, 3, 3)
    assert not out[:, 16:].any()


def test_cifar_resnet_never_leaves_channels_last() -> None:
    model = build_model("cifar_resnet14", 10)
    broken: list[str] = []

    def check(name: str, output: torch.Tensor) -> None:
        if output.ndim == 4 and not output.is_contiguous(memory_format=torch.channels_last):
            broken.append(name)

    for name, module in model.named_modules():
        module.register_forward_hook(lambda module, inputs, output, name=name: check(name, output))
    model(torch.randn(4, 3, 32, 32).to(memory_format=torch.channels_last))
    assert broken == []
