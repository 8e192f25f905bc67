"""The times that `bench.py` measures of a program."""

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from penstock.benchmarks import programs
from penstock.benchmarks.programs import BatchProgram

CPU = torch.device("cpu")


def batches(wait_s: float) -> Iterator[Any]:
    while True:
        time.sleep(wait_s)
        yield SimpleNamespace(labels=range(4))


def test_mixing_is_work_and_no_wait_for_data() -> None:
    def mixed(taken: Iterator[Any]) -> Iterator[Any]:
        for batch in taken:
            time.sleep(0.02)
            yield batch

    waits = [BatchProgram("", batches(0.005), next, CPU, mixed=mixed).run(0.3).data_wait,
             BatchProgram("", batches(0.02), next, CPU).run(0.3).data_wait]  # fmt: skip
    assert waits[0] < 0.45
    assert waits[1] > 0.8


@pytest.mark.parametrize(("left_s", "device"), [(0.1, "cuda"), (0.0, "cuda"), (0.1, "cpu")])
def test_how_far_the_cpu_is_ahead(monkeypatch: pytest.MonkeyPatch, left_s: float, device: str) -> None:
    """In steps: of what a GPU still has to do when the last of its work is asked for; a second, in ten steps here."""
    marks = SimpleNamespace(mark=lambda device: None, wait_for=lambda mark: time.sleep(left_s), seconds=lambda *_: 1.0)
    monkeypatch.setattr(programs, "clock", marks)
    found = BatchProgram("", batches(0.0), lambda taken: [next(taken), time.sleep(0.03)], torch.device(device)).run(0.3)
    num_steps = found.images_per_s / 4
    assert found.ahead == pytest.approx(left_s * num_steps if device == "cuda" else 0, rel=0.3, abs=0.05)
