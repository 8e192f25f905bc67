"""What a training run asks of storage, network and cores at 1 to 1,024 GPUs, on paper: `python -m benchmarks.scaling`.

Input: the figures below, measured (`results/`), published and assumed. Output: the tables of docs/scaling.md. Nothing is
run; the arithmetic is `demand` and `limits`.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import click

from benchmarks import record
from benchmarks.peers.registry import OURS
from shards.format import SAMPLE_DTYPE

NUM_TRAIN = 1_281_167  # ImageNet-1k
WINDOW_REQUEST = 1 << 20  # bytes: what `block` order asks for at a time, at least
RESULTS = Path(__file__).parent / "results"
MEASURED = {"originals": "peers-in500-2cpu.json", "--short-side 256": "peers-short256-2cpu.json"}
NUM_MEASURED = 500  # images in each of them
NETWORK_IMAGES_PER_S = 4300.0  # of ResNet-50 in bf16 on one H100, published
GRADIENT_BYTES = 25_557_032 * 4.0  # what the ranks add up each step, in float32


@dataclass(frozen=True)
class Shards:
    """One way to pack. image_bytes: of the tars, an image; images_per_s_core: the loader's, random crops of 224 px."""

    name: str
    image_bytes: float
    images_per_s_core: float


@dataclass(frozen=True)
class Machine:
    """One node and what it shares with the others. Bytes and requests are a second's; without a GPU's own links."""

    gpus: int = 8
    cores: int = 96
    disk_bytes: float = 6e9  # local NVMe
    disk_requests: float = 500e3
    network_bytes: float = 50e9  # 400 Gbit/s, one way
    store_bytes: float = 100e9  # the shared file system or object store, all nodes together
    gpu_images_per_s: float = NETWORK_IMAGES_PER_S
    gradient_bytes: float = GRADIENT_BYTES

    def part(self, gpus: int) -> "Machine":
        """A machine with fewer GPUs, and that share of the cores; disk and network stay."""
        return replace(self, gpus=gpus, cores=self.cores * gpus // self.gpus)


@dataclass(frozen=True)
class Demand:
    """What one run asks for. Of a node: *_node; of the store that all share: *_all. Bytes and requests a second."""

    nodes: int
    batch_size: int
    images_per_s: float
    epoch_s: float
    bytes_all: float
    bytes_node: float
    requests_node: float  # `global` order: an image each
    window_requests_node: float  # `block` order: WINDOW_REQUEST each
    cores_node: float
    network_node: float


def demand(gpus: int, shards: Shards, machine: Machine, batch_size: int, max_batch: int) -> Demand:
    """At `gpus` GPUs that are never idle, with `batch_size` each as long as the global batch stays within `max_batch`.

    A node sends 2(n-1)/n of the gradient each step: the ring all-reduce over n nodes, whose share inside a node goes
    over the GPUs' own links (Patarasuk and Yuan 2009).
    """
    nodes = -(-gpus // machine.gpus)
    batch_size = min(batch_size, max_batch // gpus)
    images_per_s = gpus * machine.gpu_images_per_s
    steps_per_s = machine.gpu_images_per_s / batch_size
    images_node = images_per_s / nodes
    return Demand(
        nodes=nodes,
        batch_size=batch_size,
        images_per_s=images_per_s,
        epoch_s=NUM_TRAIN / images_per_s,
        bytes_all=images_per_s * shards.image_bytes,
        bytes_node=images_node * shards.image_bytes,
        requests_node=images_node,
        window_requests_node=images_node * shards.image_bytes / WINDOW_REQUEST,
        cores_node=images_node / shards.images_per_s_core,
        network_node=2 * (nodes - 1) / nodes * machine.gradient_bytes * steps_per_s,
    )


def limits(asked: Demand, machine: Machine) -> dict[str, float]:
    """Resource → the share of it that is asked for; above 1 the GPUs wait. The largest is the first limit met."""
    shares = {
        "decoding on the cores": asked.cores_node / machine.cores,
        "local disk, bytes": asked.bytes_node / machine.disk_bytes,
        "local disk, requests": asked.requests_node / machine.disk_requests,
        "network of a node": asked.network_node / machine.network_bytes,
        "shared store, bytes": asked.bytes_all / machine.store_bytes,
    }
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def measured() -> list[Shards]:
    """From the results that README's table is made of."""
    found = []
    for name, file in MEASURED.items():
        result = record.read(RESULTS / file)
        ours = result.programs[OURS]
        found.append(Shards(name, (ours.size_bytes or 0) / NUM_MEASURED, ours.median / result.settings["threads"]))
    return found


def table(shards: Shards, machine: Machine, batch_size: int, max_batch: int) -> list[str]:
    """Lines of Markdown: a row for each number of GPUs, and what limits it first."""
    head = ["GPUs", "batch a GPU", "images/s", "epoch", "read, all", "read, a node", "reads/s a node", "in windows/s",
            "cores a node", "all-reduce a node", "first limit (share of it asked for)"]  # fmt: skip
    lines = [f"| {' | '.join(head)} |", f"| {' | '.join(['---:'] * (len(head) - 1) + ['---'])} |"]
    for gpus in (1, 8, 64, 1024):
        node = machine if gpus >= machine.gpus else machine.part(gpus)
        asked = demand(gpus, shards, node, batch_size, max_batch)
        first, share = next(iter(limits(asked, node).items()))
        cells = [f"{gpus:,}", f"{asked.batch_size}", f"{asked.images_per_s:,.0f}", f"{asked.epoch_s:,.1f} s",
                 _bytes(asked.bytes_all), _bytes(asked.bytes_node), f"{asked.requests_node:,.0f}",
                 f"{asked.window_requests_node:,.0f}", f"{asked.cores_node:.0f}", _bytes(asked.network_node),
                 f"{first} ({share:.0%})"]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _bytes(rate: float) -> str:
    return f"{rate / 1e9:.2f} GB/s" if rate < 1e11 else f"{rate / 1e9:.0f} GB/s"


def report(batch_size: int, max_batch: int) -> str:
    """Everything that docs/scaling.md shows."""
    lines = []
    for shards in measured():
        lines += [
            f"**{shards.name}**: {shards.image_bytes / 1e3:.1f} kB an image, {shards.images_per_s_core:,.0f} images/s "
            f"a core, {NUM_TRAIN * shards.image_bytes / 1e9:.0f} GB in all",
            "",
            *table(shards, Machine(), batch_size, max_batch),
            "",
        ]
    rows = NUM_TRAIN * SAMPLE_DTYPE.itemsize
    return "\n".join([*lines, f"The sample table takes {rows / 1e6:.0f} MB of memory a node, mapped once."])


@click.command()
@click.option("--batch-size", default=256, show_default=True, help="Of a GPU.")
@click.option("--max-batch", default=32_768, show_default=True, help="The largest global batch that still trains well.")
def main(batch_size: int, max_batch: int) -> None:
    """Print the tables of docs/scaling.md."""
    click.echo(report(batch_size, max_batch))


if __name__ == "__main__":
    main()
