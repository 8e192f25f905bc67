"""Compute what a run needs from storage, network and cores at 1 to 1,024 GPUs: `python -m benchmarks.scaling`.

Input: the figures below (measured in `results/`, published, or assumed). Output: the tables of docs/scaling.md. Nothing
is measured here: the arithmetic is in `demand` and `limits`.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from penstock.benchmarks import record
from penstock.benchmarks.peers.registry import OURS
from penstock.benchmarks.text import markdown_row
from penstock.shards.format import SAMPLE_DTYPE

NUM_TRAIN = 1_281_167  # ImageNet-1k
MEASURED = {"originals": "peers-in500-2cpu.json", "--short-side 256": "peers-short256-2cpu.json"}
NUM_MEASURED = 500  # images in each of them
HEAD = ["GPUs", "batch per GPU", "images/s", "epoch", "reads, all nodes", "reads per node", "cores per node",
        "all-reduce per node", "first limit (needed share of it)"]  # fmt: skip


@dataclass(frozen=True)
class Shards:
    """One way to pack. image_bytes: in the tars. images_per_s_core: the loader's rate, with random crops of 224 px."""

    name: str
    image_bytes: float
    images_per_s_core: float


@dataclass(frozen=True)
class Machine:
    """One node, the storage that all nodes share, and the training: ResNet-50 in bf16 on H100s, by published figures.
    Bytes and requests are per second. The links between a node's GPUs are not included."""

    gpus: int = 8
    cores: int = 96
    disk_bytes: float = 6e9  # local NVMe
    disk_requests: float = 500e3
    network_bytes: float = 50e9  # 400 Gbit/s, one way
    store_bytes: float = 100e9  # the shared file system or object store, all nodes together
    gpu_images_per_s: float = 4300.0
    gradient_bytes: float = 25_557_032 * 4.0  # summed over the ranks in each step, in float32
    batch_size: int = 256  # per GPU, as long as the global batch is at most `max_batch`
    max_batch: int = 32_768  # the largest global batch that still trains well

    def part(self, gpus: int) -> "Machine":
        """Return a machine with fewer GPUs and the same share of the cores. Disk and network stay the same."""
        return replace(self, gpus=gpus, cores=self.cores * gpus // self.gpus)


@dataclass(frozen=True)
class Demand:
    """What one run requires: *_node of each node, *_all of the shared store. Bytes and images are per second."""

    nodes: int
    batch_size: int
    images_per_s: float
    epoch_s: float
    bytes_all: float
    bytes_node: float
    images_node: float  # as many reads in `global` order; `block` order reads 1 MiB and more at a time
    cores_node: float
    network_node: float


def demand(gpus: int, shards: Shards, machine: Machine) -> Demand:
    """Return the demand of a run on `gpus` GPUs that are never idle.

    A node sends 2(n-1)/n of the gradient in each step: a ring all-reduce over n nodes (Patarasuk and Yuan 2009). Inside
    a node it uses the GPUs' own links.
    """
    nodes = -(-gpus // machine.gpus)
    batch_size = min(machine.batch_size, machine.max_batch // gpus)
    images_per_s = gpus * machine.gpu_images_per_s
    images_node = images_per_s / nodes
    steps_per_s = machine.gpu_images_per_s / batch_size
    return Demand(
        nodes=nodes,
        batch_size=batch_size,
        images_per_s=images_per_s,
        epoch_s=NUM_TRAIN / images_per_s,
        bytes_all=images_per_s * shards.image_bytes,
        bytes_node=images_node * shards.image_bytes,
        images_node=images_node,
        cores_node=images_node / shards.images_per_s_core,
        network_node=2 * (nodes - 1) / nodes * machine.gradient_bytes * steps_per_s,
    )


def limits(asked: Demand, machine: Machine) -> dict[str, float]:
    """Return the required share of each resource, the largest first: that is the first limit. Above 1 the GPUs wait."""
    shares = {
        "decoding on the cores": asked.cores_node / machine.cores,
        "local disk, bytes": asked.bytes_node / machine.disk_bytes,
        "local disk, requests": asked.images_node / machine.disk_requests,
        "network of a node": asked.network_node / machine.network_bytes,
        "shared store, bytes": asked.bytes_all / machine.store_bytes,
    }
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def measured() -> list[Shards]:
    """Return the measured ways to pack, from the results that docs/results.md shows."""
    found = []
    for name, file in MEASURED.items():
        result = record.read(Path(__file__).parent / "results" / file)
        ours = result.programs[OURS]
        found.append(Shards(name, (ours.size_bytes or 0) / NUM_MEASURED, ours.median / result.settings["threads"]))
    return found


def row(gpus: int, shards: Shards, machine: Machine) -> list[str]:
    """Return the table cells for a number of GPUs, with the first limit."""
    node = machine if gpus >= machine.gpus else machine.part(gpus)
    asked = demand(gpus, shards, node)
    first, share = next(iter(limits(asked, node).items()))
    rates = [f"{rate / 1e9:.{2 if rate < 1e11 else 0}f} GB/s" for rate in (asked.bytes_all, asked.bytes_node)]
    return [f"{gpus:,}", f"{asked.batch_size}", f"{asked.images_per_s:,.0f}", f"{asked.epoch_s:,.1f} s", *rates,
            f"{asked.cores_node:.0f}", f"{asked.network_node / 1e9:.2f} GB/s", f"{first} ({share:.0%})"]  # fmt: skip


def report() -> str:
    """Return the generated part of docs/scaling.md."""
    lines = []
    for shards in measured():
        rows = [row(gpus, shards, Machine()) for gpus in (1, 8, 64, 1024)]
        lines += [
            f"**{shards.name}**: {shards.image_bytes / 1e3:.1f} kB per image, {shards.images_per_s_core:,.0f} images/s "
            f"per core, {NUM_TRAIN * shards.image_bytes / 1e9:.0f} GB in total",
            "",
            *(markdown_row(cells) for cells in [HEAD, [*["---:"] * (len(HEAD) - 1), "---"], *rows]),
            "",
        ]
    table_bytes = NUM_TRAIN * SAMPLE_DTYPE.itemsize
    return "\n".join([*lines, f"The sample table takes {table_bytes / 1e6:.0f} MB of memory per node, mapped once."])


if __name__ == "__main__":
    print(report())
