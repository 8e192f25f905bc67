"""Look up one figure of `benchmarks/results` by its key, as the docs show it.

FILE; PROGRAM                 of `bench.py`'s results: the median images/s
FILE; A / B                   the ratio of two programs of the same result
FILE; FIELD                   of a training run that `bench.py record` summarised: top1, images_per_s, seconds, …
FILE; STAGE; WHAT             of `benchmarks.gpu`'s results
… ; range                     the least and the most of the repeats, "[1,556–1,668]"; of a ratio its 95% interval
… ; share, … ; waiting        of a stage that trains: its rate as a share of that on synthetic batches; the time that it
                              spent waiting for data
… ; .2f                       another format than the usual one: Python's, for the number
"""

import functools
import json
import re
import statistics
from typing import Any, NamedTuple

from penstock.benchmarks.docs.results_page import RESULTS
from penstock.benchmarks.text import shown_rate

_FORMATS = {
    "images/s": ",.0f",
    "times": ".3f",
    "top-1": ".4f",
    "s": ",.0f",
    "TB/s": ".2f",
    "TFLOP/s": ",.0f",
    "ms": ".1f",
}
_SHARE = re.compile(r"([\d.]+) \[([\d.]+)–([\d.]+)\] of (?:made-up|synthetic) batches")
_WAITING = re.compile(r"waiting (?:for data )?([\d.]+)%")
_INTERVAL = re.compile(r"\[([\d.]+)–([\d.]+)\]")
_RUN_FORMATS = {"top1": ".3f", "ema_top1": ".3f", "data_wait": ".1%", "images_per_s": ",.0f", "seconds": ",.0f"}


class Found(NamedTuple):
    """A figure. low, high: None if the result has no range. form: the usual format."""

    value: float
    low: float | None
    high: float | None
    form: str


def figure(key: str) -> str:
    """Return the figure that `key` names. Raises ValueError for a key that no result has."""
    name, *parts = [part.strip() for part in key.split(";")]
    form = parts.pop() if len(parts) > 1 and parts[-1][:1] in ".," else ""
    wants_range = len(parts) > 1 and parts[-1] == "range" and bool(parts.pop())
    content = _read(name)
    try:
        if isinstance(content, list):
            found = _of_gpu(content, *parts)
        elif content["benchmark"] == "run":
            (field,) = parts
            found = Found(content["end"][field], None, None, _RUN_FORMATS.get(field, ",.4g"))
        else:
            found = _of_bench(content, *parts)
    except (KeyError, StopIteration, TypeError, ValueError, AttributeError):
        raise ValueError(f'no figure "{key}" in benchmarks/results/{name}.json') from None
    form = form or found.form
    if not wants_range:
        return _shown(found.value, form)
    if found.low is None or found.high is None:
        raise ValueError(f'the figure "{key}" has no range')
    return f"[{_shown(found.low, form)}–{_shown(found.high, form)}]"


def _shown(value: float, form: str) -> str:
    return shown_rate(value) if form == ",.0f" else f"{value:{form}}"


@functools.cache
def _read(name: str) -> Any:
    try:
        return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    except OSError:
        raise ValueError(f"no result benchmarks/results/{name}.json") from None


def _of_bench(content: dict[str, Any], name: str) -> Found:
    if name in content["ratios"]:
        ratio = content["ratios"][name]
        return Found(ratio["median"], ratio["low"], ratio["high"], ".2f")
    if (inverse := " / ".join(reversed(name.split(" / ")))) != name:
        ratio = content["ratios"][inverse]
        return Found(1 / ratio["median"], 1 / ratio["high"], 1 / ratio["low"], ".2f")
    rates = content["programs"][name]["images_per_s"]
    return Found(statistics.median(rates), min(rates), max(rates), ",.0f")


def _of_gpu(stages: list[dict[str, Any]], stage: str, what: str, part: str = "") -> Found:
    figures = next(one["figures"] for one in stages if one["stage"] == stage)
    found = next(one for one in figures if one["what"] == what)
    if part == "waiting":
        return Found(_numbers(_WAITING, found["text"])[0] / 100, None, None, ".1%")
    if part == "share":
        share, low, high = _numbers(_SHARE, found["text"])
        return Found(share, low, high, ".3f")
    low, high = found.get("min"), found.get("max")
    if low is None and _INTERVAL.search(found["text"]):
        low, high = _numbers(_INTERVAL, found["text"])
    unit = found["unit"].split(" ")[0] or "top-1"
    return Found(found["figure"], low, high, _FORMATS.get(unit, ",.4g"))


def _numbers(pattern: re.Pattern[str], text: str) -> list[float]:
    match = pattern.search(text)
    if not match:
        raise ValueError(f'"{text}" is not like {pattern.pattern}')
    return [float(group) for group in match.groups()]
