"""Durations on a device: of a GPU between two CUDA events, which wait for nothing; else by the CPU's clock.

The CPU runs ahead of a GPU: its own clock there tells how long work took to be asked for, not to be done.
"""

import time

import torch

Mark = float | torch.cuda.Event


def mark(device: torch.device) -> Mark:
    """This moment: on a GPU when all that was asked of its current stream so far is done."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def wait_for(moment: Mark) -> None:
    """Wait until the moment has come."""
    if not isinstance(moment, float):
        moment.synchronize()


def seconds(begin: Mark, end: Mark) -> float:
    """From `begin` to `end`, two marks of one device, both of which have come."""
    if isinstance(begin, float):
        assert isinstance(end, float)
        return end - begin
    assert isinstance(end, torch.cuda.Event)
    milliseconds: float = begin.elapsed_time(end)
    return milliseconds / 1e3
