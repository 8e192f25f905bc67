"""A key → one figure of `benchmarks/results`, as the docs show it.

FILE; PROGRAM                 of `bench.py`'s results: the median images/s
FILE; A / B                   the ratio of two programs of the same result
FILE; FIELD                   of a training run that `bench.py record` summarised: top1, images_per_s, seconds, …
FILE; STAGE; WHAT             of `benchmarks.gpu`'s results
… ; range                     the least and the most of the repeats, "[1,556–1,668]"; of a ratio its 95 % interval
… ; .2f                       another format than the usual one: Python's, for the number
"""

import functools
import json
import statistics
from pathlib import Path
from typing import Any

from penstock.benchmarks.text import shown_rate

RESULTS = Path(__file__).resolve().parents[1] / "results"
_FORMATS = {"images/s": ",.0f", "times": ".3f", "top-1": ".4f", "s": ",.0f", "TB/s": ".2f", "ms": ".1f"}
_RUN_FORMATS = {"top1": ".3f", "ema_top1": ".3f", "data_wait": ".1%", "images_per_s": ",.0f", "seconds": ",.0f"}


def figure(key: str) -> str:
    """The figure that `key` names. Raises ValueError for a key that no result has."""
    name, *parts = [part.strip() for part in key.split(";")]
    with_format = parts[-1] if len(parts) > 1 and parts[-1][:1] in ".," else ""
    parts = parts[:-1] if with_format else parts
    wants_range = len(parts) > 1 and parts[-1] == "range"
    parts = parts[:-1] if wants_range else parts
    content = _read(name)
    try:
        if isinstance(content, list):
            value, low, high, usual = _of_gpu(content, *parts)
        elif content["benchmark"] == "run":
            (field,) = parts
            value, low, high, usual = content["end"][field], None, None, _RUN_FORMATS.get(field, ",.4g")
        else:
            value, low, high, usual = _of_bench(content, *parts)
    except (KeyError, StopIteration, TypeError, ValueError):
        raise ValueError(f'no figure "{key}" in benchmarks/results/{name}.json') from None
    if wants_range and (low is None or high is None):
        raise ValueError(f'the figure "{key}" has no range')
    return (
        f"[{low:{with_format or usual}}–{high:{with_format or usual}}]"
        if wants_range
        else _shown(value, with_format or usual)
    )


def _shown(value: float, form: str) -> str:
    return shown_rate(value) if form == ",.0f" else f"{value:{form}}"


@functools.cache
def _read(name: str) -> Any:
    try:
        return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    except OSError:
        raise ValueError(f"no result benchmarks/results/{name}.json") from None


def _of_bench(content: dict[str, Any], name: str) -> tuple[float, float, float, str]:
    if name in content["ratios"]:
        ratio = content["ratios"][name]
        return ratio["median"], ratio["low"], ratio["high"], ".2f"
    rates = content["programs"][name]["images_per_s"]
    return statistics.median(rates), min(rates), max(rates), ",.0f"


def _of_gpu(stages: list[dict[str, Any]], stage: str, what: str) -> tuple[float, float | None, float | None, str]:
    figures = next(one["figures"] for one in stages if one["stage"] == stage)
    found = next(one for one in figures if one["what"] == what)
    unit = found["unit"].split(" ")[0] or "top-1"
    return found["figure"], found.get("min"), found.get("max"), _FORMATS.get(unit, ",.4g")
