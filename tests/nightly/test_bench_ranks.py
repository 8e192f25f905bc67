"""`bench.py` under torchrun on two ranks."""

import statistics
from pathlib import Path

import numpy as np
import pytest

from penstock.benchmarks import record
from tests.common import forked

ROOT = Path(__file__).parents[2]
NETWORK = ["--recipe", "demo", "--set", "model.name=cifar_resnet8"]
SMALL = ["--batch-size", "8", "--image-size", "32", "--seconds", "0.3", "--repeats", "3", "--device", "cpu"]


@pytest.mark.long
def test_two_ranks_are_measured_together_and_one_alone(dataset_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    arguments = ["train", "--data", dataset_dir, *NETWORK, "--threads", "1", "--json", file, *SMALL]
    done = forked.run([*torchrun, "bench.py", *arguments], timeout=600)
    assert done.returncode == 0, done.stderr
    result = record.read(file)
    assert result.settings["ranks"] == 2
    assert list(result.programs) == ["dali", "dali, 1 rank"]
    both, alone = result.programs.values()
    assert both.images_per_s_of_rank is not None
    assert len(both.images_per_s_of_rank) == 2
    np.testing.assert_allclose(np.sum(both.images_per_s_of_rank, axis=0), both.images_per_s)
    np.testing.assert_allclose(*both.images_per_s_of_rank, rtol=0.3, err_msg="in step")
    assert done.stdout.count("dali, by rank: ") == 1, "rank 0 alone prints"
    efficiency = [total / (2 * one) for total, one in zip(both.images_per_s, alone.images_per_s, strict=True)]
    assert result.ratios["dali / (2 × dali, 1 rank)"].median == pytest.approx(statistics.median(efficiency))
    assert done.stdout.count("scaling efficiency") == 1
    assert result.command.startswith("torchrun --nproc-per-node 2 bench.py train")
