"""Copies of a run's state: what a checkpoint writes while training goes on, and what a failed step is replayed from."""

from typing import Any

import torch
from torch import Tensor


def snapshot(state: Any) -> Any:
    """A copy of nested dicts, lists and tuples in which every tensor is a clone on its own device.

    On a GPU this copies within the device, in the order of its stream, and waits for nothing.
    """
    match state:
        case Tensor():
            return state.detach().clone()
        case dict():
            return {key: snapshot(value) for key, value in state.items()}
        case list() | tuple():
            return type(state)(snapshot(value) for value in state)
    return state


def to_cpu(state: Any) -> Any:
    """The same nest with its tensors in the CPU's memory; those that are there already are not copied."""
    match state:
        case Tensor():
            return state.detach().cpu()
        case dict():
            return {key: to_cpu(value) for key, value in state.items()}
        case list() | tuple():
            return type(state)(to_cpu(value) for value in state)
    return state


def ready_event() -> torch.cuda.Event | None:
    """An event after the copies that were just asked for, on the current CUDA device; None without one."""
    if not torch.cuda.is_available():
        return None
    event = torch.cuda.Event()
    event.record()
    return event
