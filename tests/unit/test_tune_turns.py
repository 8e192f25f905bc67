"""`bench.py tune` on a fake clock: it keeps its time budget, and tries many candidates within it."""

import itertools
from typing import Any

import pytest

from penstock.benchmarks import tune
from penstock.benchmarks.measure import Sample
from penstock.benchmarks.options import TUNE_TURNS
from penstock.benchmarks.tune import Turns

LADDERS = {"threads": [1, 2, 3, 4], "prefetch": [1, 2, 3, 4, 6], "read_ahead": [0, 2, 4, 8, 16]}
START = {"threads": 2, "prefetch": 2, "read_ahead": 4}


class Machine:
    """Time passes while programs are built (`build_s`) and run. A run takes `beside_s` longer than requested."""

    def __init__(self, build_s: float, beside_s: float) -> None:
        self.now, self.build_s, self.beside_s = 0.0, build_s, beside_s
        self.open: list[Any] = []
        self.begun: list[str] = []

    def clock(self) -> float:
        return self.now

    def build(self, settings: tune.Settings) -> Any:
        return Fake(self, settings)


class Fake:
    def __init__(self, machine: Machine, settings: tune.Settings) -> None:
        self.name, self._machine, self._is_new = str(settings), machine, True
        # threads count most, prefetch a little, read_ahead nothing
        self._rate = 100.0 * {1: 0.6, 2: 1, 3: 1.1, 4: 0.95}[settings["threads"]] * (1 + settings["prefetch"] / 50)
        self._drift = itertools.cycle([1.0, 1.01, 0.99])
        machine.open.append(self)

    def run(self, seconds: float) -> Sample:
        self._machine.begun.append(self.name)
        self._machine.now += seconds + self._machine.beside_s + self._is_new * self._machine.build_s
        self._is_new = False
        return Sample(self._rate * next(self._drift))

    def close(self) -> None:
        self._machine.open.remove(self)


def searched(machine: Machine, seconds: float) -> tune.Found:
    turns = Turns(machine.build, machine.clock, seconds=1.0, number=TUNE_TURNS)
    turns.deadline, turns.most_s = seconds, tune.TRIAL_SHARE * seconds
    return tune.search(START, LADDERS, turns)


@pytest.mark.parametrize("seconds", [30, 60, 120, 300])
@pytest.mark.parametrize(("build_s", "beside_s"), [(1.0, 0.5), (3.0, 1.5), (0.1, 0.0)])
def test_the_budget_holds(seconds: float, build_s: float, beside_s: float) -> None:
    machine = Machine(build_s, beside_s)
    found = searched(machine, seconds)
    assert machine.now <= 1.1 * seconds
    assert found.finished or machine.now > 0.5 * seconds, "no time is left unused"
    assert not machine.open
    assert found.trials


def test_the_budget_holds_where_the_machine_gets_busier() -> None:
    machine = Machine(build_s=0.0, beside_s=1.0)
    turns = Turns(machine.build, machine.clock, seconds=1.0, number=1)
    assert list(turns(START, START))
    machine.beside_s, turns.deadline = 1.4, machine.now + 4.7  # a turn of 4 s is now one of 4.8 s
    assert not list(turns(START, START))
    turns.deadline = machine.now + 5.1
    assert list(turns(START, START))
    assert machine.now <= turns.deadline


def test_a_minute_is_enough_for_several_candidates() -> None:
    """A loader at 500 images/s, 256 images a batch: before each turn one is waited for and thrown away."""
    machine = Machine(build_s=1.5, beside_s=0.8)
    found = searched(machine, 60)
    assert len(found.trials) >= 4
    assert found.settings["threads"] == 3, "what counts most is found first"
    slow = searched(Machine(build_s=1.5, beside_s=2.5), 60)  # a machine that others use too
    assert len(slow.trials) >= 4


def test_a_clear_loser_costs_one_short_turn() -> None:
    machine = Machine(0.0, 0.0)
    turns = Turns(machine.build, machine.clock, seconds=1.0, number=5)
    found = tune.search({**START, "threads": 2}, {"threads": [1, 2]}, turns)
    (trial,) = found.trials
    assert (trial.turns, trial.accepted, trial.decided) == (1, False, True)
    assert machine.now == pytest.approx(2 * 0.25), "a quarter of a turn of both"


def test_turns_grow_and_who_begins_changes() -> None:
    machine = Machine(0.0, 0.0)
    turns = Turns(machine.build, machine.clock, seconds=1.0, number=4)
    ends = []
    for _ in turns(START, START | {"threads": 3}):
        ends.append(machine.now)
    assert [b - a for a, b in itertools.pairwise([0.0, *ends])] == pytest.approx([0.5, 1, 2, 2])
    ours, theirs = str(START), str(START | {"threads": 3})
    assert machine.begun == [ours, theirs, theirs, ours, ours, theirs, theirs, ours]


def test_larger_batches_take_longer() -> None:
    """What lies beside a turn is batches: of twice as many images it is twice as long."""
    machine = Machine(0.0, 0.0)

    def build(settings: tune.Settings) -> Any:
        machine.beside_s = settings["batch_size"] / 100
        return Fake(machine, settings | START)

    turns = Turns(build, machine.clock, seconds=1.0, number=1)
    assert list(turns({"batch_size": 100}, {"batch_size": 100}))
    turns.deadline = machine.now + 5.1
    assert not list(turns({"batch_size": 200}, {"batch_size": 200})), "2 × 1 s and 2 × 2 s"
    assert list(turns({"batch_size": 100}, {"batch_size": 100}))


def test_however_short_the_time_one_turn_is_made() -> None:
    machine = Machine(10.0, 1.0)
    found = searched(machine, 1)
    (trial,) = found.trials
    assert not trial.decided
    assert tune.outcome(trial) == ", undecided (out of time)"
    assert not found.finished
