"""Log a run's figures to `metrics.jsonl` and the terminal, one interval of steps at a time."""

import math

from torch import nn

from penstock.training.data import TrainingData
from penstock.training.failure import Failure
from penstock.training.learner import RunState
from penstock.training.metrics import MetricsLog
from penstock.training.progress import Progress
from penstock.training.records import StepLine
from penstock.training.run_clock import RunClock
from penstock.training.step import Step
from penstock.training.step_log import StepLog


class RunLog:
    """Records each step, and closes an interval when the recipe, the time budget, a checkpoint or a stop requires it.

    It also checks each closed interval. A NaN or infinite loss or weight ends the run with a ValueError that names the
    step (`Failure`). On a GPU this happens one interval later, so that nothing waits for the device.
    """

    def __init__(
        self, steps: StepLog, metrics: MetricsLog, progress: Progress, failure: Failure, clock: RunClock,
        data: TrainingData, net: nn.Module, epochs: int,
    ) -> None:  # fmt: skip
        self._steps, self._metrics, self._progress, self._failure = steps, metrics, progress, failure
        self._clock, self._data, self._net, self._epochs = clock, data, net, epochs

    def start(self, state: RunState) -> None:
        """Call this before the first step of an epoch or of the rest of one. The current state counts as good."""
        self._steps.restart(global_batch_size=self._data.global_batch_size, epoch_digest=state.epoch_digest)
        self._failure.all_is_well()

    def add(self, state: RunState, step: Step, lr: float) -> None:
        """Add the step that led to `state`."""
        self._steps.add(step=state.step - 1, epoch=state.epoch, position=state.position, loss=step.loss, lr=lr,
                        sample_ids=step.sample_ids, grad_norm=step.grad_norm)  # fmt: skip

    def is_due(self, state: RunState) -> bool:
        return self._steps.is_full or self._clock.budget.is_due(state.step)

    def flush(self, state: RunState, wait: bool = True) -> None:
        """End the interval of steps and write it: now, or on a GPU without `wait` when the next one ends."""
        self._write(state, self._steps.take())
        if self._steps.num_steps:
            self._steps.close()
            state.epoch_digest = self._steps.epoch_digest
            self._failure.keep(self._net)
        if wait or not self._steps.is_deferred:
            self._write(state, self._steps.take())

    def _write(self, state: RunState, lines: list[StepLine]) -> None:
        if not lines:
            return
        for line in lines:
            self._metrics.step(**line)
            if not math.isfinite(line["loss"]):
                raise self._failed(state, f"the loss is {line['loss']}", line)
        if not self._failure.is_well():
            raise self._failed(state, "the weights are NaN or infinite", lines[-1])
        last = lines[-1]
        remaining = self._clock.trained(state, len(lines), asked_for=state.step - last["step"] - 1)
        self._progress.update(last, total_steps=state.step + remaining.steps, remaining_s=remaining.seconds,
                              schedule=state.schedule_epoch / self._epochs if state.is_fitted else None,
                              decoded=self._data.decoded)  # fmt: skip

    def _failed(self, state: RunState, why: str, line: StepLine) -> ValueError:
        return self._failure.error(self._data.feed, why, step=line["step"], epoch=state.epoch, end=line["position"])
