"""What a training step asks of the device: floating-point operations and bytes of activations an image, by counting.

The network runs forward and backward on torch's meta device, where tensors have shapes and no contents, and every
operator that torch dispatches is counted: FLOPs by torch's own counter (a multiply-add is two), bytes from the sizes of
the tensors that operators read and write. Parameters count nothing: a batch reads them once.

Bytes are given for three levels of fusion:

    eager   every operator reads its inputs and writes its outputs. A norm reads its input twice, for the statistics and
            to apply them, and so it does backwards with both of its inputs; a convolution's backward is two kernels,
            which both read the gradient.
    fused   activations, their backward and residual additions ride on the norms' kernels: of them only the residual's
            read remains, and the sum of gradients where branches part. Pooling counts as in eager.
    ideal   norms ride on the convolutions too, but for their backward, which needs the whole batch's sums before it
            can write: it reads its two inputs and writes one output once.

For ResNet-50 at 224 px in 2-byte activations the published figures are 475, 353 and 197 MB an image. Networks that are
not mostly convolutions (by FLOPs) get no bytes: theirs lie in attention and in matrices of tokens.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from model.config import ModelConfig
from model.networks import build_model

BATCH = 5  # told apart from parameters by it: no weight of a network has 5 as its first size
MATMULS = ("convolution", "mm", "bmm", "addmm", "baddbmm", "_scaled_dot_product")
NORMS = ("native_batch_norm", "cudnn_batch_norm", "native_layer_norm", "native_group_norm")
POOLS = ("max_pool2d", "avg_pool2d", "_adaptive_avg_pool2d", "mean")
ADDS = ("add", "add_")


class Network(NamedTuple):
    """Of one training step, an image: FLOPs, and tensor elements that are read or written at each level of fusion (none
    for a network that is not convolutional).

    own_size: the only image size that the network takes, in pixels; None where it takes any.
    """

    name: str
    image_size: int
    flops: float
    forward_flops: float
    elements: dict[str, float]
    num_params: int
    own_size: int | None

    def image_bytes(self, level: str, dtype: torch.dtype) -> float:
        return self.elements[level] * dtype.itemsize


class _Traffic(TorchDispatchMode):
    """Counts the elements, an image, that operators read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = {"eager": 0.0, "fused": 0.0, "ideal": 0.0}
        self.backward = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        inputs, outputs = _tensors((args, kwargs)), _tensors(out)
        storages = {one.untyped_storage()._cdata for one in inputs}
        is_view = all(one.untyped_storage()._cdata in storages for one in outputs) and not func._schema.is_mutable
        if not is_view:
            self._count(func.__name__.partition(".")[0], _sizes(inputs), _sizes(outputs))
        return out

    def _count(self, name: str, inputs: list[float], outputs: list[float]) -> None:
        once = sum(inputs) + sum(outputs)
        if name.startswith(MATMULS):
            again = inputs[0] if name == "convolution_backward" and outputs else 0.0  # none before the first layer
            eager = fused = ideal = once + again
        elif name.startswith(NORMS):
            eager = fused = once + sum(inputs)
            ideal = once if self.backward else 0.0
        elif name in ADDS:
            eager, fused, ideal = once, once if self.backward else max(inputs, default=0.0), 0.0
        else:
            eager, fused, ideal = once, once if name.startswith(POOLS) else 0.0, 0.0
        for level, count in (("eager", eager), ("fused", fused), ("ideal", ideal)):
            self.elements[level] += count


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _sizes(tensors: list[Tensor]) -> list[float]:
    """Elements an image of those tensors that have a row for each."""
    return [one.numel() / BATCH for one in tensors if one.dim() > 1 and one.shape[0] == BATCH]


def count(config: ModelConfig, num_classes: int, image_size: int) -> Network:
    """Count one training step of the network that `config` names."""
    net = _on_meta(config, num_classes)
    traffic = _Traffic()
    with FlopCounterMode(display=False) as flops, traffic:
        total = _total(net(torch.empty(BATCH, 3, image_size, image_size, device="meta")))
        forward = flops.get_total_flops()
        traffic.backward = True
        total.backward()
    return Network(
        name=config.name,
        image_size=image_size,
        flops=flops.get_total_flops() / BATCH,
        forward_flops=forward / BATCH,
        elements=traffic.elements if _is_convolutional(flops) else {},
        num_params=sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad),
        own_size=getattr(net, "image_size", None),
    )


def forward_flops(config: ModelConfig, num_classes: int, image_size: int) -> float:
    """FLOPs an image of the forward pass alone."""
    net = _on_meta(config, num_classes)
    with torch.no_grad(), FlopCounterMode(display=False) as flops:
        net(torch.empty(BATCH, 3, image_size, image_size, device="meta"))
    return flops.get_total_flops() / BATCH


def smaller(network: Network, config: ModelConfig, num_classes: int, names: Callable[[], list[str]]) -> Network | None:
    """The largest network of the same family (same name but for its number) with at most 0.6 times the FLOPs, which
    are all that is filled in beside its name; None where there is none."""
    family, number = _parted(config.name)
    parted = {name: _parted(name) for name in names()}
    sizes = sorted((size, name) for name, (its, size) in parted.items() if its == family and size < number)
    for _, name in reversed(sizes):
        forward = forward_flops(replace(config, name=name), num_classes, network.image_size)
        share = forward / network.forward_flops
        if share <= 0.6:
            return network._replace(name=name, flops=share * network.flops, forward_flops=forward)
    return None


def _parted(name: str) -> tuple[str, int]:
    """("resnet", 50) of "resnet50"; a name that does not end in a number is a family of its own."""
    family = name.rstrip("0123456789")
    return family, int(name[len(family) :] or 0)


def _is_convolutional(flops: FlopCounterMode) -> bool:
    by_operator = flops.get_flop_counts()["Global"]
    convolutions = sum(number for operator, number in by_operator.items() if "convolution" in str(operator))
    return 2 * convolutions > flops.get_total_flops()


def _on_meta(config: ModelConfig, num_classes: int) -> nn.Module:
    with torch.device("meta"):
        return build_model(config, num_classes).train()


def _total(output: Any) -> Tensor:
    """A scalar that depends on all logits; auxiliary heads give a named tuple."""
    return torch.stack([logits.sum() for logits in _tensors(output)]).sum()
