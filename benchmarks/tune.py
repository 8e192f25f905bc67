"""What `bench.py tune` does: search the loader's settings on this machine, and write the best as TOML.

A coordinate search: each setting climbs its ladder from where it stands, up while that pays, else down. A candidate is
measured in turn with the incumbent, since a machine's speed drifts, and replaces it only where it is faster by
`MIN_GAIN` in the median and faster at all in every turn but one. Rounds go over all settings until one changes nothing,
or the time is spent.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

MIN_GAIN = 1.03
HOPELESS = 0.9  # of the incumbent, after two turns: the rest of the turns are saved
TURNS = 5

Settings = dict[str, Any]  # name in [data] → value


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
    versus: Callable[[Settings, Settings, int], list[tuple[float, float]]],
    time_left: Callable[[], bool],
    report: Callable[[Trial], None] = lambda trial: None,
) -> Found:
    """Search from `start`.

    Args:
        versus: measures two settings in turn so many times: (first, second) images/s of each turn.
        time_left: False once the budget is spent; the trial under way is still counted.
        report: told of each trial.
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
                    trial = _trial(found.settings, candidate, name, versus)
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


def _trial(
    incumbent: Settings,
    candidate: Settings,
    name: str,
    versus: Callable[[Settings, Settings, int], list[tuple[float, float]]],
) -> Trial:
    pairs = versus(candidate, incumbent, 2)
    if statistics.median(a / b for a, b in pairs) > HOPELESS:
        pairs += versus(candidate, incumbent, TURNS - 2)
    ratios = sorted(a / b for a, b in pairs)
    ratio = statistics.median(ratios)
    ours, theirs = (statistics.median(rates) for rates in zip(*pairs, strict=True))
    return Trial(name, candidate[name], ours, theirs, ratio, ratio > MIN_GAIN and ratios[1] > 1)


def options(settings: Settings) -> str:
    """The same settings on a command line."""
    return " ".join(f"--set data.{name}={value}" for name, value in settings.items())


def to_toml(found: Found, about: dict[str, Any]) -> str:
    """The file: `[data]` as in a recipe, and as comments how it came about."""
    lines = [
        "The fastest settings of the loader that `bench.py tune` found on one machine. To use them:",
        f"  {options(found.settings)}",
        "",
        *(f"{name}: {value}" for name, value in about.items()),
        f"search: {'ended by itself' if found.finished else 'ended for lack of time; more --seconds may find more'}",
        f"trials: {len(found.trials)}, each in up to {TURNS} turns with the incumbent, and taken above {MIN_GAIN:g}",
        "",
        *(
            f"{t.setting} = {t.value}: {t.images_per_s:,.0f} images/s, {t.ratio:.3f} times the "
            f"{t.incumbent_images_per_s:,.0f} before{', taken' if t.accepted else ''}"
            for t in found.trials
        ),
    ]
    header = "".join(f"# {line}".rstrip() + "\n" for line in lines)
    return header + "\n[data]\n" + "".join(f"{name} = {value}\n" for name, value in found.settings.items())
