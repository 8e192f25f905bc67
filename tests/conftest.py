"""Shared by all tests: a small packed dataset, made once, and a marker with the folder's name.

A test is marked with the folder that it lies in: `pytest -m unit`. README.md here explains what belongs where.
"""

import os

# Before torch is imported: several processes test at once, and the bits of a result depend on the number of threads.
os.environ["OMP_NUM_THREADS"] = "1"

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from penstock.benchmarks import measure, programs
from penstock.recipes.hardware import cores_allowed
from penstock.shard_tools.encode import EncodeConfig
from penstock.shard_tools.writer import PackOptions, pack
from penstock.shards.format import ShardSet
from tests.common.images import write_tree

TESTS = Path(__file__).parent
MOST_WORKERS = 8  # each needs 1.5 GB and five seconds to import torch


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Three processes for two cores, since some tests wait. Where files are named this process alone: it starts
    sooner, and a debugger works."""
    if all(".py" in argument for argument in config.args):
        return 0
    return max(1, min(MOST_WORKERS, int(1.5 * (cores_allowed() or 1))))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(item.path.relative_to(TESTS).parts[0])


@pytest.fixture
def short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start measurements after three batches, and accept any rate as steady: these tests do not need the figures."""
    monkeypatch.setattr(programs, "SETTLE_BATCHES", 3)
    monkeypatch.setattr(measure, "STEADY", 10.0)


@pytest.fixture(scope="session")
def image_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source images; read only."""
    root = tmp_path_factory.mktemp("images")
    write_tree(root)
    return root


@pytest.fixture(scope="session")
def dataset_dir(image_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packed dataset, with several shards per split; read only."""
    out = tmp_path_factory.mktemp("packed") / "data"
    with ThreadPoolExecutor(1) as executor:
        pack(image_tree, out, PackOptions(samples_per_shard=25), executor=executor)
    return out


@pytest.fixture(scope="session")
def mixed_dir(image_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same images, half of them stored as pixels; read only."""
    out = tmp_path_factory.mktemp("mixed") / "data"
    with ThreadPoolExecutor(1) as executor:
        pack(image_tree, out, PackOptions(samples_per_shard=25, encode=EncodeConfig(pixels=0.5)), executor=executor)
    return out


@pytest.fixture(scope="session")
def dataset(dataset_dir: Path) -> ShardSet:
    return ShardSet.open(dataset_dir)


@pytest.fixture
def dataset_copy(dataset_dir: Path, tmp_path: Path) -> Path:
    """A copy of the packed dataset that a test may damage."""
    return Path(shutil.copytree(dataset_dir, tmp_path / "copy"))


@pytest.fixture
def damage() -> Callable[[ShardSet, str, int, bytes], None]:
    """`damage(shard_set, split, sample_id, data)`: overwrite a sample's bytes, zero-padded, in its tar."""

    def overwrite(shard_set: ShardSet, split: str, sample_id: int, data: bytes) -> None:
        row = shard_set.split(split).samples[sample_id]
        size = int(row["size"])
        with open(shard_set.split(split).shard_path(int(row["shard"])), "r+b") as file:
            file.seek(int(row["offset"]))
            file.write(data[:size].ljust(size, b"\0"))

    return overwrite
