"""The time of a run: how much has passed, how much is left, and how fast the schedule must go."""

import time

from penstock.training.budget import Budget, Remaining
from penstock.training.distributed import World, from_rank_0
from penstock.training.learner import RunState


class RunClock:
    """Measures the seconds of the whole run, over its restarts. With --max-minutes, all ranks use rank 0's clock and
    the schedule goes at the pace that the time allows.

    began: when this command began, by `time.perf_counter`. before_s: the duration of the run before that.
    """

    def __init__(self, budget: Budget, world: World, *, began: float, before_s: float) -> None:
        self.budget, self._world, self._began, self._before_s = budget, world, began, before_s

    def elapsed_s(self) -> float:
        elapsed = self._before_s + self.command_s()
        return from_rank_0(elapsed, self._world) if self.budget.is_limited else elapsed

    def command_s(self) -> float:
        """Seconds since this command began, by this rank's clock."""
        return time.perf_counter() - self._began

    def trained(self, state: RunState, steps: int, asked_for: int) -> Remaining:
        """Record that `steps` more are done and `asked_for` are queued. Set the pace, and return the remaining work."""
        now = self.elapsed_s()
        self.budget.trained(state, steps, now, asked_for=asked_for)
        state.pace = self.budget.pace(state, now)
        return self.budget.remaining(state, now)

    def validated(self, state: RunState, since_s: float) -> None:
        """Record a validation that began when `elapsed_s` was `since_s`."""
        now = self.elapsed_s()
        self.budget.validated(now - since_s, now)
        state.pace = self.budget.pace(state, now)

    def affords_validation(self, state: RunState) -> bool:
        return self.budget.affords_validation(state, self.elapsed_s())
