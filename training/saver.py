"""When a run's checkpoints are written, and how it stops."""

from typing import Any

from training import distributed
from training.checkpoint import Writer
from training.distributed import Interrupted, StopFlag
from training.learner import Learner, RunState, capture
from training.metrics import MetricsLog
from training.run_clock import RunClock
from training.watchdog import Watchdog


class Saver:
    """Writes checkpoints of a learner with what does not change in a run (`about`)."""

    def __init__(
        self, writer: Writer, learner: Learner, about: dict[str, Any], metrics: MetricsLog, clock: RunClock,
        watch: Watchdog, stop: StopFlag,
    ) -> None:  # fmt: skip
        self.writer, self.stop = writer, stop
        self._learner, self._about, self._metrics, self._clock, self._watch = learner, about, metrics, clock, watch

    def save(self, at: RunState, is_best: bool = False) -> None:
        self._watch.at("checkpoint", at.step)
        at.elapsed_s = self._clock.elapsed_s()
        self._metrics.sync()
        self.writer.save(at.step, capture(self._learner, at) | self._about, is_best)

    def interrupted(self) -> Interrupted:
        """To raise on all ranks. The launcher may end them when the first is gone: not before the checkpoint is on
        disk."""
        self.writer.wait()
        distributed.barrier()
        return Interrupted(self.stop.signal or "SIGTERM")
