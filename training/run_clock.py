"""The time of a run: how much of it has passed, what is left, and how fast its schedule must go."""

import time

from penstock.training.budget import Budget, Remaining
from penstock.training.distributed import World, from_rank_0
from penstock.training.learner import RunState


class RunClock:
    """Seconds of the whole run, over its restarts. Under --max-minutes all ranks go by rank 0's clock, and the schedule
    keeps the pace that the time allows.

    began: when this command did, by `time.perf_counter`. before_s: what the run had taken by then.
    """

    def __init__(self, budget: Budget, world: World, *, began: float, before_s: float) -> None:
        self.budget, self._world, self._began, self._before_s = budget, world, began, before_s

    def elapsed_s(self) -> float:
        elapsed = self._before_s + self.command_s()
        return from_rank_0(elapsed, self._world) if self.budget.is_limited else elapsed

    def command_s(self) -> float:
        """Of this command, by this rank's clock."""
        return time.perf_counter() - self._began

    def trained(self, state: RunState, steps: int, asked_for: int) -> Remaining:
        """`steps` more are done, `asked_for` are under way: the pace from here, and what is left."""
        now = self.elapsed_s()
        self.budget.trained(state, steps, now, asked_for=asked_for)
        state.pace = self.budget.pace(state, now)
        return self.budget.remaining(state, now)

    def validated(self, state: RunState, since_s: float) -> None:
        """A validation is done that began when `elapsed_s` was `since_s`."""
        now = self.elapsed_s()
        self.budget.validated(now - since_s, now)
        state.pace = self.budget.pace(state, now)

    def affords_validation(self, state: RunState) -> bool:
        return self.budget.affords_validation(state, self.elapsed_s())
