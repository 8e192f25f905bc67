"""`Feed`: the contents of each batch of one rank, from the plan and the sample table. Every loader runs on it.

No image is read here.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np

from penstock.pipeline.augment import AugmentConfig, AugmentParams, centre_crop_params, train_params
from penstock.pipeline.augment.steps import step_arrays
from penstock.pipeline.config import DataConfig
from penstock.pipeline.plan import EpochPlan, Span, eval_spans, runs, train_spans
from penstock.shards.format import Split

_PLANNED_AT_ONCE = 4096  # samples; their batches are planned together


@dataclass(frozen=True)
class PlannedBatch:
    """The plan of one batch. span: the positions. sample_ids, labels: (n,) int64. params: `train_params` and their
    `step_arrays`, or `centre_crop_params` (see `pipeline.augment`)."""

    span: Span
    sample_ids: np.ndarray
    labels: np.ndarray
    params: AugmentParams


@dataclass(frozen=True, kw_only=True)
class Feed:
    """One rank's share of a split.

    augment: the training augmentation. None makes this the validation feed: stored order, centre crop, every sample
        once over all ranks.
    global_batch_size: samples of one optimizer step over all ranks (training only).
    local_world_size: ranks on this machine, which share fetched data; 0 for all ranks.
    at_most: the number of the split's samples to feed, 0 for all (validation only). They are the first of a fixed
        random order, the same in every run and on any number of ranks. A smaller selection is part of a larger one.
    """

    split: Split
    config: DataConfig
    augment: AugmentConfig | None
    batch_size: int
    global_batch_size: int = 0
    rank: int = 0
    world_size: int = 1
    local_world_size: int = 0
    seed: int = 0
    at_most: int = 0

    def __post_init__(self) -> None:
        if not len(self.split):
            raise ValueError(f"{self.split.root}: split {self.split.name!r} has no samples")
        if self.augment and len(self.split) < self.global_batch_size:
            raise ValueError(
                f"{self.split.root}: split {self.split.name!r} has {len(self.split)} samples, fewer than one global "
                f"batch of {self.global_batch_size}; lower train.global_batch_size"
            )
        if self.augment and self.global_batch_size % self.augment.repeats:
            sizes = f"augment.repeats {self.augment.repeats}", f"train.global_batch_size {self.global_batch_size}"
            raise ValueError(f"{sizes[0]} does not divide {sizes[1]}; change one of them")
        next(self.spans(0), None)  # raises now, not at the first batch, if the sizes do not divide

    @property
    def num_samples(self) -> int:
        """The number of samples from which an epoch chooses."""
        return len(self.split) if self.chosen is None else len(self.chosen)

    @cached_property
    def chosen(self) -> np.ndarray | None:
        """The samples that `at_most` selects, in stored order: (n,) int64; None for all of the split."""
        if self.augment or not 0 < self.at_most < len(self.split):
            return None
        return np.sort(EpochPlan(num_samples=len(self.split)).sample_ids(0, self.at_most))

    @property
    def image_size(self) -> int:
        return self.config.image_size if self.augment else self.config.val_image_size

    def plan(self, epoch: int) -> EpochPlan:
        config = self.config
        order = config.order if self.augment else "sequential"
        return EpochPlan(
            num_samples=self.num_samples,
            seed=self.seed,
            epoch=epoch,
            order=order,
            block_size=config.block_size,
            window_blocks=config.window_blocks,
        )

    def spans(self, position: int) -> Iterator[Span]:
        share = {"batch_size": self.batch_size, "rank": self.rank, "world_size": self.world_size}
        if self.augment:
            return train_spans(len(self.split), position, global_batch_size=self.global_batch_size, **share)
        return eval_spans(self.num_samples, position, **share)

    def __len__(self) -> int:
        """The number of batches of this rank in a whole epoch."""
        if self.augment:
            return (
                len(self.split)
                // self.global_batch_size
                * (self.global_batch_size // (self.batch_size * self.world_size))
            )
        rounds, rest = divmod(self.num_samples, self.batch_size * self.world_size)
        return rounds + (rest > self.rank * self.batch_size)

    def batch(self, epoch: int, span: Span, image_size: int) -> PlannedBatch:
        """The batch at one of this rank's spans."""
        return next(self._planned(epoch, [span], image_size))

    def _planned(self, epoch: int, spans: list[Span], image_size: int) -> Iterator[PlannedBatch]:
        """The batches at some of this rank's spans, planned together."""
        sample_ids = self.sample_ids(epoch, spans)
        rows = self.split.rows(sample_ids)
        sizes = rows["height"], rows["width"]
        if self.augment:
            params = train_params(self.plan(epoch), self.augment, runs(spans), *sizes, image_size, sample_ids)
            params |= step_arrays(params, self.augment, image_size)
        else:
            params = centre_crop_params(*sizes, image_size, self.resize_size(image_size))
        labels, begin = rows["label"].astype(np.int64), 0
        for span in spans:
            part = slice(begin, begin := begin + span.count)
            arrays = {name: values[part] for name, values in params.items()}
            yield PlannedBatch(span, sample_ids[part], labels[part], arrays)

    def sample_ids(self, epoch: int, spans: list[Span]) -> np.ndarray:
        """The samples at some of this rank's spans, one after the other: (n,) int64.

        With repeated augmentation a global batch is one run of the epoch's order, repeated `repeats` times. Copies of
        an image thus lie a whole run apart, so that mixup does not mix an image with itself.
        """
        places = np.concatenate([np.arange(span.start, span.start + span.count) for span in spans])
        if self.augment and self.augment.repeats > 1:
            distinct = self.global_batch_size // self.augment.repeats
            batch, place = divmod(places, self.global_batch_size)
            places = batch * distinct + place % distinct
        return self._ids_at(epoch, places)

    def _ids_at(self, epoch: int, places: np.ndarray) -> np.ndarray:
        ids = self.plan(epoch).ids_at(places)
        return ids if self.chosen is None else self.chosen[ids]

    def batches(self, epoch: int, position: int, image_size: int, done: int = 0) -> Iterator[PlannedBatch]:
        """This rank's batches from a position on, except those that end at `done` or before it."""
        spans = (span for span in self.spans(position) if span.end > done)
        while run := list(islice(spans, -(-_PLANNED_AT_ONCE // self.batch_size))):
            yield from self._planned(epoch, run, image_size)

    @property
    def window_size(self) -> int:
        """The samples of a window of `block` order, or of as many windows as a round of batches needs."""
        window = self.config.block_size * self.config.window_blocks
        return -(-self.batch_size * self.world_size // window) * window

    def windows(self, epoch: int, position: int, done: int = 0) -> Iterator[np.ndarray]:
        """The samples that the ranks of this machine need for `batches`, by windows of `window_size` places of the
        order: (n,) int64 each, without duplicates in a window."""
        stride, local = self.batch_size * self.world_size, self.local_world_size or self.world_size
        whole = self.global_batch_size if self.augment else 1  # only whole global batches are read
        copies = self.augment.repeats if self.augment else 1
        end = (position + (self.num_samples - position) // whole * whole) // copies
        done = max(position, done)
        begin = done if copies == 1 else done // whole * (whole // copies)
        for start in range(begin // self.window_size * self.window_size, end, self.window_size):
            order = np.arange(max(start, begin), min(start + self.window_size, end))  # places in the epoch's order
            places = order[:, None]
            if copies > 1:  # as in `sample_ids`
                batch, place = divmod(places, whole // copies)
                places = batch * whole + place + np.arange(copies) * (whole // copies)
            ranks = (places - position) % stride // self.batch_size
            yield self._ids_at(epoch, order[(ranks // local == self.rank // local).any(axis=1)])

    def resize_size(self, image_size: int) -> int:
        """The length to which validation resizes the shorter side before it crops `image_size`, in pixels."""
        return round(image_size * self.config.val_resize_size / self.config.val_image_size)
