"""BlurPool compared with the paper's blur, and stochastic depth with its probabilities."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from penstock.model.blurpool import BlurPoolConv2d
from penstock.model.config import ModelConfig
from penstock.model.networks import build_model


def build(name: str, **options: Any) -> nn.Module:
    return build_model(ModelConfig(name=name, zero_init_residual=False, **options), 7)


def blurred(x: Tensor) -> Tensor:
    """Each channel convolved with the binomial filter, zeros beyond the border (Zhang 2019, section 3.3)."""
    padded = np.pad(x.detach().double().numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)))
    rows = (padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]) / 4
    both = (rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]) / 4
    return torch.from_numpy(both).float()


@pytest.mark.parametrize("size", [8, 9])
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "stride": 2, "padding": 1, "bias": False},
        {"kernel_size": 1, "stride": 2, "bias": False},
        {"kernel_size": 1, "stride": 2, "padding": 1},
        {"kernel_size": 3, "stride": (2, 1), "padding": 1, "dilation": 2, "groups": 4},
    ],
    ids=["3x3", "1x1", "padded_1x1", "grouped"],
)
def test_a_blurred_convolution_is_the_convolution_of_the_blurred(options: dict, size: int) -> None:
    conv = nn.Conv2d(16, 8, **options)
    x = torch.randn(2, 16, size, size)
    torch.testing.assert_close(BlurPoolConv2d(conv)(x), conv(blurred(x)), rtol=1e-5, atol=1e-5)


def test_resnet50_blurs_what_the_ffcv_recipes_blur() -> None:
    """Three strided 3×3 convolutions and their three shortcuts; not the stem, which has 3 channels."""
    net = build("resnet50", blurpool=True)
    found = [name for name, module in net.named_modules() if isinstance(module, BlurPoolConv2d)]
    assert found == [f"layer{n}.0.{conv}" for n in (2, 3, 4) for conv in ("conv2", "downsample.0")]
    assert net.conv1.stride == (2, 2)


@pytest.mark.parametrize("name", ["resnet18", "cifar_resnet8", "mobilenet_v2", "inception_v3"])
def test_blurring_changes_no_parameter(name: str) -> None:
    with torch.device("meta"):
        plain, blurring = build(name), build(name, blurpool=True)
    assert list(plain.state_dict()) == list(blurring.state_dict())
    assert [name for name, _ in plain.named_parameters()] == [name for name, _ in blurring.named_parameters()]


def test_a_blurring_network_is_its_twin_with_blurred_inputs() -> None:
    torch.manual_seed(0)
    plain = build("resnet18").eval()
    blurring = build("resnet18", blurpool=True).eval()
    blurring.load_state_dict(plain.state_dict())
    for module in plain.modules():
        if isinstance(module, nn.Conv2d) and module.stride == (2, 2) and module.in_channels >= 16:
            module.register_forward_pre_hook(lambda module, inputs: (blurred(inputs[0]),))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(blurring(images), plain(images), rtol=1e-4, atol=1e-4)


def test_the_filter_moves_and_copies_with_the_network_but_is_not_saved() -> None:
    conv = BlurPoolConv2d(nn.Conv2d(16, 8, 3, 2))
    assert not conv.blur_filter.requires_grad
    assert list(conv.state_dict()) == ["weight", "bias"]
    assert copy.deepcopy(conv).double().blur_filter.dtype == torch.float64


@pytest.mark.parametrize(("name", "num_blocks"), [("resnet18", 8), ("resnet50", 16)])
def test_resnets_drop_more_with_depth(name: str, num_blocks: int) -> None:
    """Huang et al. 2016, equation (4): block l of L is dropped with probability p · l / L."""
    with torch.device("meta"):
        net, plain = build(name, stochastic_depth=0.4), build(name)
    found = [module.p for module in net.modules() if isinstance(module, StochasticDepth)]
    np.testing.assert_allclose(found, [0.4 * number / num_blocks for number in range(1, num_blocks + 1)])
    assert list(net.state_dict()) == list(plain.state_dict())


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_stochastic_depth_changes_nothing_in_evaluation(name: str) -> None:
    plain, stochastic = build(name).eval(), build(name, stochastic_depth=0.5).eval()
    stochastic.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 33, 33)
    with torch.no_grad():
        torch.testing.assert_close(stochastic(images), plain(images))


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_each_sample_keeps_its_residual_branch_or_its_shortcut_alone(name: str) -> None:
    torch.manual_seed(0)
    probability, num_samples = 0.75, 400
    block = build(name, stochastic_depth=probability).layer4[-1].eval()
    block.stochastic_depth.train()  # alone: BatchNorm's statistics would join the samples
    x = torch.randn(1, block.conv1.in_channels, 3, 3).relu()
    with torch.no_grad():
        branch = block.bn2(block.conv2(block.relu(block.bn1(block.conv1(x)))))
        if name == "resnet50":
            branch = block.bn3(block.conv3(block.relu(branch)))
        kept = (x + branch / (1 - probability)).relu()
        out = block(x.expand(num_samples, -1, -1, -1))
    is_kept = torch.tensor([torch.allclose(y, kept[0], rtol=1e-4, atol=1e-4) for y in out])
    is_dropped = torch.tensor([torch.equal(y, x[0]) for y in out])
    assert bool((is_kept ^ is_dropped).all())
    assert is_dropped.float().mean().item() == pytest.approx(probability, abs=0.09)  # 4 standard deviations


@pytest.mark.parametrize("name", ["convnext_tiny", "efficientnet_b0", "swin_t", "swin_v2_t", "maxvit_t"])
@pytest.mark.parametrize("probability", [0.0, 0.37])
def test_other_networks_keep_their_shape_of_the_probabilities(name: str, probability: float) -> None:
    """They are linear in the last one: from torchvision's default to the one asked for, each in proportion."""
    with torch.device("meta"):
        net, published = build(name, stochastic_depth=probability), torchvision.models.get_model(name, weights=None)
    ours, theirs = (
        np.array([module.p for module in model.modules() if isinstance(module, StochasticDepth)])
        for model in (net, published)
    )
    default = 0.1 if name == "convnext_tiny" else 0.2  # torchvision's documentation
    np.testing.assert_allclose(ours, theirs * probability / default, rtol=1e-6)
    assert len(ours) > 10
