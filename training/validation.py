"""Score the networks of a run: its validations, and the test split at its end."""

from collections.abc import Iterator

from penstock.pipeline.batch import Batch, Loader
from penstock.training import distributed
from penstock.training.data import eval_loader
from penstock.training.evaluate import evaluate
from penstock.training.failure import SMALLER, out_of_memory
from penstock.training.inspection import Inspection
from penstock.training.learner import Learner, RunState
from penstock.training.metrics import MetricsLog
from penstock.training.pictures import show_worst
from penstock.training.progress import Progress
from penstock.training.records import Scores
from penstock.training.results import described
from penstock.training.saver import Saver
from penstock.training.setup import Setup


class Validation:
    """Scores the networks of a run and logs the results. loader: of the validation split, or None without one."""

    def __init__(
        self, setup: Setup, learner: Learner, loader: Loader | None, metrics: MetricsLog, progress: Progress,
        saver: Saver,
    ) -> None:  # fmt: skip
        self.loader = loader
        self._setup, self._learner, self._metrics, self._progress = setup, learner, metrics, progress
        self._saver = saver
        self._seen: Inspection | None = None

    def is_missing(self, state: RunState) -> bool:
        """Whether there is a validation split on which the current state was not scored yet."""
        return self.loader is not None and not state.is_validated_on(self.loader.feed.num_samples)

    def validate(self, state: RunState) -> bool:
        """Score the validation split. This step must already have a checkpoint. Return whether the scores are the best
        so far. Raises Interrupted if the run is asked to stop."""
        assert self.loader is not None
        self._setup.watch.begin("validation", state.step)
        distributed.broadcast_buffers(self._learner.nets.values())
        figures, self._seen = self._score(self.loader, "validation", state)
        self._metrics.eval(step=state.step, epoch=state.epoch, position=state.position, **figures)
        self._progress.print(f"step {state.step}: validation {described(figures)}")
        return state.validated(figures)

    def show(self, state: RunState) -> None:
        """Write pictures of the images that the last validation got wrong."""
        assert self.loader is not None
        assert self._seen is not None
        if self._setup.world.is_main:
            run_dir, feed = self._setup.claim.run_dir, self.loader.feed
            show_worst(run_dir, self._metrics, self._setup.dataset, feed, self._seen, state.step)

    def test(self, state: RunState) -> None:
        """Score the test split once. Raises as `validate`."""
        setup = self._setup
        loader = eval_loader(setup.recipe, setup.dataset, setup.world, setup.recipe.data.test_split,
                             at_most=setup.max_val_images)  # fmt: skip
        figures, _ = self._score(loader, "test split", state)
        loader.close()
        self._metrics.eval(kind="test", step=state.step, epoch=state.epoch, position=state.position, **figures)
        self._progress.print(f"step {state.step}: test split {described(figures)}")

    def _score(self, loader: Loader, stage: str, state: RunState) -> tuple[Scores, Inspection]:
        setup, learner = self._setup, self._learner

        def watched(batches: Iterator[Batch]) -> Iterator[Batch]:
            return self._progress.each(setup.watch.each(batches, stage), stage, loader.feed)

        try:
            with out_of_memory():
                scored = evaluate(learner.nets, loader, setup.world.device, learner.autocast,
                                  num_classes=len(setup.dataset.classes), flip=setup.recipe.train.val_flip,
                                  should_stop=setup.stop.agreed, watched=watched)  # fmt: skip
        except MemoryError as error:
            raise ValueError(f"step {state.step}, {stage}: out of memory ({error}); {SMALLER}") from None
        if scored is None:
            raise self._saver.interrupted()
        return scored

    def close(self) -> None:
        if self.loader is not None:
            self.loader.close()
