"""The scripts in `benchmarks/studies/`: what they compute, against what is known."""

import os
from pathlib import Path

import numpy as np
import pytest

from benchmarks.studies import cold, growth, order, scale
from recipes import Recipe
from shard_tools.format import ShardSet


def test_the_laid_out_table_is_what_pack_writes(dataset: ShardSet) -> None:
    packed = dataset.split("train").samples
    packed = packed[packed["shard"] == 0]
    table = order.laid_out(packed["size"].astype(np.int64), 3)
    np.testing.assert_array_equal(table["offset"], packed["offset"])


def test_order_statistics_of_true_permutations() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(40), rng.integers(5, 90, 40))
    drawn = [len(np.unique(rng.permutation(labels)[:64])) for _ in range(3000)]
    np.testing.assert_allclose(order.expected_classes(np.bincount(labels), 64), np.mean(drawn), atol=0.1)
    mixed = order.class_mix(rng.permutation(np.repeat(np.arange(40), 500)), 64, 40)
    assert abs(mixed["classes"] - mixed["classes_expected"]) < 0.5
    assert abs(mixed["spread"] - 1) < 0.1
    assert order.class_mix(np.repeat(np.arange(40), 500), 64, 40)["spread"] > 20, "sorted: one class a batch"


def test_requests_are_runs_of_neighbours(dataset: ShardSet) -> None:
    samples = dataset.split("train").samples
    chosen = np.array([30, 2, 3, 1, 10, 24, 25])  # 25 samples a shard
    lengths, shards = order.requests(samples[chosen])

    def span(first: int, last: int) -> int:
        return int(samples["offset"][last] + samples["size"][last] - samples["offset"][first])

    assert lengths.tolist() == [span(1, 3), span(10, 10), span(24, 24), span(25, 25), span(30, 30)]
    assert shards == 2


def test_dropped_pages_are_gone(tmp_path: Path) -> None:
    file = tmp_path / "pages"
    file.write_bytes(b"x" * (1 << 20))
    cold.load([file])
    assert cold.resident_share([file]) == 1
    probe = tmp_path / "probe"
    probe.write_bytes(b"x" * (1 << 20))
    with open(probe, "rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if cold.resident_share([probe]) == 1:
        pytest.skip("this file system lives in memory")
    assert cold.drop([file]) == cold.resident_share([file]) == 0


def test_the_repeated_dataset_is_whole_and_a_huge_one_is_never_an_array(dataset: ShardSet, tmp_path: Path) -> None:
    scale.repeated_dataset(dataset, 1000, tmp_path)
    repeated = ShardSet.open(tmp_path).split("train")
    np.testing.assert_array_equal(repeated.samples, np.resize(dataset.split("train").samples, 1000))
    assert repeated.shard_path(2).read_bytes() == dataset.split("train").shard_path(2).read_bytes()

    lines = scale.billion(10**9, Recipe().data, 16)
    assert {line["rank"] for line in lines} == {0, 512, 1023}
    assert max(line["peak_mb"] for line in lines) < 1
    table = scale.Unreadable(10)
    for asking in (lambda: np.asarray(table), lambda: table[:], lambda: table["label"]):
        with pytest.raises(RuntimeError, match="whole table"):
            asking()


def test_growth_runs_what_it_says(dataset_dir: Path, tmp_path: Path) -> None:
    data = tmp_path / "set"
    data.mkdir()
    for path in dataset_dir.iterdir():
        (data / path.name).write_bytes(path.read_bytes())
    assert growth.arguments("threads", 3, data)[:6] == ["bench.py", "loader", "--data", str(data), "--threads", "3"]
    line = growth.arguments("rows", 1000, data)
    assert len(ShardSet.open(line[line.index("--data") + 1]).split("train")) == 1000
    assert growth.arguments("rows", 1000, data) == line, "made once"
