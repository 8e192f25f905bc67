"""The recipe's data for this rank: its loaders, and the training loader of the current phase."""

from collections.abc import Callable, Iterator
from pathlib import Path

import click
import torch

from penstock.pipeline.batch import Batch, Loader
from penstock.pipeline.build import build_loader, threads_per_rank
from penstock.pipeline.feed import Feed
from penstock.pipeline.holes import BadSample
from penstock.pipeline.mixing import Mixer
from penstock.pipeline.pixel_loader import PixelLoader
from penstock.pipeline.pixels import PixelStore
from penstock.recipes import Recipe, recipe_at
from penstock.shards.format import ShardSet
from penstock.training import distributed, quarantine
from penstock.training.budget import Work
from penstock.training.distributed import World
from penstock.training.learner import autocast_dtype
from penstock.training.splits import validates


def open_dataset(recipe: Recipe, path: str | None = None) -> ShardSet:
    """The recipe's packed dataset, or the one at `path`: a directory or a URL."""
    return ShardSet.open(path or recipe.data.path, recipe.data.cache_dir, recipe.data.store_timeout_s)


def train_loader(recipe: Recipe, dataset: ShardSet, world: World, run_dir: Path, quarantined: set[int]) -> Loader:
    """Build the loader of this rank's training batches. `quarantined`: the samples that are known to be bad. New ones
    are added to the run's list.

    Raises ValueError if the global batch size is not divisible by the number of ranks.
    """

    def on_bad(bad: BadSample) -> None:
        quarantine.append(run_dir, bad)
        click.echo(f"quarantined: {bad.where}: {bad.reason}", err=True)

    feed = Feed(
        split=dataset.split(recipe.data.train_split),
        config=recipe.data,
        augment=recipe.augment,
        batch_size=rank_batch_size(recipe, world),
        global_batch_size=recipe.train.global_batch_size,
        seed=recipe.train.seed,
        rank=world.rank,
        world_size=world.world_size,
        local_world_size=world.local_world_size,
    )
    threads = threads_per_rank(recipe.data.threads, world.local_world_size)
    return build_loader(feed, device=world.device, threads=threads, dtype=image_dtype(recipe, world),
                        on_bad=on_bad, quarantine=set(quarantined))  # fmt: skip


def eval_loader(
    recipe: Recipe, dataset: ShardSet, world: World, split: str, batch_size: int | None = None, at_most: int = 0
) -> Loader:
    """Build a loader of every sample of a split, once over all ranks, resized and centre-cropped. The batch size is by
    default that of training. `at_most`: only so many samples, in a fixed random choice (`Feed`); 0 for all."""
    feed = Feed(
        split=dataset.split(split),
        config=recipe.data,
        augment=None,
        batch_size=batch_size or rank_batch_size(recipe, world),
        at_most=at_most,
        rank=world.rank,
        world_size=world.world_size,
        local_world_size=world.local_world_size,
    )
    threads = threads_per_rank(recipe.data.threads, world.local_world_size)
    return build_loader(feed, device=world.device, threads=threads, dtype=image_dtype(recipe, world))


def val_loader_of(recipe: Recipe, dataset: ShardSet, world: World, at_most: int) -> Loader | None:
    """The loader of the recipe's validation split, or None if the recipe has none."""
    return eval_loader(recipe, dataset, world, recipe.data.val_split, at_most=at_most) if validates(recipe) else None


class TrainingData:
    """The training batches of the current phase, which is the phase in which the epoch began. The loader is kept as
    long as nothing that it depends on changes.

    recipe: the recipe in this phase. feed: the loader's feed, once there is a loader. num_train: samples in the
    training split.
    """

    def __init__(self, recipe: Recipe, dataset: ShardSet, world: World, run_dir: Path, quarantined: set[int]) -> None:
        self.recipe = self._whole = recipe
        self.num_train = len(dataset.split(recipe.data.train_split))
        self._dataset, self._world, self._run_dir, self._quarantined = dataset, world, run_dir, quarantined
        self._loader: Loader | None = None
        self._mixer: Mixer | None = None
        self._seen: set[tuple[int, int]] = set()  # image and batch sizes so far

    @property
    def feed(self) -> Feed:
        assert self._loader is not None
        return self._loader.feed

    @property
    def decoded(self) -> float | None:
        """The fraction of the images in memory, while `data.cache = "pixels"` still has some to decode."""
        pixels = self._pixels
        if pixels is None or self._loader is None or pixels.num_missing <= len(self._loader.quarantine):
            return None
        return pixels.share

    @property
    def _pixels(self) -> PixelStore | None:
        return self._loader.pixels if isinstance(self._loader, PixelLoader) else None

    @property
    def global_batch_size(self) -> int:
        return self.recipe.train.global_batch_size

    def has_batch(self, position: int) -> bool:
        """Whether this epoch has one more global batch."""
        return position + self.global_batch_size <= self.num_train

    def enter(self, phase_epoch: int) -> None:
        """Switch to the phase of an epoch of the schedule."""
        now = recipe_at(self._whole, phase_epoch)
        if self._loader is not None and now == self.recipe:
            return
        held = self._pixels  # keeps the pixels in memory for the next loader
        self.close()
        self.recipe = now
        self._loader = train_loader(now, self._dataset, self._world, self._run_dir, self._quarantined)
        del held
        num_classes = len(self._dataset.classes)
        self._mixer = Mixer(now.augment, num_classes, seed=now.train.seed, rank=self._world.rank)

    def batches(
        self, epoch: int, position: int, timed: Callable[[Iterator[Batch]], Iterator[Batch]]
    ) -> Iterator[Batch]:
        """The batches of an epoch from a position on, after mixup and CutMix. All ranks skip the samples that any rank
        found to be bad before. `timed` passes on the loader's batches (`StepLog.timed`)."""
        assert self._loader is not None
        assert self._mixer is not None
        self._loader.quarantine |= distributed.union(self._loader.quarantine, self._world)
        return self._mixer.mixed(timed(self._loader.iter_epoch(epoch, position)))

    def is_new_size(self) -> bool:
        """Whether this size has not occurred before. A compiled network is then compiled for it."""
        size = self.recipe.data.image_size, self.global_batch_size
        is_new = size not in self._seen
        self._seen.add(size)
        return is_new

    def close(self) -> None:
        if self._loader is not None:
            self._quarantined |= self._loader.quarantine
            self._loader.close()
            self._loader = None


def rank_batch_size(recipe: Recipe, world: World) -> int:
    """Samples in one batch of one rank. Raises ValueError if the global batch size is not divisible."""
    batch_size, rest = divmod(recipe.train.global_batch_size, world.world_size * recipe.train.accumulation)
    if rest or not batch_size:
        raise ValueError(
            f"train.global_batch_size {recipe.train.global_batch_size} is not a multiple of "
            f"{world.world_size} ranks × train.accumulation {recipe.train.accumulation}"
        )
    return batch_size


def count_steps(recipe: Recipe, num_train: int, world: World) -> int:
    """Optimizer steps of the whole recipe. Raises ValueError if an epoch's global batch size is not divisible by the
    number of ranks, or is larger than the split."""
    total = 0
    for epoch in range(recipe.train.epochs):
        now = recipe_at(recipe, epoch)
        rank_batch_size(now, world)
        if now.train.global_batch_size > num_train:
            raise ValueError(
                f"train.global_batch_size {now.train.global_batch_size} in epoch {epoch} is larger than split "
                f"{recipe.data.train_split!r}, which has {num_train} samples. Lower it"
            )
        total += num_train // now.train.global_batch_size
    return total


def work_of(recipe: Recipe, dataset: ShardSet, *, last_step: int, at_most: int, num_nets: int, compiles: bool) -> Work:
    """The work of a run up to `last_step`, for its clock. Each validation scores `num_nets` networks on `at_most`
    images (0 for all)."""
    each_epoch = [recipe_at(recipe, epoch) for epoch in range(recipe.train.epochs)]
    scored = [recipe.data.val_split if validates(recipe) else "", recipe.data.test_split]
    num_val, num_test = (len(dataset.split(name)) if name else 0 for name in scored)
    passes = num_nets * (2 if recipe.train.val_flip else 1)
    return Work(
        image_sizes=tuple(now.data.image_size for now in each_epoch),
        batch_sizes=tuple(now.train.global_batch_size for now in each_epoch),
        num_train=len(dataset.split(recipe.data.train_split)),
        last_step=last_step,
        eval_every=recipe.train.eval_every,
        num_val=min(num_val, at_most or num_val),
        num_test=min(num_test, at_most or num_test),
        val_image_size=recipe.data.val_image_size,
        val_cost=max(passes / 3, 0.5),  # a training step is a pass forwards and two backwards; decoding counts, too
        compiles=compiles,
    )


def image_dtype(recipe: Recipe, world: World) -> torch.dtype:
    """float16 on a GPU if autocast would use half precision anyway. On the CPU DALI is faster in float32."""
    half = world.device.type == "cuda" and autocast_dtype(recipe, world.device) is not None
    return torch.float16 if half else torch.float32
