"""Networks: state dict and outputs compared with torchvision, CIFAR ResNets with the paper."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torchvision
from torch import Tensor, nn

from penstock.model import networks
from penstock.model.airbench import COLOURS, LEAST_VARIANCE, PIXELS, whitening_filters
from penstock.model.cifar_resnet import CIFAR_RESNETS, BasicBlock
from penstock.model.config import ModelConfig
from penstock.model.networks import AUXILIARY_HEADS, OWN_NETWORKS, build_model, list_networks

TORCHVISION = [name for name in list_networks() if name not in OWN_NETWORKS]


def build(name: str, num_classes: int = 7, **options: Any) -> nn.Module:
    return build_model(ModelConfig(name=name, **options), num_classes)


@contextmanager
def weightless() -> Iterator[None]:
    """Networks built in here have their parameters on the meta device, which has no memory, and do not initialise them.

    Not `with torch.device("meta")`, under which a RegNet cannot compute its own widths.
    """
    register = nn.Module.register_parameter
    slow = ("normal_", "uniform_", "trunc_normal_", "kaiming_normal_", "kaiming_uniform_", "xavier_uniform_")

    def register_on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(module, name, None if parameter is None else nn.Parameter(parameter.detach().to("meta")))

    no_init = dict.fromkeys(slow, lambda tensor, *args, **kwargs: tensor)
    with patch.object(nn.Module, "register_parameter", register_on_meta), patch.multiple(nn.init, **no_init):
        yield


def test_all_of_torchvisions_classification_networks_are_there() -> None:
    published = {name for name in torchvision.models.list_models() if "/" not in name}
    segmentation_and_so_on = ("quantized", "fcn", "deeplab", "lraspp", "rcnn", "ssd", "fcos", "retinanet", "raft")
    video = ("mc3_", "mvit_", "r2plus1d", "r3d", "s3d", "swin3d")
    other = (*segmentation_and_so_on, *video)
    assert set(TORCHVISION) == {name for name in published if not any(part in name for part in other)}
    assert len(TORCHVISION) >= 80


@pytest.mark.parametrize("name", TORCHVISION)
def test_every_network_has_torchvisions_parameters_and_a_head_of_its_classes(name: str) -> None:
    aux = {"aux_logits": True} if name in AUXILIARY_HEADS else {}
    with weightless():
        net = build(name, 7, **aux)
        oracle = torchvision.models.get_model(name, weights=None, num_classes=7, **aux)
    expected = {key: (tensor.shape, tensor.dtype) for key, tensor in oracle.state_dict().items()}
    assert {key: (tensor.shape, tensor.dtype) for key, tensor in net.state_dict().items()} == expected
    *_, head = net.parameters()
    assert head.shape[0] == 7


# name, image size
SMALL = [
    ("convnext_tiny", 32), ("densenet121", 32), ("efficientnet_b0", 32), ("mnasnet0_5", 32), ("mobilenet_v2", 32),
    ("mobilenet_v3_small", 32), ("regnet_y_400mf", 32), ("resnet18", 33), ("resnext50_32x4d", 32),
    ("shufflenet_v2_x0_5", 32), ("squeezenet1_1", 33), ("swin_t", 32),
]  # fmt: skip
LARGE = [("alexnet", 64), ("maxvit_t", 224), ("swin_v2_t", 32), ("vgg11_bn", 32), ("vit_b_32", 224)]


@pytest.mark.parametrize(("name", "size"), SMALL)
def test_outputs_and_gradients_are_torchvisions(name: str, size: int) -> None:
    torch.manual_seed(0)
    oracle = torchvision.models.get_model(name, weights=None, num_classes=7).eval()
    with weightless():
        net = build(name).eval()
    net = net.to_empty(device="cpu")
    net.load_state_dict(oracle.state_dict(), strict=True)
    images = torch.randn(2, 3, size, size, requires_grad=True)
    ours, theirs = net(images), oracle(images)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    weight = torch.randn(2, 7)
    [mine] = torch.autograd.grad((ours * weight).sum(), images)
    [other] = torch.autograd.grad((theirs * weight).sum(), images)
    torch.testing.assert_close(mine, other, rtol=1e-2, atol=1e-2 * other.abs().max().item())


@pytest.mark.parametrize(("name", "size"), LARGE)
def test_large_networks_run_forward_and_backward(name: str, size: int) -> None:
    with torch.device("meta"):
        net = build(name).train()
        logits = net(torch.randn(2, 3, size, size))
        logits.sum().backward()
    assert logits.shape == (2, 7)
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize(("name", "size", "num_outputs"), [("googlenet", 64, 3), ("inception_v3", 299, 2)])
@pytest.mark.parametrize("aux_logits", [False, True])
def test_auxiliary_heads_answer_in_training_only(name: str, size: int, num_outputs: int, aux_logits: bool) -> None:
    images = torch.randn(2, 3, size, size, device="meta")
    with torch.device("meta"):
        net = build(name, 3, aux_logits=aux_logits)
        trained, evaluated = net.train()(images), net.eval()(images)
    assert isinstance(evaluated, Tensor)
    assert evaluated.shape == (2, 3)
    outputs = list(trained) if aux_logits else [trained]
    assert [logits.shape for logits in outputs] == [(2, 3)] * (num_outputs if aux_logits else 1)


@pytest.mark.parametrize("name", AUXILIARY_HEADS)
def test_networks_from_tensorflow_bring_imagenets_range_to_theirs(name: str) -> None:
    """torchvision's published weights of the two expect pixels in [−1, 1]. All other code feeds normalised pixels."""
    with torch.device("meta"):
        net = build(name)
    pixels = torch.rand(2, 3, 5, 5)
    mean, std = ([[[0.485]], [[0.456]], [[0.406]]], [[[0.229]], [[0.224]], [[0.225]]])
    normalised = (pixels - torch.tensor(mean)) / torch.tensor(std)
    torch.testing.assert_close(net._transform_input(normalised), pixels * 2 - 1)


@pytest.mark.parametrize("channels_last", [True, False])
def test_channels_last(channels_last: bool) -> None:
    weight = build("resnet18", 2, channels_last=channels_last).get_parameter("layer1.0.conv1.weight")
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
    weight = build(name, zero_init_residual=setting).get_parameter(f"{last_norm}.weight")
    assert bool((weight == 0).all()) == is_zero


def test_small_stem_keeps_the_resolution() -> None:
    model = build("resnet18", stem="small").eval()
    sizes: list[torch.Size] = []
    model.layer1.register_forward_pre_hook(lambda module, inputs: sizes.append(inputs[0].shape))
    model(torch.randn(1, 3, 32, 32))
    assert sizes == [(1, 64, 32, 32)]
    # As torchvision initialises its stem: fan-out is 64 · 3 · 3.
    assert model.conv1.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.1)


HAVE_DROPOUT = ("alexnet", "efficientnet_b0", "googlenet", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small",
                "squeezenet1_1", "swin_t", "vgg11", "vit_b_32")  # fmt: skip


@pytest.mark.parametrize("name", HAVE_DROPOUT)
def test_dropout_reaches_every_network_that_has_it(name: str) -> None:
    with torch.device("meta"):
        net = build(name, dropout=0.123)
    found = {(key, module.p) for key, module in net.named_modules() if isinstance(module, nn.Dropout)}
    head = max(key for key, _ in found if key.startswith(("classifier", "dropout", "encoder", "features")))
    assert (head, 0.123) in found


def test_densenets_dropout_is_its_drop_rate() -> None:
    with torch.device("meta"):
        net = build("densenet121", dropout=0.25)
    assert {layer.drop_rate for layer in net.modules() if hasattr(layer, "drop_rate")} == {0.25}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet5O", {}, "did you mean .*resnet50"),
        ("cifar_resnet22", {}, "did you mean .*cifar_resnet20"),
        ("qqq", {}, "list_models"),
        ("vgg16", {"stem": "small"}, "vgg16 has no stem = small"),
        ("cifar_resnet20", {"stem": "small"}, "cifar_resnet20 has no stem = small"),
        ("squeezenet1_1", {"zero_init_residual": True}, "has no zero_init_residual"),
        ("squeezenet1_1", {"aux_logits": True}, "has no aux_logits"),
        ("cifar_resnet20", {"aux_logits": True}, "has no aux_logits"),
        ("resnet18", {"dropout": 0.1}, "resnet18 has no dropout"),
        ("cifar_resnet20", {"dropout": 0.1}, "cifar_resnet20 has no dropout"),
        ("squeezenet1_1", {"stochastic_depth": 0.1}, "squeezenet1_1 has no stochastic_depth"),
        ("cifar_resnet20", {"stochastic_depth": 0.1}, "cifar_resnet20 has no stochastic_depth"),
        ("squeezenet1_1", {"blurpool": True}, "squeezenet1_1 has no blurpool: .*16 channels"),
    ],
)
def test_options_that_a_network_does_not_have_are_errors(name: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        build(name, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dropout": 1.0}, r"dropout: 1.0 must be in \[0, 1\)"),
        ({"stochastic_depth": -0.1}, "stochastic_depth: -0.1"),
        ({"compile_mode": "reduce-overhead"}, "reduce-overhead has no effect without compile = true"),
    ],
)
def test_settings_that_cannot_be_are_errors(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig(**options)
    assert ModelConfig(compile=True, compile_mode="reduce-overhead").compile_mode == "reduce-overhead"


def test_at_least_one_class() -> None:
    with pytest.raises(ValueError, match="at least 1 class"):
        build("resnet18", 0)


def test_own_networks_get_the_options_their_factory_has(monkeypatch: pytest.MonkeyPatch) -> None:
    def plain(num_classes: int) -> nn.Module:
        return nn.Linear(3, num_classes)

    def regularised(num_classes: int, *, dropout: float = 0.1, stochastic_depth: float = 0.2) -> nn.Module:
        return nn.Sequential(nn.Dropout(dropout), nn.Dropout(stochastic_depth), nn.Linear(3, num_classes))

    monkeypatch.setitem(networks.OWN_NETWORKS, "plain", plain)
    monkeypatch.setitem(networks.OWN_NETWORKS, "regularised", regularised)
    assert build("plain", 4).weight.shape == (4, 3)
    with pytest.raises(ValueError, match="plain has no zero_init_residual"):
        build("plain", zero_init_residual=True)
    assert [layer.p for layer in build("regularised")[:2]] == [0.1, 0.2]
    assert [layer.p for layer in build("regularised", dropout=0.0, stochastic_depth=0.5)[:2]] == [0.0, 0.5]


# He et al. 2015, table 6: millions of parameters with 10 classes.
@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85)])
def test_cifar_resnets_have_the_papers_size(depth: int, millions: float) -> None:
    model = build(f"cifar_resnet{depth}", 10)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == millions


@pytest.mark.parametrize("name", CIFAR_RESNETS)
def test_cifar_resnets_have_as_many_layers_as_their_name_says(name: str) -> None:
    layers = [m for m in build(name).modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert name == f"cifar_resnet{len(layers)}"


@pytest.mark.parametrize("size", [16, 17, 32, 64])
def test_cifar_resnets_take_any_size(size: int) -> None:
    assert build("cifar_resnet8", 4)(torch.randn(2, 3, size, size)).shape == (2, 4)


def test_cifar_shortcut_is_option_a() -> None:
    """With the residual branch at zero a block subsamples and appends zero channels, and nothing else."""
    block = BasicBlock(16, 32, stride=2).eval()
    nn.init.zeros_(block.bn2.weight)
    x = torch.rand(2, 16, 5, 5)
    out = block(x)
    torch.testing.assert_close(out[:, :16], x[:, :, [0, 2, 4]][:, :, :, [0, 2, 4]])
    assert out.shape == (2, 32, 3, 3)
    assert not out[:, 16:].any()


def test_airbench94_has_the_papers_size_and_its_whitening_whitens() -> None:
    net = build("airbench94", 10)
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) / 1e6 == pytest.approx(1.97, abs=0.01)
    filters = whitening_filters().reshape(12, 12).double()
    colours, pixels = (torch.tensor(c, dtype=torch.float64) for c in (COLOURS, PIXELS))
    patches = torch.kron(colours, torch.kron(pixels, pixels))  # covariance; rows and columns as in (3, 2, 2)
    white = filters @ patches @ filters.T
    assert (white - white.diag().diag()).abs().max() < 1e-4
    faint = torch.linalg.eigvalsh(patches)
    assert white.diag().sort().values.tolist() == pytest.approx((faint / (faint + LEAST_VARIANCE)).tolist(), abs=1e-4)
    assert torch.equal(net.whiten.weight[12:], -net.whiten.weight[:12])


@pytest.mark.parametrize("side", [16, 24, 32, 33])
def test_airbench94_takes_small_images_and_trains_all_but_the_whitening_and_the_norms_scales(side: int) -> None:
    net = build("airbench94", 5)
    logits = net(torch.randn(4, 3, side, side))
    assert logits.shape == (4, 5)
    logits.square().sum().backward()
    frozen = [name for name, parameter in net.named_parameters() if not parameter.requires_grad]
    assert frozen == ["whiten.weight", *(f"blocks.{b}.{i}.weight" for b in (1, 2, 3) for i in (2, 5))]
    assert all(p.grad.abs().sum() > 0 for p in net.parameters() if p.requires_grad)


def test_airbenchs_convolutions_hand_their_input_on_at_first() -> None:
    conv = build("airbench94").blocks[2][0]
    x = torch.randn(2, 64, 6, 6)
    assert torch.allclose(conv(x)[:, :64], x, atol=1e-6)
    assert conv(x)[:, 64:].std() > 0.1
