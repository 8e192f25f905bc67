"""`open_loader`: a packed dataset → batches for any training loop, in a reproducible order.

It uses `penstock.pipeline` like `train.py`: order, crops and colours are functions of (seed, epoch, position). So a
state is a few integers, and another number of ranks continues with the same samples and the same augmentation.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch

from penstock.arguments import as_plain, augment_of, data_config_of, device_of, dtype_of, given_ranks, integer
from penstock.pipeline.augment import AugmentConfig
from penstock.pipeline.batch import Batch, Loader
from penstock.pipeline.build import build_loader, threads_per_rank
from penstock.pipeline.config import DataConfig
from penstock.pipeline.feed import Feed
from penstock.pipeline.holes import BadSample
from penstock.pipeline.mixing import Mixer
from penstock.ranks import Ranks, current_ranks, union_of_group
from penstock.shards.format import ShardSet, Split
from penstock.training import environment

STATE = {"epoch", "position", "dataset", "split", "training", "seed", "order", "global_batch_size", "bad_samples"}

log = logging.getLogger("penstock")


def open_loader(
    path: str | os.PathLike[str],
    split: str = "train",
    *,
    batch_size: int,
    image_size: int = 224,
    augment: AugmentConfig | str | None = "auto",
    device: torch.device | str = "auto",
    seed: int = 0,
    order: str = "global",
    rank: int | None = None,
    world_size: int | None = None,
    resize_size: int | None = None,
    dtype: torch.dtype | str = torch.float32,
    loader: str = "dali",
    on_bad: Callable[[BadSample], None] | None = None,
    **settings: Any,
) -> "ShardLoader":
    """Open the batches of one rank: `for images, labels, ids in penstock.open_loader("data/in1k", batch_size=256): …`.

    images: (N, 3, S, S) `dtype`, normalised, channels_last in memory, on the device. labels: (N,) int64 there; with
    mixup or CutMix (N, C) float32, the share of each class. ids: (N,) int64 on the CPU, rows of the sample table. A
    training sample that cannot be decoded becomes a gray image with label −100 (torch's `ignore_index`) and id −1.

    With augmentation, the loader shuffles, and each epoch drops only the final partial batch (counted over all ranks).
    Without, each sample comes once over all ranks, in the order of the shards, and the last batch may be smaller.

    Args:
        path: a packed dataset: a directory, or a URL (`s3://`, `gs://`, `hf://`, `https://`).
        batch_size: images in a rank's batch.
        image_size: S, in pixels.
        augment: an `AugmentConfig`, or the name of a preset: "none" (only crops and flips), "light", "medium" or
            "strong". None is for evaluation: it resizes and crops the centre. "auto" is "light" for the split "train"
            and None for "val", "validation", "valid" and "test".
        device: "auto" (this rank's GPU if there is one), "cpu", "cuda", "cuda:1", …
        order: "global" (a permutation of all samples), "block" (shuffles blocks of consecutive samples, for disks and
            object stores), "sequential".
        rank, world_size: this process's share of the batches. The default is that of torch.distributed, or of
            torchrun's environment, when an epoch begins; without either, rank 0 of 1.
        resize_size: pixels to which evaluation resizes the shorter side; by default image_size · 256 / 224.
        dtype: torch.float32 or torch.float16, of the images.
        loader: "dali"; "reference" (Pillow and torchvision, slower, for systems without DALI); "synthetic" (one random
            batch, repeated).
        on_bad: called with each sample that cannot be decoded. By default the logger "penstock" gets one line.
        settings: further fields of `penstock.DataConfig`: cache, threads, mean, std, block_size, …

    Raises:
        ValueError: with one line, if an argument, the dataset or the state is wrong; while iterating, if a shard or a
            validation image cannot be read, or if there are more bad samples than `max_bad_fraction` allows.
    """
    environment.separate_streams()
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"path: {path!r} must be a directory or a URL")
    if on_bad is not None and not callable(on_bad):
        raise ValueError(f"on_bad: {on_bad!r} is not callable")
    config = data_config_of(path, image_size, resize_size, order, loader, settings)
    batch_size, seed = integer("batch_size", batch_size, 1), integer("seed", seed, 0)
    if seed >= 1 << 64:
        raise ValueError(f"seed: {seed} must be below 2^64")
    if (rank is None) != (world_size is None):
        raise ValueError("rank and world_size: give both or neither")
    dataset = ShardSet.open(path, config.cache_dir, config.store_timeout_s)
    request = _Request(
        split=dataset.split(split), config=config, augment=augment_of(augment, split), batch_size=batch_size, seed=seed,
        device=device, dtype=dtype_of(dtype), ranks=given_ranks(rank, world_size),
    )  # fmt: skip
    return ShardLoader(dataset, request, on_bad or _log_bad)


@dataclass(frozen=True, kw_only=True)
class _Request:
    """The checked arguments. ranks: None to find out when an epoch begins."""

    split: Split
    config: DataConfig
    augment: AugmentConfig | None
    batch_size: int
    seed: int
    device: torch.device | str
    dtype: torch.dtype
    ranks: Ranks | None


class _Place(NamedTuple):
    epoch: int
    position: int = 0  # samples of the epoch over all ranks


class ShardLoader:
    """The result of `open_loader`: an iterable of batches, with the methods of DataLoader, DistributedSampler and
    torchdata's StatefulDataLoader that training loops use.

    Each `iter` begins the next epoch, unless `set_epoch` or `load_state_dict` set another place.
    """

    def __init__(self, dataset: ShardSet, request: _Request, on_bad: Callable[[BadSample], None]) -> None:
        self._dataset, self._request, self._on_bad = dataset, request, on_bad
        self._ranks: Ranks | None = None  # for which the loader was built
        self._loader: Loader | None = None
        self._mixer: Mixer | None = None
        self._bad: set[int] = set()  # rows of the samples that are skipped from the next epoch on
        self._left_out: set[int] = set()  # rows of the samples that are skipped in the current epoch
        self._now: _Place | None = None  # in the current epoch
        self._next = _Place(0)
        self._turn = object()  # identifies the current pass
        self._process = os.getpid()
        self._built()  # `open_loader` reports errors of building

    @property
    def dataset(self) -> Split:
        """The split: its length, its sample table (`samples`), a sample's original file (`source_name`)."""
        return self._request.split

    @property
    def classes(self) -> list[str]:
        """The classes' names, in the order of the labels."""
        return [info.name for info in self._dataset.classes]

    @property
    def batch_size(self) -> int:
        return self._request.batch_size

    @property
    def epoch(self) -> int:
        """The epoch that the next `iter` begins or continues."""
        return self._next.epoch

    def __len__(self) -> int:
        """The number of batches of this rank in a whole epoch."""
        return len(self._built())

    def __iter__(self) -> Iterator[Batch]:
        loader = self._built()
        place, self._next = self._next, _Place(self._next.epoch + 1)
        self._now = place
        if not place.position:  # a resumed epoch skips the same samples as at its start
            self._left_out = self._bad = self._bad_of_all(self._bad | loader.quarantine)
        loader.quarantine.clear()
        loader.quarantine |= self._left_out
        self._turn = object()
        return self._batches(loader, place, self._turn)

    def _bad_of_all(self, bad: set[int]) -> set[int]:
        """The bad samples of all ranks. Evaluation finds none, and a single rank may run it."""
        alone = self._request.ranks or not self._request.augment
        return bad if alone else union_of_group(bad)

    def _batches(self, loader: Loader, place: _Place, turn: object) -> Iterator[Batch]:
        assert self._mixer is not None
        for batch in self._mixer.mixed(loader.iter_epoch(*place)):
            self._now = _Place(place.epoch, batch.position)
            yield batch
            if self._turn is not turn:
                raise ValueError(
                    "this pass over the loader has ended: another began, or the loader was closed or moved elsewhere"
                )
        self._now = None

    def set_epoch(self, epoch: int) -> None:
        """Begin this epoch, counted from 0, at the next `iter`. A state that was loaded within this epoch stays valid.

        Raises ValueError if the epoch is not an integer of at least 0.
        """
        epoch = integer("epoch", epoch, 0)
        if epoch != self._next.epoch:
            self._go_to(_Place(epoch))

    def state_dict(self) -> dict[str, object]:
        """The state of the loader after its last batch: integers, strings and lists of them, the same on every rank."""
        feed, request = self._built().feed, self._request
        at = self._now or self._next
        if at.position + (feed.global_batch_size or 1) > len(feed.split):
            at = _Place(at.epoch + 1)
        return {
            "epoch": at.epoch,
            "position": at.position,
            "dataset": self._dataset.fingerprint,
            "split": request.split.name,
            "training": request.augment is not None,
            "seed": request.seed,
            "order": _order_of(request.config),
            "global_batch_size": request.batch_size * feed.world_size,
            "bad_samples": sorted(self._left_out if at.position else self._left_out | self._built().quarantine),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue at the next `iter` where the loader of `state_dict` stopped, on any number of ranks.

        Image size, augmentation and batch size may differ. Settings that decide the order of the samples may not.

        Raises ValueError for a state of another dataset, split, seed or order, and for anything that is not a state.
        """
        place, bad = _read_state(state, self.state_dict(), self._request)
        self._go_to(place)
        self._bad = self._left_out = bad

    def _go_to(self, place: _Place) -> None:
        self._next, self._now, self._turn = place, None, object()

    def close(self) -> None:
        """Release threads, memory maps and device memory. A second call does nothing. An `iter` builds them again."""
        if self._loader is not None:
            self._bad |= self._loader.quarantine
            self._loader.close()
            self._loader, self._turn = None, object()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, object]:
        """The state for another process, without open resources."""
        return self.__dict__ | {"_loader": None, "_mixer": None, "_ranks": None, "_now": None, "_turn": None}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__ |= state | {"_turn": object(), "_process": os.getpid()}

    def _built(self) -> Loader:
        """The loader for the current ranks. A trainer may start other ranks after the loader was opened."""
        if self._process != os.getpid():  # DALI's threads do not exist here, and waiting for them would never end
            raise ValueError("the loader was opened before this process was forked; open one here")
        request = self._request
        ranks = request.ranks or current_ranks()
        if self._loader is None or ranks != self._ranks:
            self.close()
            self._ranks, self._loader = ranks, _build(request, ranks, self._on_bad)
            augment = request.augment or AugmentConfig()
            self._mixer = Mixer(augment, len(self._dataset.classes), seed=request.seed, rank=ranks.rank)
        return self._loader


def _build(request: _Request, ranks: Ranks, on_bad: Callable[[BadSample], None]) -> Loader:
    num_samples, global_batch_size = len(request.split), request.batch_size * ranks.world_size
    if request.augment and global_batch_size > num_samples:
        raise ValueError(
            f"batch_size: {request.batch_size} on {ranks.world_size} rank(s) is more than the {num_samples:,} samples "
            f"of {request.split.root}, split {request.split.name!r}; lower it"
        )
    if request.augment and global_batch_size % request.augment.repeats:
        raise ValueError(
            f"augment.repeats: {request.augment.repeats} does not divide {global_batch_size}, the batch of all ranks"
        )
    feed = Feed(
        split=request.split, config=request.config, augment=request.augment,
        batch_size=min(request.batch_size, num_samples),
        global_batch_size=global_batch_size if request.augment else 0, seed=request.seed, rank=ranks.rank,
        world_size=ranks.world_size, local_world_size=ranks.local_world_size,
    )  # fmt: skip
    threads = threads_per_rank(request.config.threads, ranks.local_world_size)
    device = device_of(request.device, ranks)
    return build_loader(feed, device=device, threads=threads, dtype=request.dtype, quarantine=set(), on_bad=on_bad)


def _order_of(config: DataConfig) -> str:
    blocks = f" of {config.block_size} × {config.window_blocks}" if config.order == "block" else ""
    return f"{config.order}{blocks}"


def _read_state(state: Mapping[str, Any], ours: Mapping[str, Any], request: _Request) -> tuple[_Place, set[int]]:
    """The place and the bad samples of a state. Raises ValueError, with one line, if the state does not fit this
    loader's samples and their order."""
    if not isinstance(state, Mapping):
        raise ValueError(f"state: not a penstock loader's: {state!r:.50}; give the result of state_dict()")
    if lacking := STATE - set(state):
        raise ValueError(
            f"state: not a penstock loader's (lacks {', '.join(sorted(lacking))}); give the result of state_dict()"
        )
    state = {name: as_plain(value) for name, value in state.items()}
    if state["dataset"] != ours["dataset"]:
        raise ValueError(
            f"state: from another dataset ({str(state['dataset'])[:12]}…, but {request.split.root} is "
            f"{ours['dataset'][:12]}…); open the dataset with which it was saved"
        )
    for name in ("split", "training", "seed", "order"):
        if state[name] != ours[name]:
            raise ValueError(f"state: saved with {name} {state[name]!r}, but this loader has {ours[name]!r}")
    repeats = request.augment.repeats if request.augment else 1
    if repeats > 1 and state["global_batch_size"] != ours["global_batch_size"]:
        raise ValueError(
            f"state: saved with {state['global_batch_size']} images in a batch of all ranks, here "
            f"{ours['global_batch_size']}; with augment.repeats they must be equal"
        )
    num_samples, bad = len(request.split), state["bad_samples"]
    place = _Place(integer("state: epoch", state["epoch"], 0), integer("state: position", state["position"], 0))
    if place.position > num_samples:
        raise ValueError(f"state: position {place.position} is beyond the split's {num_samples:,} samples")
    if not isinstance(bad, list) or not all(type(one) is int and 0 <= one < num_samples for one in bad):
        raise ValueError(f"state: bad_samples {bad!r:.50} is not a list of samples, 0 to {num_samples - 1}")
    return place, set(bad)


def _log_bad(bad: BadSample) -> None:
    log.warning("quarantined: %s: %s", bad.where, bad.reason)
