"""`python -m benchmarks.growth`: its computations against known values."""

from pathlib import Path

import numpy as np

from penstock.benchmarks import growth
from penstock.shards.format import ShardSet


def test_the_repeated_dataset_is_whole(dataset: ShardSet, tmp_path: Path) -> None:
    growth.repeated_dataset(dataset, 1000, tmp_path)
    repeated = ShardSet.open(tmp_path).split("train")
    np.testing.assert_array_equal(repeated.samples, np.resize(dataset.split("train").samples, 1000))
    assert repeated.shard_path(2).read_bytes() == dataset.split("train").shard_path(2).read_bytes()


def test_growth_runs_what_it_says(dataset_dir: Path, tmp_path: Path) -> None:
    data = tmp_path / "set"
    data.mkdir()
    for path in dataset_dir.iterdir():
        (data / path.name).write_bytes(path.read_bytes())
    assert growth.command("threads", 3, data)[1:5] == ["bench.py", "loader", f"--data={data}", "--threads=3"]
    assert "--nproc-per-node=2" in growth.command("ranks", 2, data)
    line = growth.command("rows", 1000, data)
    assert len(ShardSet.open(line[3].removeprefix("--data=")).split("train")) == 1000
    assert growth.command("rows", 1000, data) == line, "made once"
