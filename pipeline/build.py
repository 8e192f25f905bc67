"""Build the loader that a recipe names, and choose the number of decode threads."""

import os
from collections.abc import Callable

import torch

from penstock.pipeline.batch import Loader
from penstock.pipeline.dali import require_dali
from penstock.pipeline.feed import Feed
from penstock.pipeline.graph import decodes_on_gpu
from penstock.pipeline.holes import BadSample
from penstock.pipeline.loader import DaliLoader
from penstock.pipeline.reference import ReferenceLoader
from penstock.pipeline.synthetic import SyntheticLoader
from penstock.shards.ppm import may_have_pixels


def build_loader(
    feed: Feed,
    *,
    device: torch.device,
    threads: int,
    dtype: torch.dtype = torch.float32,
    quarantine: set[int] | None = None,
    on_bad: Callable[[BadSample], None] = lambda bad: None,
) -> Loader:
    """Build the loader that `feed.config.loader` names. The arguments are `DaliLoader`'s.

    The reference loader starts `threads` worker processes and stops at a bad sample. The synthetic loader reads no
    samples.
    """
    match feed.config.loader:
        case "dali":
            require_dali()
            from penstock.pipeline.pixel_loader import PixelLoader  # needs modules that Windows lacks

            make = PixelLoader if takes_pixels(feed, device) else DaliLoader
            return make(feed, device=device, threads=threads, dtype=dtype, quarantine=quarantine, on_bad=on_bad)
        case "reference":
            return ReferenceLoader(feed, device=device, workers=threads, dtype=dtype)
        case "synthetic":
            return SyntheticLoader(feed, device=device, dtype=dtype)


def takes_pixels(feed: Feed, device: torch.device) -> bool:
    """Whether `PixelLoader` makes the batches. If a GPU decodes, DALI also reads samples that are stored as pixels."""
    if feed.config.cache == "pixels":
        return True
    return not decodes_on_gpu(feed.config, device.type == "cuda") and may_have_pixels(feed.split.samples)


def threads_per_rank(configured: int, local_world_size: int) -> int:
    """The decode threads of a rank: `configured`; or for 0 this process's cores divided by the ranks on this machine,
    at least 1."""
    return configured or max(1, cores() // local_world_size)


def cores() -> int:
    """The number of cores that this process may use; all cores if the system does not report it (macOS, Windows)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
