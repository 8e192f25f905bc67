"""Save a run's checkpoints, and stop the run after a signal."""

from penstock.training import distributed
from penstock.training.checkpoint import About, Writer
from penstock.training.distributed import Interrupted
from penstock.training.learner import Learner, RunState, capture
from penstock.training.metrics import MetricsLog
from penstock.training.run_clock import RunClock
from penstock.training.setup import Setup


class Saver:
    """Writes checkpoints of a learner, together with the facts that do not change in a run (`about`)."""

    def __init__(
        self, setup: Setup, writer: Writer, learner: Learner, about: About, metrics: MetricsLog, clock: RunClock
    ) -> None:
        self.writer = writer
        self._setup, self._learner, self._about, self._metrics, self._clock = setup, learner, about, metrics, clock

    def save(self, state: RunState, is_best: bool = False) -> None:
        self._setup.watch.begin("checkpoint", state.step)
        state.elapsed_s = self._clock.elapsed_s()
        self._metrics.sync()
        self.writer.save(state.step, {**capture(self._learner, state), **self._about}, is_best)

    def interrupted(self) -> Interrupted:
        """The exception to raise on all ranks. It waits until the checkpoint is on disk, because the launcher may end
        all ranks when the first one exits."""
        self.writer.wait()
        distributed.barrier()
        return Interrupted(self._setup.stop.signal or "SIGTERM")
