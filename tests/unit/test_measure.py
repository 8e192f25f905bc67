"""How benchmarks are timed, with fake programs and a fake clock."""

import math
import os
import statistics
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from penstock.benchmarks import measure, noise, record, throughput
from penstock.benchmarks.measure import Ratio, Sample
from penstock.benchmarks.ranks import Together
from penstock.recipes import hardware
from penstock.training.distributed import World


class Clock:
    """Seconds that pass only while a fake program runs."""

    def __init__(self) -> None:
        self.now = 0.0
        self.turns: list[str] = []

    def __call__(self) -> float:
        return self.now


class Fake:
    """A program whose turns have given rates, the last of them for ever."""

    def __init__(self, name: str, clock: Clock, rates: list[float]) -> None:
        self.name, self.clock, self.rates = name, clock, rates
        self.lengths: list[float] = []

    def run(self, seconds: float) -> Sample:
        self.clock.now += seconds
        self.clock.turns.append(self.name)
        self.lengths.append(seconds)
        rate = self.rates[min(len(self.lengths), len(self.rates)) - 1]
        return Sample(rate, 0.25)

    def close(self) -> None:
        pass


def test_warm_up_goes_on_until_the_rate_is_steady() -> None:
    clock = Clock()
    assert measure.warm_up(Fake("flat", clock, [100.0]), clock=clock) == [100] * 3
    slow_start = [10.0, 50, 80, 97, 100, 101, 99]
    assert measure.warm_up(Fake("a", clock, slow_start), clock=clock) == slow_start
    rising = [100.0, 101, 102, 103, 104, 104]  # within 5 %, but still rising
    assert measure.warm_up(Fake("b", clock, rising), clock=clock) == rising
    uneven = [100.0, 120, 100, 120, 101, 100, 102, 99]
    assert measure.warm_up(Fake("c", clock, uneven), clock=clock) == uneven[:-1]


def test_warm_up_ends_at_the_limit_with_a_warning() -> None:
    clock = Clock()
    for_ever = Fake("for ever", clock, [100.0 + turn for turn in range(1000)])
    with pytest.warns(measure.Unsteady, match="for ever: not steady after 5 s.*108, 109, 110"):
        rates = measure.warm_up(for_ever, turn_s=0.5, limit_s=5, clock=clock)
    assert len(rates) == 11, "the first turn builds and compiles, so it does not count towards the limit"


def test_who_waits_for_launches_is_told() -> None:
    """0.04 and 0.1 steps: compiled ResNet-50 on an H200, with DALI and without. The other samples are invented."""
    samples = {
        "launching": [Sample(5082, 0.03, ahead) for ahead in (0.04, 0.1, 0.9)],
        "computing": [Sample(6146, 0.0, ahead) for ahead in (1.1, 0.98, 1.2)],
        "waiting for data": [Sample(3000, 0.5, 0.1)] * 3,
        "on the CPU": [Sample(30, 0.0)] * 3,
    }
    (line,) = throughput.launch_warnings(samples)
    assert line.startswith(
        "launching: launching kernels may be the limit: the CPU is only 0.10 steps ahead of the GPU."
    )


class Launching(Fake):
    def run(self, seconds: float) -> Sample:
        return super().run(seconds)._replace(data_wait=0.0, ahead=0.05)


@pytest.mark.parametrize("kind", ["train", "compute", "loader"])
def test_a_result_says_how_far_the_cpu_was_ahead(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It also warns, except for a loader alone, which has no steps."""
    monkeypatch.setattr(record.environment, "describe", dict)  # which starts programs
    world = World(0, 0, 1, 1, torch.device("cpu"))
    setup: Any = SimpleNamespace(world=world, settings={})
    built = [Together(Launching("a", Clock(), [100.0]), world), Fake("b", Clock(), [100.0])]
    result = throughput.time_programs(kind, built, setup, 0.01, 2, {})
    assert result.programs["a"].ahead == [0.05] * 2
    assert result.programs["b"].ahead is None
    assert sum("launching kernels" in line for line in result.warnings) == (kind != "loader")


def test_programs_are_repeated_in_turn() -> None:
    clock = Clock()
    programs = [Fake("a", clock, [100.0]), Fake("b", clock, [50.0])]
    samples = measure.in_turn(programs, seconds=4, repeats=3, clock=clock)
    assert clock.turns == list("aaabbb") + list("ababab")
    assert samples == {"a": [Sample(100, 0.25)] * 3, "b": [Sample(50, 0.25)] * 3}
    assert programs[0].lengths == [1] * 3 + [4] * 3, "turns of a second, then repeats"
    uneven = Fake("uneven", clock, [100.0, 200] * 1000)
    with pytest.warns(measure.Unsteady, match="after 2 s"):
        measure.in_turn([uneven], seconds=0.2, repeats=1, clock=clock)


def test_a_ratio_is_taken_repeat_by_repeat() -> None:
    drift = np.array([1.0, 0.5, 2.0, 0.8, 1.3])
    found = measure.ratio(300 * drift, 200 * drift)
    assert found == pytest.approx(Ratio(1.5, 1.5, 1.5, 1.5, 1.5))
    ours, theirs = [4.0, 9, 2], [2.0, 3, 2]
    assert measure.ratio(ours, theirs) == Ratio(2, 1, 3, 1, 3), "three repeats: the interval is the range"
    with pytest.raises(ValueError, match="zip"):
        measure.ratio([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="at least one"):
        measure.ratio([], [])


def test_the_interval_covers_the_true_ratio_and_is_reproducible() -> None:
    rng = np.random.default_rng(1)
    covered, narrower = 0, 0
    for _ in range(300):
        ours, theirs = (rate * rng.lognormal(0, 0.05, 20) for rate in (150, 100))
        found = measure.ratio(ours, theirs)
        covered += found.low <= 1.5 <= found.high
        narrower += found.min < found.low < found.median < found.high < found.max
    # of 20 repeats it covers 0.943 of 1,500 simulations; 3 standard deviations of 300 are 0.04
    assert abs(covered / 300 - 0.943) < 0.04
    assert narrower > 290
    assert measure.ratio(ours, theirs) == found


def test_a_spread_is_told() -> None:
    lines = noise.spread_warnings({"quiet": [95, 100, 104], "noisy": [90, 100, 112]})
    assert len(lines) == 1
    assert lines[0].startswith("noisy: the repeats differ by 22%")


def test_other_processes_are_told_from_our_own() -> None:
    before, after = noise.CpuTime(0, 0, 0), noise.CpuTime(1000, 700, 500)
    assert noise.others_share(before, after) == pytest.approx(0.2)
    assert noise.others_share(before, noise.CpuTime(1000, 500, 510)) == 0, "ticks are rounded"


def test_a_watch_tells_what_it_saw(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = iter([noise.CpuTime(0, 0, 0), noise.CpuTime(1000, 900, 500)])
    periods = iter([3, 10])
    monkeypatch.setattr(noise, "cpu_time", lambda: next(seen))
    monkeypatch.setattr(noise, "throttled_periods", lambda: next(periods))
    with noise.watched() as lines:
        warnings.warn("not steady", measure.Unsteady, stacklevel=1)
    assert len(lines) == 3
    assert lines[0] == "not steady"
    assert "other processes used 40%" in lines[1]
    assert "in 7 periods" in lines[2]


def test_throttling_is_read_from_every_control_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tmp_path / "a/b"
    inner.mkdir(parents=True)
    own = tmp_path / "own"
    own.write_text("12:memory:/x\n0::/a/b\n")
    assert hardware.cgroup_folders(tmp_path, own) == [inner, tmp_path / "a", tmp_path]
    (tmp_path / "cpu/a").mkdir(parents=True)
    own.write_text("3:cpu,cpuacct:/a\n")
    assert hardware.cgroup_folders(tmp_path, own) == [tmp_path / "cpu/a", tmp_path / "cpu"]

    (inner / "cpu.stat").write_text("usage_usec 7\nnr_periods 100\nnr_throttled 4\n")
    (tmp_path / "a/cpu.stat").write_text("nr_throttled 2\n")
    (inner / "cpu.max").write_text("300000 100000\n")
    (tmp_path / "a/cpu.max").write_text("150000 100000\n")
    folders = [inner, tmp_path / "a", tmp_path]
    monkeypatch.setattr(noise, "cgroup_folders", lambda: folders)
    monkeypatch.setattr(hardware, "cgroup_folders", lambda: folders)
    assert noise.throttled_periods() == 6
    assert hardware.quota_cores() == 1.5
    assert hardware.cores_allowed() == min(1.5, len(os.sched_getaffinity(0)))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{", "not JSON"),
        ("[1]", "not a result"),
        ('{"images_per_s": 3}', "not a result"),
        ('{"format": 1}', "has format 1"),
        ('{"format": 2, "benchmark": "loader"}', "not a result.*'command'"),
    ],
)
def test_what_is_no_result_is_named(text: str, what: str, tmp_path: Path) -> None:
    file = tmp_path / "odd.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=what) as raised:
        record.read(file)
    assert str(raised.value).startswith(str(file))
    with pytest.raises(ValueError, match="cannot be read"):
        record.read(tmp_path / "none.json")


def test_steady_is_what_it_says() -> None:
    rng = np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(50):
            clock = Clock()
            rates = measure.warm_up(Fake("x", clock, (100 * rng.lognormal(0, 0.01, 40)).tolist()), clock=clock)
            last = rates[-3:]
            assert max(abs(rate / statistics.median(last) - 1) for rate in last) <= 0.05
            assert not last[0] < last[1] < last[2]
            assert math.isclose(clock.now, len(rates))
