"""What `bench.py tune` does: search the loader's settings on this machine, and write the best as TOML.

A coordinate search: each setting climbs its ladder from where it stands, up while that pays, else down. A candidate is
measured in turn with the incumbent, since a machine's speed drifts, and replaces it only where it is faster by
`MIN_GAIN` in the median and faster at all in every turn but one. It is given up as soon as it cannot become that, or is
clearly slower in a first short turn, and taken at once where three turns agree. Rounds go over all settings until one
changes nothing, or the time is spent. Then the loader's best batch size is looked for in the same way, which is only
told: in training it is the recipe's.
"""

import statistics
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Any

from benchmarks import programs
from benchmarks.measure import Program
from benchmarks.options import TUNE_TURNS, Opened
from benchmarks.ranks import Together, shared_clock
from benchmarks.text import shown_rate
from benchmarks.turns import Settings, Turns
from pipeline.build import threads_per_rank
from recipes import config
from recipes.machine import Machine
from training import distributed

MIN_GAIN = 1.03
HOPELESS = 0.75  # of the incumbent, in the first turn
AGREED = 3  # turns that are all above MIN_GAIN
BATCH_SIZES = [16, 32, 64, 128, 256, 512]
BATCH_SHARE = 0.2  # of the time, for the batch size; what the settings leave comes to it
TRIAL_SHARE = 0.2  # of the time, at most, for one trial

Versus = Callable[[Settings, Settings], Iterator[tuple[float, float]]]


@dataclass(frozen=True)
class Trial:
    """A candidate beside the incumbent, one setting changed: medians over the turns, of both rates and their ratio.
    decided: False where its time was up before that."""

    setting: str
    value: Any
    images_per_s: float
    incumbent_images_per_s: float
    ratio: float
    accepted: bool
    turns: int
    decided: bool


@dataclass
class Found:
    """The best settings, what was measured on the way, and whether the search ended by itself or for lack of time."""

    settings: Settings
    trials: list[Trial] = field(default_factory=list)
    finished: bool = False


def ladders(num_cores: int, on_gpu: bool) -> dict[str, list[Any]]:
    """The values of each setting that are worth a try, rising. Threads beyond the cores pay where threads wait."""
    threads = sorted({1, max(1, num_cores // 2), max(1, num_cores * 3 // 4), num_cores, num_cores + 1, num_cores * 2})
    found: dict[str, list[Any]] = {"threads": threads, "prefetch": [1, 2, 3, 4, 6], "read_ahead": [0, 2, 4, 8, 16]}
    if on_gpu:
        found["hw_decoder_load"] = [0.0, 0.25, 0.5, 0.65, 0.8, 0.9, 1.0]
    return found


def search(
    start: Settings,
    ladders: dict[str, list[Any]],
    versus: Versus,
    report: Callable[[Trial], None] = lambda trial: None,
    turns: int = TUNE_TURNS,
) -> Found:
    """Search from `start`.

    Args:
        versus: two settings in turn: (first, second) images/s of each turn, as many as are asked for; it ends when the
            time does.
        report: told of each trial.
        turns: of a trial at the most.
    """
    found = Found(dict(start))
    known: set[tuple[tuple[str, Any], ...]] = {tuple(sorted(start.items()))}
    changed = True
    while changed:
        changed = False
        for name, values in ladders.items():
            values = sorted({*values, found.settings[name]})
            for step in (1, -1):
                climbed = False
                while 0 <= (place := values.index(found.settings[name]) + step) < len(values):
                    candidate = found.settings | {name: values[place]}
                    if tuple(sorted(candidate.items())) in known:
                        break
                    known.add(tuple(sorted(candidate.items())))
                    trial = _trial(name, values[place], versus(candidate, found.settings), turns)
                    if trial is None:
                        return found
                    found.trials.append(trial)
                    report(trial)
                    if not trial.accepted:
                        break
                    found.settings, climbed = candidate, True
                changed |= climbed
                if climbed:
                    break  # what lies below is where it came from
    found.finished = all(trial.decided for trial in found.trials)
    return found


def _trial(name: str, value: Any, measured: Iterator[tuple[float, float]], turns: int) -> Trial | None:
    """None where there was no time for a single turn."""
    pairs: list[tuple[float, float]] = []
    accepted = None
    while accepted is None and (pair := next(measured, None)):
        pairs.append(pair)
        accepted = verdict([a / b for a, b in pairs], turns)
    if isinstance(measured, Generator):
        measured.close()
    if not pairs:
        return None
    ours, theirs, ratio = (statistics.median(one) for one in zip(*((a, b, a / b) for a, b in pairs), strict=True))
    return Trial(name, value, ours, theirs, ratio, bool(accepted), len(pairs), accepted is not None)


def verdict(ratios: Sequence[float], turns: int) -> bool | None:
    """Whether a candidate with these ratios to the incumbent is taken, of `turns` at the most; None: not known yet."""
    slower, small = (sum(ratio <= bound for ratio in ratios) for bound in (1, MIN_GAIN))
    if slower > min(1, turns - 1) or 2 * small > turns or ratios[0] < HOPELESS:
        return False
    if len(ratios) >= AGREED and min(ratios) > MIN_GAIN:
        return True
    return statistics.median(ratios) > MIN_GAIN if len(ratios) >= turns else None


def search_machine(
    on: Opened, seconds: float, turn_s: float, number: int, report: Callable[[Trial], None]
) -> tuple[Found, Found]:
    """Search the loader's settings, then its batch size, `seconds` in all, in turns of `turn_s`. Over several ranks a
    rate is that of all of them."""
    recipe, world = on.recipe, on.world
    clock = shared_clock(world) if world.world_size > 1 else monotonic
    end = clock() + distributed.from_rank_0(seconds, world)

    def built(settings: Settings) -> Program:
        data = {name: value for name, value in settings.items() if name != "batch_size"}
        changed = replace(recipe, data=replace(recipe.data, **data))
        batch_size = settings.get("batch_size", on.batch_size)
        program = programs.build("loader", "dali", changed, on.dataset, world, batch_size)
        program.settle_batches = changed.data.prefetch + 1  # what lies decoded, and the one under way
        return Together(program, world) if world.world_size > 1 else program

    turns = Turns(built, clock, seconds=turn_s, number=number, batch_size=on.batch_size)
    turns.deadline, turns.most_s = end - BATCH_SHARE * seconds, TRIAL_SHARE * seconds
    values = ladders(threads_per_rank(0, world.local_world_size), world.device.type == "cuda")
    start = {name: getattr(recipe.data, name) for name in values} | {"threads": on.threads}
    found = search(start, values, turns, report, number)
    turns.deadline = end
    start = found.settings | {"batch_size": on.batch_size}
    return found, search(start, {"batch_size": BATCH_SIZES}, turns, report, number)


def batch_advice(found: Found, batch_size: int) -> str:
    """A line about the loader's best batch size beside the one that was given."""
    best = found.settings["batch_size"]
    if best == batch_size:
        tried = ", ".join(str(trial.value) for trial in found.trials if trial.decided)
        if not tried:
            return f"batch size: {batch_size}; there was no time to decide on another"
        return f"batch size: {batch_size}; of others ({tried} tried) none is faster in the loader"
    gain = statistics.median([trial.ratio for trial in found.trials if trial.value == best])
    return (
        f"batch size: {best} is {gain:.2f} times as fast in the loader as the one before; it is the recipe's to choose"
    )


def outcome(trial: Trial) -> str:
    """How a trial ended, to stand behind its figures."""
    if not trial.decided:
        return ", undecided in its time"
    return ", taken" if trial.accepted else ""


def options(settings: Settings) -> str:
    """The same settings on a command line."""
    names = {name: f"--set data.{name}=" if name != "batch_size" else "--batch-size " for name in settings}
    return " ".join(f"{names[name]}{value}" for name, value in settings.items())


def to_toml(found: Found, machine: Machine, about: dict[str, Any]) -> str:
    """The file, as `recipes.machine` reads it; as comments, how it came about."""
    lines = [
        "The fastest settings of the loader that `bench.py tune` found on one machine. train.py and bench.py take them",
        "on that machine where this file is machine.toml of the working directory. Elsewhere:",
        f"  {options(found.settings)}",
        "",
        *(f"{name}: {value}" for name, value in about.items()),
        f"search: {'ended by itself' if found.finished else 'ended for lack of time; more --seconds may find more'}",
        f"trials: {len(found.trials)}, each in turn with the incumbent, and taken above {MIN_GAIN:g}",
        "",
        *(
            f"{t.setting} = {t.value}: {shown_rate(t.images_per_s)} images/s, {t.ratio:.3f} times the "
            f"{shown_rate(t.incumbent_images_per_s)} before{outcome(t)}"
            for t in found.trials
        ),
    ]
    header = "".join(f"# {line}".rstrip() + "\n" for line in lines)
    data = "".join(f"{name} = {value}\n" for name, value in found.settings.items())
    return f"{header}\n[machine]\n{config.to_toml(machine)}\n[data]\n{data}"
