"""The scaling model compared with numbers worked out by hand, and its page compared with the model."""

from pathlib import Path

import pytest

from penstock.benchmarks.scaling import Machine, Shards, demand, limits, measured, report

ROOT = Path(__file__).parents[2]
SHARDS = Shards("s", image_bytes=100_000.0, images_per_s_core=500.0)
MACHINE = Machine(
    gpus=8, cores=20, disk_bytes=1e9, disk_requests=10_000, network_bytes=10e9, store_bytes=4e9,
    gpu_images_per_s=1000.0, gradient_bytes=80e6, batch_size=100, max_batch=8000,
)  # fmt: skip


def test_one_node() -> None:
    asked = demand(8, SHARDS, MACHINE)
    assert (asked.nodes, asked.batch_size, asked.images_per_s) == (1, 100, 8000)
    assert asked.bytes_all == asked.bytes_node == 0.8e9  # 8,000 × 100 kB
    assert asked.images_node == 8000
    assert asked.cores_node == 16  # 8,000 / 500
    assert asked.network_node == 0  # nobody to talk to
    assert asked.epoch_s == pytest.approx(160.145875)
    assert limits(asked, MACHINE) == {
        "decoding on the cores": 0.8,
        "local disk, bytes": 0.8,
        "local disk, requests": 0.8,
        "shared store, bytes": 0.2,
        "network of a node": 0.0,
    }


def test_many_nodes_share_the_global_batch() -> None:
    asked = demand(160, SHARDS, MACHINE)
    assert (asked.nodes, asked.batch_size) == (20, 50)
    # 20 steps a second, each node sends 2 × 19/20 of 80 MB in each: 3.04 GB/s
    assert asked.network_node == pytest.approx(3.04e9)
    assert asked.bytes_all == pytest.approx(16e9)
    assert asked.bytes_node == pytest.approx(0.8e9)
    assert next(iter(limits(asked, MACHINE).items())) == ("shared store, bytes", 4.0)


def test_a_part_of_a_machine() -> None:
    part = MACHINE.part(2)
    assert (part.gpus, part.cores, part.disk_bytes) == (2, 5, 1e9)
    assert demand(2, SHARDS, part).nodes == 1


def test_rates_are_those_of_the_results() -> None:
    originals, small = measured()
    assert originals.images_per_s_core == 1643.174429841967 / 2  # the README's 1,643 on two cores
    assert originals.image_bytes == 55_984_416 / 500
    assert small.image_bytes < originals.image_bytes / 3


def test_the_page_has_the_tables_of_the_script() -> None:
    assert report() in (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
