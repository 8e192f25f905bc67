"""Copy a run's state, for checkpoints that are written while training continues, and for replaying a failed step."""

from collections.abc import Callable
from typing import TypeVar, cast

import torch
from torch import Tensor

from penstock.training.clock import Mark

T = TypeVar("T")  # a nest of dicts, lists and tuples that holds tensors


def _each_tensor(state: object, change: Callable[[Tensor], Tensor]) -> object:
    """The same nest of dicts, lists and tuples with its tensors changed."""
    match state:
        case Tensor():
            return change(state.detach())
        case dict():
            return {key: _each_tensor(value, change) for key, value in state.items()}
        case list() | tuple():
            return type(state)(_each_tensor(value, change) for value in state)
    return state


def snapshot(state: T) -> T:
    """A copy of nested dicts, lists and tuples in which every tensor is a clone on its own device.

    On a GPU this copies within the device, in the order of its stream, and waits for nothing.
    """
    return cast(T, _each_tensor(state, torch.clone))


def to_cpu(state: T) -> T:
    """The same nest with its tensors in CPU memory. Tensors that are already there are not copied.

    Copies from a GPU go to pinned memory, in the order of the current stream, without waiting. They are complete when
    an event that is recorded after this call is complete.
    """

    def moved(tensor: Tensor) -> Tensor:
        if not tensor.is_cuda:
            return tensor
        return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)

    return cast(T, _each_tensor(state, moved))


def at_rest(state: T, ready: Mark) -> T:
    """`to_cpu`, and wait for it. On a GPU it uses a separate stream, which does not delay the training stream.

    Any thread may call this. `ready`: a mark on the tensors' device, after which they may be read.
    """
    if isinstance(ready, float):
        return to_cpu(state)
    stream = torch.cuda.Stream(ready.device)
    with torch.cuda.stream(stream):
        stream.wait_event(ready)
        copied = to_cpu(state)
    stream.synchronize()
    return copied
