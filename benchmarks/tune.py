"""Search the loader's fastest settings on this machine for `bench.py tune`, and write them as TOML.

This is a coordinate search. Each setting climbs its ladder of values from the current one: up while that pays,
otherwise down. A candidate is measured alternately with the incumbent (the best settings so far), since a machine's
speed drifts. It replaces the incumbent only if it is faster by `MIN_GAIN` in the median, and faster in every turn
except one. Turns start short and grow, and a trial ends as soon as it is decided. The search repeats over all settings
until a round changes nothing or the time is spent.

Decoded images in memory and the best batch size are then tried in the same way. They are only reported, since the
recipe sets them.
"""

import statistics
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from time import monotonic

from penstock.benchmarks import programs
from penstock.benchmarks.explain.model import pixel_bytes, pixels_fit
from penstock.benchmarks.measure import Program
from penstock.benchmarks.options import TUNE_TURNS, BenchSetup
from penstock.benchmarks.ranks import Together, shared_clock
from penstock.benchmarks.text import shown_rate
from penstock.pipeline.build import threads_per_rank
from penstock.recipes import config
from penstock.recipes.machine import Machine
from penstock.shards.format import ShardSet
from penstock.training import distributed

MIN_GAIN = 1.03
HOPELESS = 0.75  # of the incumbent's rate: a candidate below it in the first turn is rejected
AGREED = 3  # turns above MIN_GAIN that accept a candidate early, if all turns are
BATCH_SIZES = [16, 32, 64, 128, 256, 512]
BATCH_SHARE = 0.2  # of the time, for the batch size, which also gets the time that the settings leave
PIXELS_SHARE = 0.1  # of the time, for decoded images
PIXELS_OF = 2048  # the number of images decoded for that
TRIAL_SHARE = 0.2  # of the time, at most, for one trial
SHORTEST = 4  # the first two turns of a trial are a quarter and half as long
BUSIER = 1.5  # factor by which a turn's overhead may exceed the largest so far, if others use the machine

BATCH, PIXELS = "batch_size", "pixels"
Settings = dict[str, float]  # name in [data], or BATCH or PIXELS → value
Versus = Callable[[Settings, Settings], Iterator[tuple[float, float]]]  # two settings → each turn's two images/s


@dataclass(frozen=True)
class Trial:
    """A candidate compared with the incumbent, with one setting changed.

    The rates and their ratio are medians over the turns. decided: False if the time was up before a decision.
    """

    setting: str
    value: float
    images_per_s: float
    incumbent_images_per_s: float
    ratio: float
    accepted: bool
    turns: int
    decided: bool


@dataclass
class Found:
    """The best settings, the trials on the way, and whether the search finished or ran out of time."""

    settings: Settings
    trials: list[Trial] = field(default_factory=list)
    finished: bool = False


def ladders(num_cores: int, on_gpu: bool) -> dict[str, list[float]]:
    """Return the values of each setting that are worth trying, in rising order.

    More threads than cores can pay, since threads may wait.
    """
    threads = {1, max(1, num_cores // 2), max(1, num_cores * 3 // 4), num_cores, num_cores + 1, num_cores * 2}
    loads = {"hw_decoder_load": [0.0, 0.25, 0.5, 0.65, 0.8, 0.9, 1.0]} if on_gpu else {}
    return {"threads": sorted(threads), "prefetch": [1, 2, 3, 4, 6], "read_ahead": [0, 2, 4, 8, 16], **loads}


class Turns:
    """Measure two settings alternately, as `Versus`, until the turns or the time are used up.

    A turn starts only if it should end in time, judging by the earlier turns.

    Both programs are built from scratch for each pair, to start at the same samples. A program further ahead would read
    samples that no program has read yet. The batches thrown away before counting (`BatchProgram`) are the warm-up, in
    which the programs also build and compile. The two take turns at going first.
    """

    deadline = float("inf")  # by the clock
    most_s = float("inf")  # for one pair: a close comparison must not use up the whole time

    def __init__(
        self, build: Callable[[Settings], Program], clock: Callable[[], float], *, seconds: float, number: int,
        batch_size: int = 1,
    ) -> None:  # fmt: skip
        """seconds: of a full turn of each program. number: the most turns. batch_size: used if the settings have
        none."""
        self._build, self._clock, self._seconds, self._number = build, clock, seconds, number
        self._batch_size, self._counted = batch_size, 0
        self._beside_s = [0.0, 0.0]  # largest overhead per image, in a pair's first turn and in later ones

    def __call__(self, ours: Settings, theirs: Settings) -> Iterator[tuple[float, float]]:
        size = sum(settings.get(BATCH, self._batch_size) for settings in (ours, theirs))
        end = self._clock() + self.most_s
        with ExitStack() as stack:
            pair: list[Program] = []
            for turn in range(self._number):
                seconds = self._seconds / (max(1, SHORTEST >> turn) if self._number > 2 else 1)
                begun, beside_s = self._clock(), size * self._beside_s[min(turn, 1)]
                too_long = turn and begun + 2 * seconds + beside_s > end
                # the very first turn always runs, since nothing is known without it
                if too_long or (self._counted and begun + 2 * seconds + BUSIER * beside_s > self.deadline):
                    return
                pair = pair or [stack.enter_context(closing(self._build(settings))) for settings in (ours, theirs)]
                rates = {one: pair[one].run(seconds).images_per_s for one in ((0, 1) if turn % 2 == 0 else (1, 0))}
                beside_s = (self._clock() - begun - 2 * seconds) / size
                self._beside_s[min(turn, 1)] = max(self._beside_s[min(turn, 1)], beside_s)
                self._counted += 1
                yield rates[0], rates[1]


def search(
    start: Settings,
    ladders: Mapping[str, Sequence[float]],
    versus: Versus,
    report: Callable[[Trial], None] = lambda trial: None,
    turns: int = TUNE_TURNS,
) -> Found:
    """Search from `start`. `versus` ends with the time. `report` is called with each trial (at most `turns` turns)."""
    found, known, changed = Found(start), [start], True
    while changed:
        changed = False
        for name in ladders:
            values = sorted({*ladders[name], found.settings[name]})
            for step in (1, -1):  # after a climb, the values below are known
                while 0 <= (place := values.index(found.settings[name]) + step) < len(values):
                    candidate = found.settings | {name: values[place]}
                    if candidate in known:
                        break
                    known.append(candidate)
                    trial = _trial(name, values[place], versus(candidate, found.settings), turns)
                    if trial is None:
                        return found
                    found.trials.append(trial)
                    report(trial)
                    if not trial.accepted:
                        break
                    found.settings, changed = candidate, True
    found.finished = all(trial.decided for trial in found.trials)
    return found


def _trial(name: str, value: float, measured: Iterator[tuple[float, float]], turns: int) -> Trial | None:
    """Measure one candidate. Returns None if there was no time for a single turn."""
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
    """Return whether a candidate with these ratios to the incumbent is accepted, or None if not decided yet.

    turns: the most turns of a trial.
    """
    slower, small = (sum(ratio <= bound for ratio in ratios) for bound in (1, MIN_GAIN))
    if slower > min(1, turns - 1) or 2 * small > turns or ratios[0] < HOPELESS:
        return False
    if len(ratios) >= AGREED and min(ratios) > MIN_GAIN:
        return True
    return statistics.median(ratios) > MIN_GAIN if len(ratios) >= turns else None


def search_machine(
    setup: BenchSetup, seconds: float, turn_s: float, number: int, report: Callable[[Trial], None]
) -> tuple[Found, Found]:
    """Search the loader's settings, then try decoded images and search the batch size, in `seconds` overall.

    turn_s: seconds per turn. Returns two findings: the settings to write, and the others, which are only reported. With
    several ranks a rate is the sum over all of them.
    """
    recipe, world = setup.recipe, setup.world
    clock = shared_clock(world) if world.world_size > 1 else monotonic
    end = clock() + distributed.from_rank_0(seconds, world)

    def built(settings: Settings) -> Program:
        data: dict[str, object] = {name: value for name, value in settings.items() if name not in (BATCH, PIXELS)}
        dataset = setup.dataset
        if PIXELS in settings:
            dataset = few(dataset, recipe.data.train_split)
            data |= {"cache": "pixels"} if settings[PIXELS] else {}
        changed = replace(recipe, data=replace(recipe.data, **data))  # type: ignore[arg-type]
        program = programs.build("loader", "dali", changed, dataset, world, int(settings.get(BATCH, setup.batch_size)))
        program.settle_batches = changed.data.prefetch + 1  # the batches decoded already, and the one in progress
        return Together(program, world) if world.world_size > 1 else program

    turns = Turns(built, clock, seconds=turn_s, number=number, batch_size=setup.batch_size)
    turns.deadline, turns.most_s = end - (BATCH_SHARE + PIXELS_SHARE) * seconds, TRIAL_SHARE * seconds
    values = ladders(threads_per_rank(0, world.local_world_size), world.device.type == "cuda")
    start = {name: getattr(recipe.data, name) for name in values} | {"threads": setup.threads}
    found = search(start, values, turns, report, number)
    turns.deadline = end - BATCH_SHARE * seconds
    pixels = None
    if recipe.data.cache == "none" and pixels_fit(setup):
        pixels = _trial(PIXELS, 1, turns(found.settings | {PIXELS: 1}, found.settings | {PIXELS: 0}), number)
    turns.deadline = end
    others = search(found.settings | {BATCH: setup.batch_size}, {BATCH: BATCH_SIZES}, turns, report, number)
    if pixels:
        others.trials.append(pixels)
    return found, others


def few(dataset: ShardSet, split: str) -> ShardSet:
    """Return the dataset with only the first `PIXELS_OF` images of a split."""
    part = replace(dataset.split(split), samples=dataset.split(split).samples[:PIXELS_OF])
    return replace(dataset, splits=dataset.splits | {split: part})


def pixels_advice(setup: BenchSetup, others: Found) -> str:
    """Return a line about decoded images in memory, or "" if the recipe uses them or no time was left to try them."""
    if setup.recipe.data.cache == "pixels":
        return ""
    gigabytes = pixel_bytes(setup) / 1e9
    if not pixels_fit(setup):
        return f"data.cache=pixels: not tried, since it needs {gigabytes:.1f} GB, more than half of the free memory"
    trial = next((trial for trial in others.trials if trial.setting == PIXELS), None)
    if trial is None:
        return ""
    when = "from the second epoch on" if trial.decided else "from the second epoch on (undecided, out of time)"
    gain = f"data.cache=pixels: the loader is {trial.ratio:.2f} times as fast {when}"
    if trial.ratio < MIN_GAIN:
        return f"{gain}: no gain"
    return f"{gain}, with {gigabytes:.1f} GB of memory. To use it: --set data.cache=pixels"


def batch_advice(found: Found, batch_size: int) -> str:
    """Return a line that compares the loader's best batch size with the given one."""
    trials = [trial for trial in found.trials if trial.setting == BATCH]
    best, tried = found.settings[BATCH], [str(trial.value) for trial in trials if trial.decided]
    if best != batch_size:
        gain = statistics.median(trial.ratio for trial in trials if trial.value == best)
        faster = f"with {best} the loader is {gain:.2f} times as fast as with the size before"
        return f"batch size: {faster}. To use it, set it in the recipe."
    if not tried:
        return f"batch size: {batch_size}. There was no time to decide on another."
    return f"batch size: {batch_size}. No other is faster in the loader (tried: {', '.join(tried)})."


def outcome(trial: Trial) -> str:
    """Return how a trial ended, to print after its figures."""
    return ", undecided (out of time)" if not trial.decided else ", accepted" if trial.accepted else ""


def options(settings: Settings) -> str:
    """Return the settings as command-line options."""
    return " ".join(f"--set data.{name}={value}" for name, value in settings.items())


def to_toml(found: Found, machine: Machine, about: Mapping[str, str]) -> str:
    """Return the file's text, as `recipes.machine` reads it, with the trials as comments."""
    lines = [
        "The fastest loader settings that `bench.py tune` found on one machine. train.py and bench.py use them on that",
        "machine if this file is machine.toml in the working directory. Otherwise, give them as options:",
        f"  {options(found.settings)}",
        "",
        *(f"{name}: {value}" for name, value in about.items()),
        f"search: {'finished' if found.finished else 'ran out of time; more --seconds may find better settings'}",
        f"trials: {len(found.trials)}, each measured alternately with the best so far and accepted above {MIN_GAIN:g}",
        "",
    ]
    for t in found.trials:
        before = f"{t.ratio:.3f} times the {shown_rate(t.incumbent_images_per_s)} before{outcome(t)}"
        lines.append(f"{t.setting} = {t.value}: {shown_rate(t.images_per_s)} images/s, {before}")
    header = "".join(f"# {line}".rstrip() + "\n" for line in lines)
    data = "".join(f"{name} = {value}\n" for name, value in found.settings.items())
    return f"{header}\n[machine]\n{config.to_toml(machine)}\n[data]\n{data}"
