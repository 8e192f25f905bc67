"""What `bench.py tune` does: search the loader's settings on this machine, and write the best as TOML.

A coordinate search: each setting climbs its ladder from where it stands, up while that pays, else down. A candidate is
measured in turn with the incumbent, since a machine's speed drifts, and replaces it only where it is faster by
`MIN_GAIN` in the median and faster at all in every turn but one. Rounds go over all settings until one changes nothing,
or the time is spent. Then the loader's best batch size is looked for in the same way, which is only told: in training
it is the recipe's.
"""

import statistics
import warnings
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Any

from benchmarks import programs
from benchmarks.measure import Program, Unsteady, in_turn
from benchmarks.options import TUNE_TURNS, Opened
from benchmarks.ranks import Together, shared_clock
from engine.machine import Machine
from pipeline.build import threads_per_rank
from training import config

MIN_GAIN = 1.03
HOPELESS = 0.9  # of the incumbent, after two turns: the rest of the turns are saved
BATCH_SIZES = [16, 32, 64, 128, 256, 512]

Settings = dict[str, Any]  # name in [data], or batch_size → value
Versus = Callable[[Settings, Settings, int], list[tuple[float, float]]]


@dataclass(frozen=True)
class Trial:
    """A candidate beside the incumbent, one setting changed: medians over the turns, of both rates and their ratio."""

    setting: str
    value: Any
    images_per_s: float
    incumbent_images_per_s: float
    ratio: float
    accepted: bool


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
    time_left: Callable[[], bool],
    report: Callable[[Trial], None] = lambda trial: None,
    turns: int = TUNE_TURNS,
) -> Found:
    """Search from `start`.

    Args:
        versus: measures two settings in turn so many times: (first, second) images/s of each turn.
        time_left: False once the budget is spent; the trial under way is still counted.
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
                    if not time_left():
                        return found
                    known.add(tuple(sorted(candidate.items())))
                    trial = _trial(found.settings, candidate, name, versus, turns)
                    found.trials.append(trial)
                    report(trial)
                    if not trial.accepted:
                        break
                    found.settings, climbed = candidate, True
                changed |= climbed
                if climbed:
                    break  # what lies below is where it came from
    found.finished = True
    return found


def _trial(incumbent: Settings, candidate: Settings, name: str, versus: Versus, turns: int) -> Trial:
    pairs = versus(candidate, incumbent, min(2, turns))
    if turns > 2 and statistics.median(a / b for a, b in pairs) > HOPELESS:
        pairs += versus(candidate, incumbent, turns - 2)
    ratios = sorted(a / b for a, b in pairs)
    ratio = statistics.median(ratios)
    ours, theirs = (statistics.median(rates) for rates in zip(*pairs, strict=True))
    second_worst = ratios[min(1, len(ratios) - 1)]
    return Trial(name, candidate[name], ours, theirs, ratio, ratio > MIN_GAIN and second_worst > 1)


def search_machine(
    on: Opened, seconds: float, turn_s: float, turns: int, report: Callable[[Trial], None]
) -> tuple[Found, Found]:
    """Search the loader's settings, then its batch size, `seconds` in all, in turns of `turn_s`. Over several ranks a
    rate is that of all of them."""
    recipe, world = on.recipe, on.world
    clock = shared_clock(world) if world.world_size > 1 else monotonic
    deadline = clock() + seconds

    def built(settings: Settings) -> Program:
        data = {name: value for name, value in settings.items() if name != "batch_size"}
        changed = replace(recipe, data=replace(recipe.data, **data))
        batch_size = settings.get("batch_size", on.batch_size)
        program = programs.build("loader", "dali", changed, on.dataset, world, batch_size)
        program.name = options(settings)
        return Together(program, world) if world.world_size > 1 else program

    def versus(ours: Settings, theirs: Settings, turns: int) -> list[tuple[float, float]]:
        with ExitStack() as stack, warnings.catch_warnings():
            warnings.simplefilter("ignore", Unsteady)  # an uneven trial is decided by its turns, as any
            pair = [stack.enter_context(closing(built(settings))) for settings in (ours, theirs)]
            samples = in_turn(pair, turn_s, turns, clock)
        rates = [[one.images_per_s for one in samples[program.name]] for program in pair]
        return list(zip(*rates, strict=True))

    def time_left() -> bool:
        return clock() < deadline

    values = ladders(threads_per_rank(0, world.local_world_size), world.device.type == "cuda")
    start = {name: getattr(recipe.data, name) for name in values} | {"threads": on.threads}
    found = search(start, values, versus, time_left, report, turns)
    start = found.settings | {"batch_size": on.batch_size}
    return found, search(start, {"batch_size": BATCH_SIZES}, versus, time_left, report, turns)


def batch_advice(found: Found, batch_size: int) -> str:
    """A line about the loader's best batch size beside the one that was given."""
    best = found.settings["batch_size"]
    if best == batch_size:
        tried = "none was" if not found.trials else ", ".join(str(trial.value) for trial in found.trials)
        return f"batch size: {batch_size}; of others ({tried} tried) none is faster in the loader"
    gain = statistics.median([trial.ratio for trial in found.trials if trial.value == best])
    return (
        f"batch size: {best} is {gain:.2f} times as fast in the loader as the one before; it is the recipe's to choose"
    )


def options(settings: Settings) -> str:
    """The same settings on a command line."""
    names = {name: f"--set data.{name}=" if name != "batch_size" else "--batch-size " for name in settings}
    return " ".join(f"{names[name]}{value}" for name, value in settings.items())


def to_toml(found: Found, machine: Machine, about: dict[str, Any]) -> str:
    """The file, as `engine.machine` reads it; as comments, how it came about."""
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
            f"{t.setting} = {t.value}: {t.images_per_s:,.0f} images/s, {t.ratio:.3f} times the "
            f"{t.incumbent_images_per_s:,.0f} before{', taken' if t.accepted else ''}"
            for t in found.trials
        ),
    ]
    header = "".join(f"# {line}".rstrip() + "\n" for line in lines)
    data = "".join(f"{name} = {value}\n" for name, value in found.settings.items())
    return f"{header}\n[machine]\n{config.to_toml(machine)}\n[data]\n{data}"
