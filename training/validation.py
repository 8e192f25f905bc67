"""The scores of a run: its validations, and the test split at its end."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from torch import nn

from pipeline.batch import Batch, Loader
from recipes import Recipe
from shards.format import ShardSet
from training import distributed
from training.data import eval_loader
from training.distributed import World
from training.evaluate import evaluate
from training.failure import SMALLER, out_of_memory
from training.learner import RunState
from training.metrics import MetricsLog
from training.pictures import show_worst
from training.progress import Progress
from training.results import described
from training.saver import Saver
from training.watchdog import Watchdog


class Validation:
    """Scores the networks of a run, and writes what comes of it.

    nets: as `evaluate` takes them. loader: of the validation split, or None where there is none. at_most: images of a
    split that are scored, 0 for all.
    """

    def __init__(
        self, nets: dict[str, nn.Module], loader: Loader | None, recipe: Recipe, dataset: ShardSet, world: World,
        autocast: AbstractContextManager[Any], metrics: MetricsLog, progress: Progress, watch: Watchdog, saver: Saver,
        at_most: int,
    ) -> None:  # fmt: skip
        self.loader, self._nets, self._recipe, self._dataset, self._world = loader, nets, recipe, dataset, world
        self._autocast, self._metrics, self._progress, self._watch = autocast, metrics, progress, watch
        self._saver, self._at_most = saver, at_most
        self._seen: dict[str, Any] = {}

    def is_missing(self, at: RunState) -> bool:
        """Whether there is a validation split, and the state as it is was not scored on it."""
        return self.loader is not None and not at.is_validated_on(self.loader.feed.num_samples)

    def validate(self, at: RunState) -> bool:
        """Score the validation split; a checkpoint of this step is there already. Returns whether these are the best
        figures so far. Raises Interrupted where the run is asked to stop."""
        assert self.loader is not None
        self._watch.at("validation", at.step)
        distributed.broadcast_buffers(self._nets.values())
        figures, self._seen = self._score(self.loader, "validation", at)
        self._metrics.eval(step=at.step, epoch=at.epoch, position=at.position, **figures)
        self._progress.print(f"step {at.step}: {described(figures)}")
        return at.validated(figures)

    def show(self, at: RunState, run_dir: Path) -> None:
        """Pictures of what the last validation got wrong."""
        assert self.loader is not None
        if self._world.is_main:
            show_worst(run_dir, self._metrics, self._dataset, self.loader.feed, self._seen, at.step)

    def test(self, at: RunState) -> None:
        """Score the test split, this once. Raises as `validate`."""
        split = self._recipe.data.test_split
        loader = eval_loader(self._recipe, self._dataset, self._world, split, at_most=self._at_most)
        figures, _ = self._score(loader, "test split", at)
        loader.close()
        self._metrics.eval(kind="test", step=at.step, epoch=at.epoch, position=at.position, **figures)
        self._progress.print(f"test split: {described(figures)}")

    def _score(self, loader: Loader, stage: str, at: RunState) -> tuple[dict[str, Any], dict[str, Any]]:
        def watched(batches: Iterator[Batch]) -> Iterator[Batch]:
            return self._progress.each(self._watch.each(batches, stage), stage, loader.feed)

        try:
            with out_of_memory():
                scored = evaluate(self._nets, loader, self._world.device, self._autocast,
                                  num_classes=len(self._dataset.classes), flip=self._recipe.train.val_flip,
                                  should_stop=self._saver.stop.agreed, watched=watched)  # fmt: skip
        except MemoryError as error:
            raise ValueError(f"step {at.step}, {stage}: out of memory ({error}); {SMALLER}") from None
        if scored is None:
            raise self._saver.interrupted()
        return scored

    def close(self) -> None:
        if self.loader is not None:
            self.loader.close()
