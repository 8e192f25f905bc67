"""A benchmark sets up torch for a dataset as `train.py` does."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from penstock.benchmarks import options


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
