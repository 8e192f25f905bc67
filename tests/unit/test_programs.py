"""What `bench.py` times, and how torch is set up for it: as `train.py` is."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import options, programs
from benchmarks.programs import BatchProgram
from training import environment

ROOT = Path(__file__).parents[2]
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


@pytest.fixture
def torchs_own() -> Iterator[None]:
    """torch's settings as they are without us, and put back."""
    before = torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()
    torch.backends.cudnn.benchmark = False
    torch.set_float32_matmul_precision("highest")
    yield
    torch.backends.cudnn.benchmark = before[0]
    torch.set_float32_matmul_precision(before[1])


@pytest.mark.usefixtures("torchs_own")
def test_a_benchmark_measures_the_kernels_that_training_takes(dataset_dir: Path) -> None:
    given: dict[str, Any] = {"recipe_name": "demo", "overrides": (), "image_size": None, "batch_size": 4, "threads": 1}
    options.prepare(data=str(dataset_dir), device="cpu", no_machine_config=True, **given)
    assert torch.backends.cudnn.benchmark
    assert torch.get_float32_matmul_precision() == "high"


def test_deterministic_kernels_have_cublas_workspace() -> None:
    """In a process of its own: cuBLAS reads the variable once."""
    code = "import os, torch; from training import environment; environment.choose_kernels(deterministic=True)\n"
    code += "print(os.environ['CUBLAS_WORKSPACE_CONFIG'], torch.backends.cudnn.benchmark, "
    code += "torch.are_deterministic_algorithms_enabled())"
    env = {name: value for name, value in os.environ.items() if name != "CUBLAS_WORKSPACE_CONFIG"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [":4096:8", "False", "True"]
    assert environment.choose_kernels.__defaults__ == (False,)
