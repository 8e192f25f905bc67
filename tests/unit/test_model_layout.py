"""Channels-last from the images to the last gradient, checked operator by operator beneath autograd."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from penstock.model.config import ModelConfig
from penstock.model.layout import GlobalAvgPool2d
from penstock.model.networks import build_model

CUDA = pytest.param(
    "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
)


class LayoutWatch(TorchDispatchMode):
    """Collects each operator that reads or writes a 4-D tensor whose channels are not innermost in memory.

    Views write nothing and are passed over; an expanded tensor has no memory order, and none shows where there is a
    single channel or pixel.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.num_watched = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.is_view:
            return out
        for role, values in (("reads", (args, kwargs)), ("writes", out)):
            for tensor in tree_leaves(values):
                if isinstance(tensor, Tensor) and has_a_layout(tensor):
                    self.num_watched += 1
                    if not tensor.is_contiguous(memory_format=torch.channels_last):
                        self.found.append(f"{func} {role} {tuple(tensor.shape)} with strides {tensor.stride()}")
        return out


def has_a_layout(tensor: Tensor) -> bool:
    return tensor.ndim == 4 and tensor.shape[1] > 1 and tensor.shape[2:].numel() > 1 and 0 not in tensor.stride()


def train_step(net: nn.Module, size: int, device: str = "cpu", dtype: torch.dtype | None = None) -> LayoutWatch:
    """Two forwards and backwards: the first stores the gradients, the second adds to them."""
    net = net.to(device).train()
    images = torch.randn(2, 3, size, size, device=device).to(memory_format=torch.channels_last)
    with LayoutWatch() as watching:
        for _ in range(2):
            with torch.autocast(device, dtype=dtype, enabled=dtype is not None):
                loss = net(images).float().square().sum()
            loss.backward()
    assert all(p.grad is not None and p.grad.stride() == p.stride() for p in net.parameters())
    return watching


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("options", [{}, {"blurpool": True, "stochastic_depth": 0.1}], ids=["plain", "blurpool"])
def test_resnet50_converts_nothing(options: dict, dtype: torch.dtype | None, device: str) -> None:
    watching = train_step(build_model(ModelConfig(name="resnet50", **options), 5), 64, device, dtype)
    assert watching.found == []
    assert watching.num_watched > 1500  # 4-D tensors: about 150 operators forward, as many backward, twice


@pytest.mark.parametrize("name", ["cifar_resnet8", "mobilenet_v3_small", "regnet_x_400mf"])
def test_other_networks_convert_nothing(name: str) -> None:
    assert train_step(build_model(ModelConfig(name=name), 5), 32).found == []


def to_nchw(net: nn.Module) -> None:
    """One convolution with its weights in NCHW: its outputs stay NHWC, but the weights are converted at each step."""
    conv = net.get_submodule("layer3.1.conv2")
    conv.weight.data = conv.weight.data.contiguous()


def reorder_activations(net: nn.Module) -> None:
    net.get_submodule("layer2").register_forward_hook(lambda module, inputs, output: output.contiguous())


def reorder_gradients(net: nn.Module) -> None:
    def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        output.register_hook(lambda gradient: gradient.contiguous())

    net.get_submodule("layer1").register_forward_hook(hook)


def torchvisions_pooling(net: nn.Module) -> None:
    net.avgpool = nn.AdaptiveAvgPool2d(1)


@pytest.mark.parametrize("spoil", [to_nchw, reorder_activations, reorder_gradients, torchvisions_pooling])
def test_one_layer_that_leaves_channels_last_is_found(spoil: Any) -> None:
    net = build_model(ModelConfig(name="resnet18"), 5)
    spoil(net)
    assert train_step(net, 64).found


def test_a_network_without_channels_last_is_left_alone() -> None:
    net = build_model(ModelConfig(name="resnet18", channels_last=False), 5)
    with LayoutWatch() as watching:
        net(torch.randn(2, 3, 64, 64)).sum().backward()
    assert len(watching.found) == watching.num_watched
    assert not any(isinstance(module, GlobalAvgPool2d) for module in net.modules())


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_global_average_pooling_is_torchs(memory_format: torch.memory_format) -> None:
    x = torch.randn(3, 5, 4, 7).to(memory_format=memory_format).requires_grad_()
    ours, theirs = GlobalAvgPool2d()(x), nn.AdaptiveAvgPool2d(1)(x)
    torch.testing.assert_close(ours, theirs)
    weight = torch.randn(3, 5, 1, 1)
    gradients = [torch.autograd.grad((pooled * weight).sum(), x)[0] for pooled in (ours, theirs)]
    torch.testing.assert_close(*gradients)
