"""Measure durations on a device: on a GPU between two CUDA events, without waiting; otherwise by the CPU's clock.

The CPU runs ahead of a GPU. Its clock would measure how long it took to launch the work, not to complete it.
"""

import time

import torch

Mark = float | torch.cuda.Event


def mark(device: torch.device) -> Mark:
    """The current moment. On a GPU it comes when all work queued on the current stream so far is done."""
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
