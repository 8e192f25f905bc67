"""A simulated GPU: torch's fake tensors on device "cuda", which let GPU code run on any machine.

Fake tensors have shapes, dtypes, strides and devices, but no data. Operations across two devices raise an error, and so
does reading a tensor's values. `fake_cuda` replaces the operations that fake tensors lack: autograd's backward pass
gives gradients of the parameters' layout, fused optimizers check their arguments, and streams and events do nothing.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from penstock.training.distributed import World

DEVICE = torch.device("cuda", 0)
WORLD = World(0, 0, 1, 1, DEVICE)
FUSED = ("_fused_sgd_", "_fused_adam_", "_fused_adamw_", "_fused_adagrad_")


class Synchronised(AssertionError):
    """An operation that makes the CPU wait for the GPU."""


class Watch(TorchDispatchMode):
    """Watches every operation: raises `Synchronised` if one waits for the GPU, and records convolutions' layouts."""

    def __init__(self) -> None:
        super().__init__()
        self.contiguous: list[str] = []  # convolutions with an operand that is not channels-last

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket._qualified_op_name.partition("::")[2]
        if name == "_local_scalar_dense" and not args[0].is_cuda:
            return 1.0 if args[0].is_floating_point() else 0  # a number on the CPU, which has no data here either
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero"):
            raise Synchronised(name)
        if name == "index" and any(place is not None and place.dtype == torch.bool for place in args[1]):
            raise Synchronised("an index by a mask")
        if name in ("copy_", "_to_copy"):
            self._check_copy(name, args, kwargs)
        if name in ("convolution", "convolution_overrideable") and args[0].is_cuda:
            for operand in args[:2]:
                if not operand.is_contiguous(memory_format=torch.channels_last):
                    self.contiguous.append(f"{tuple(operand.shape)} with strides {operand.stride()}")
        return func(*args, **kwargs)

    def _check_copy(self, name: str, args: Any, kwargs: dict[str, Any]) -> None:
        source = args[1] if name == "copy_" else args[0]
        target = args[0].device if name == "copy_" else torch.device(kwargs.get("device") or source.device)
        non_blocking = kwargs.get("non_blocking", False) or (name == "copy_" and len(args) > 2 and args[2])
        if (
            source.device.type != target.type and not non_blocking and source.dim()
        ):  # a 0-dim one is a launch's argument
            raise Synchronised(f"a copy of {tuple(source.shape)} from {source.device} to {target} that is waited for")


class Event:
    """A stand-in for `torch.cuda.Event` that records nothing."""

    device = DEVICE

    def __init__(self, **_: Any) -> None:
        self.recorded = False

    def record(self, stream: Any = None) -> None:
        self.recorded = True

    def synchronize(self) -> None:
        raise Synchronised("an event")

    def elapsed_time(self, end: "Event") -> float:
        return 1.0


class Gpu:
    """The simulated GPU of a test. `watch` records the operations."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def images(self, n: int, side: int, dtype: torch.dtype = torch.float16) -> Tensor:
        return torch.empty(n, 3, side, side, device=DEVICE, dtype=dtype, memory_format=torch.channels_last)

    def labels(self, n: int) -> Tensor:
        return torch.empty(n, device=DEVICE, dtype=torch.int64)


@contextmanager
def fake_cuda() -> Iterator[Gpu]:
    """A context in which tensors are fake and the device "cuda" exists. Waiting for it raises `Synchronised`."""
    mode, watch = FakeTensorMode(), Watch()
    with ExitStack() as stack:
        replaced: list[tuple[Any, str, Any]] = [
            (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
            (torch.cuda, "is_bf16_supported", lambda including_emulation=True: True),
            (torch.cuda, "max_memory_allocated", lambda device=None: 0),
            (torch.cuda, "current_stream", lambda device=None: None),
            (torch.cuda, "Event", Event),
            (torch._C, "_select_conv_backend", lambda *_, **__: torch._C._ConvBackend.Cudnn),  # it asks the driver
            (torch.distributions.Distribution, "_validate_args", False),  # it looks into its parameters
            (FakeTensorMode, "__deepcopy__", lambda self, memo: self),
            (nn.Module, "to", _moved),
            (Tensor, "backward", _backward),
            *((torch, name, _fused) for name in FUSED),
        ]
        for owner, name, value in replaced:
            stack.enter_context(mock.patch.object(owner, name, value, create=name == "__deepcopy__"))
        stack.enter_context(mode)
        stack.enter_context(watch)
        yield Gpu(watch)


def _moved(net: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
    """`nn.Module.to` with new parameters: the original swaps tensors, which fake tensors do not support."""
    device, dtype, _, memory_format = torch._C._nn._parse_to(*args, **kwargs)
    assert dtype is None

    def changed(tensor: Tensor) -> Tensor:
        on = device or tensor.device
        new = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=on)
        return new.contiguous(memory_format=memory_format) if memory_format and tensor.dim() == 4 else new

    for module in net.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(changed(parameter), parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = changed(buffer)
    return net


def _backward(loss: Tensor, *_: Any, **__: Any) -> None:
    """Gradients for all leaves that the loss depends on, in the leaves' memory layout."""
    assert loss.is_cuda
    assert not loss.dim()
    seen, todo = set(), [loss.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (leaf := getattr(node, "variable", None)) is not None:
            leaf.grad = torch.empty_like(leaf)
        todo += [following for following, _ in node.next_functions]


def _fused(*lists: list[Tensor], **_: Any) -> None:
    """Check what a fused kernel requires of its lists: the same device and layout, tensor by tensor."""
    for tensors in zip(*(tensors for tensors in lists if tensors), strict=True):
        floating = [tensor for tensor in tensors if isinstance(tensor, Tensor) and tensor.dim()]
        assert all(tensor.is_cuda for tensor in tensors if isinstance(tensor, Tensor))
        assert len({(tensor.dtype, tensor.stride()) for tensor in floating}) <= 1
