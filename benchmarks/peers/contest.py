"""A peer's way into the comparison: its files are made, its output is checked, its number of workers is chosen."""

import tomllib
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import Sample
from benchmarks.peers import check, gradient, observe
from benchmarks.peers.environments import python_of
from benchmarks.peers.layout import Layout, bytes_of, make_once
from benchmarks.peers.process import CHILD, Child, Missing, PeerError
from benchmarks.peers.registry import PEERS, adapter_file
from pipeline.augment import AugmentConfig
from pipeline.config import DataConfig
from pipeline.feed import Feed
from pipeline.reference import ReferenceLoader

ROOT = Path(__file__).parents[2]
EPOCH_BATCHES = 200  # an epoch's length at least, by repeating images, so that its start is no part of a figure
SETTLE_BATCHES = 8  # taken before each repeat is timed; more where more workers may have more of them ready
NUM_CHECKED = 2000
TURN_S = 2.0
PREPARE_LIMIT_S = 24 * 3600.0
REFERENCE_SEED = 1  # not the loader's, whose plan would draw the same crops


@dataclass(frozen=True)
class Settings:
    """What all programs are asked for.

    cores: that a program's processes may use. workers: numbers of worker processes or threads that are tried.
    folder: environments, converted data and logs. num_checked: images whose pixels, and whose crops, are checked.
    turn_s: how long a number of workers is tried. limit_s: a program that is silent for longer has failed.
    """

    image_size: int
    batch_size: int
    cores: tuple[int, ...]
    workers: tuple[int, ...]
    folder: Path
    num_checked: int
    turn_s: float
    limit_s: float = 300.0


@dataclass
class Contestant:
    """A program that has passed its check, ready to be timed: a `measure.Program`.

    tried: workers → images/s, when they were chosen. prepare_s: time for what it reads to be made of a folder of
    JPEGs, None where that is not known. first_batch_s: from the start of its process.
    """

    name: str
    child: Child
    workers: int
    tried: dict[int, float]
    prepare_s: float | None
    size_bytes: int
    version: str = ""
    first_batch_s: float = 0.0

    def start(self, turn_s: float) -> None:
        """To the first batch, then a turn for its speed, and one for its memory: looking at that takes time."""
        said = self.child.ask("start", watch=True)
        self.version, self.first_batch_s = said["version"] or our_version(), said["first_batch_s"]
        self.tried[self.workers] = self.run(turn_s).images_per_s
        self.child.ask("run", watch=True, seconds=turn_s)

    def run(self, seconds: float) -> Sample:
        done = self.child.ask("run", seconds=seconds)
        return Sample(done["images"] / done["seconds"])

    def close(self) -> None:
        self.child.close()

    def figures(self) -> dict[str, Any]:
        """For the result."""
        return {
            "version": self.version,
            "workers": self.workers,
            "images_per_s_of_workers": {str(workers): found for workers, found in self.tried.items()},
            "memory_mb": self.child.memory_mb,
            "first_batch_s": self.first_batch_s,
            "prepare_s": self.prepare_s,
            "size_bytes": self.size_bytes,
        }


def reference(layout: Layout, settings: Settings, crops: bool = False) -> dict[str, Any]:
    """What PIL and torchvision make of the images with this project's plan, as numbers (see `observe`)."""
    repeats = -(-max(settings.num_checked, settings.batch_size) // len(layout.split))
    feed = Feed(
        split=replace(layout.split, samples=np.tile(layout.split.samples, repeats)),
        config=DataConfig(loader="reference", image_size=settings.image_size),
        augment=AugmentConfig(),
        batch_size=settings.batch_size,
        global_batch_size=settings.batch_size,
        seed=REFERENCE_SEED,
    )
    parts = []
    for batch in ReferenceLoader(feed, device=torch.device("cpu"), workers=len(settings.cores)).iter_epoch(0):
        images = batch.images.numpy()
        config, size = feed.config, [gradient.WIDTH, gradient.HEIGHT]
        found = observe.describe_crops(images, list(config.mean), list(config.std), size) if crops else {}
        parts.append(observe.describe(images) | found)
    return observe.joined(parts)


def enter(
    name: str, images: Layout, gradients: Layout, expected: dict[str, Any], crops: dict[str, Any], settings: Settings
) -> Contestant:
    """Prepare, check and tune one peer, on `images`.

    Args:
        expected, crops: `reference` of the images and of the gradients.

    Raises:
        Missing: it is not installed.
        PeerError: it failed, or delivers something else than was asked for.
    """
    if not python_of(name, settings.folder).exists():
        raise Missing(name, "it has no environment yet")
    prepare(name, gradients, settings)
    made = prepare(name, images, settings)
    best: Contestant | None = None
    tried: dict[int, float] = {}
    try:
        for workers in settings.workers:
            one = Contestant(name, start(name, images, settings, workers), workers, tried, *made)
            with ExitStack() as unless_kept:
                unless_kept.callback(one.close)
                one.start(settings.turn_s)
                if len(tried) == 1:
                    refuse(name, output_faults(one, gradients, expected, crops, settings))
                if best is None or tried[workers] > tried[best.workers]:
                    unless_kept.pop_all()
                    if best:
                        best.close()
                    best = one
    except BaseException:
        if best:
            best.close()
        raise
    assert best is not None
    return best


def output_faults(
    one: Contestant, gradients: Layout, expected: dict[str, Any], crops: dict[str, Any], settings: Settings
) -> list[str]:
    """What is wrong with the output of a program that has started. Arguments as of `enter`."""
    num, form = settings.num_checked, (settings.batch_size, settings.image_size)
    job = job_of(one.name, gradients, settings, one.workers)
    seen = one.child.ask("describe_crops", num_images=num, size=[gradient.WIDTH, gradient.HEIGHT], job=job)
    if faults := check.form_faults(seen, *form) or check.crop_faults(seen, crops):
        return faults
    seen = one.child.ask("describe", num_images=num)
    return check.form_faults(seen, *form) or check.pixel_faults(seen, expected)


def refuse(name: str, faults: list[str]) -> None:
    if faults:
        raise PeerError(name, f"its output is wrong: {'; '.join(faults)}")


def prepared_folder(name: str, layout: Layout, settings: Settings) -> Path:
    return settings.folder / "data" / f"{name}-{layout.key}"


def prepare(name: str, layout: Layout, settings: Settings) -> tuple[float | None, int]:
    """Make what a peer reads, unless it is there. Returns the seconds that takes or took, and the bytes of it."""
    match PEERS[name].reads:
        case "folder":
            return 0.0, layout.folder_bytes
        case "shards":
            return layout.pack_s, layout.shard_bytes

    def make(target: Path) -> dict[str, Any]:
        with closing(start(name, layout, settings, len(settings.cores))) as child:
            seconds = child.ask("prepare", limit_s=PREPARE_LIMIT_S)["seconds"]
        return {"seconds": seconds, "bytes": bytes_of(target)}

    said = make_once(prepared_folder(name, layout, settings), make)
    return said["seconds"], said["bytes"]


def start(name: str, layout: Layout, settings: Settings, workers: int) -> Child:
    """A peer's process, which has not begun to work."""
    command = [str(python_of(name, settings.folder)), "-P", str(CHILD), str(adapter_file(name))]
    log = settings.folder / "logs" / f"{name}.txt"
    return Child(name, command, job_of(name, layout, settings, workers), log, settings.limit_s)


def job_of(name: str, layout: Layout, settings: Settings, workers: int) -> dict[str, Any]:
    """What an adapter is told."""
    config = DataConfig()
    return layout.job() | {
        "root": str(ROOT), "package": PEERS[name].package, "options": dict(PEERS[name].options),
        "prepared": str((prepared_folder(name, layout, settings) / "files").absolute()),
        "image_size": settings.image_size, "batch_size": settings.batch_size, "workers": workers,
        "cores": list(settings.cores), "mean": list(config.mean), "std": list(config.std),
        "epoch_images": EPOCH_BATCHES * settings.batch_size, "settle": max(SETTLE_BATCHES, 2 * workers + 2),
    }  # fmt: skip


def our_version() -> str:
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"])
