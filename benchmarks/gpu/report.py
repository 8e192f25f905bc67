"""What a stage has found: rows, in PART.json before the next one is begun; and the table that people read."""

import json
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import NotRequired, TypedDict

from penstock.shards.format import atomic_write

NOT_ENDED = "failed (not ended)"
BAD = ("failed", "wrong")
WIDTH = 112  # of a row before its verdict


class Row(TypedDict):
    """A figure, or words; of several repeats the median, beside the least and the most."""

    what: str
    figure: float | None
    unit: str
    text: str
    verdict: str
    min: NotRequired[float]
    max: NotRequired[float]
    repeats: NotRequired[list[float]]
    details: NotRequired[Mapping[str, object]]


class Result(TypedDict):
    """A stage's. expected: in words. settings: the user's. tail: the last lines of a stage that failed or is wrong."""

    format: int
    part: str
    stage: str
    time: str
    expected: str
    rehearsed: bool
    seconds: float
    env: Mapping[str, object]
    settings: Mapping[str, object]
    figures: list[Row]
    verdict: str
    tail: NotRequired[list[str]]


def read(path: Path, rehearsed: bool) -> dict[str, Result]:
    """The results in a PART.json by their stage, none where there is no file. Raises ValueError where they are measured
    and shall be rehearsed, or the other way round, and for another file."""
    try:
        results: list[Result] = json.loads(path.read_text(encoding="utf-8"))
        if all(result["rehearsed"] == rehearsed for result in results):
            return {result["stage"]: result for result in results}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"{path} holds no results: give another --out") from None
    raise ValueError(f"{path} holds {'measured' if rehearsed else 'rehearsed'} results: give another --out")


def put(path: Path, result: Result) -> None:
    """Add a result to a PART.json, in place of an earlier one of its stage."""
    results = list((read(path, result["rehearsed"]) | {result["stage"]: result}).values())
    with atomic_write(path) as stream:
        stream.write(json.dumps(results, indent=1, ensure_ascii=False, default=str).encode() + b"\n")


class Report:
    """A stage's result under way, in the PART.json at `path`."""

    def __init__(self, path: Path, result: Result) -> None:
        self._path, self.result = path, result

    def row(
        self, what: str, figure: float | Sequence[float] | None = None, unit: str = "", text: str = "", *,
        right: bool = True, verdict: str = "", details: Mapping[str, object] | None = None,
    ) -> None:  # fmt: skip
        """One figure, or the repeats of one, in place of an earlier row of that name. text: what was found, in words.
        right: nothing is as it must not be. verdict: where it is not to be worked out of that."""
        verdict = verdict or ("ok" if right else "wrong")
        row: Row = {"what": what, "figure": None, "unit": unit, "text": text, "verdict": verdict}
        if isinstance(figure, Sequence):
            row["figure"], row["min"], row["max"] = median(figure), min(figure), max(figure)
            row["repeats"] = list(figure)
        else:
            row["figure"] = figure
        if details:
            row["details"] = details
        self.result["figures"] = [*(one for one in self.result["figures"] if one["what"] != what), row]
        put(self._path, self.result)
        print(line(row), flush=True)

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """What may fail without ending the stage: its error is a row."""
        try:
            yield
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            self.row(what, verdict=f"failed ({one_line(error)})")

    def end(self) -> None:
        """All is done: the stage's verdict is the worst of its rows'."""
        found = [row["verdict"] for row in self.result["figures"]]
        self.result["verdict"] = next((one for bad in BAD for one in found if one.startswith(bad)), "ok")
        put(self._path, self.result)


def shown(result: Result) -> str:
    """A stage's verdict and what was expected, and its rows."""
    head = f"{result['part']} {result['stage']}  {result['seconds']:.0f} s{', rehearsed' * result['rehearsed']}"
    return "\n".join(
        [head.ljust(WIDTH) + result["verdict"], f"  expected: {result['expected']}", *map(line, result["figures"])]
    )


def line(row: Row) -> str:
    figure = "" if row["figure"] is None else f"{number(row['figure'])} {row['unit']}  "
    spread = f"[{number(row['min'])}–{number(row['max'])}]  " if "min" in row else ""
    return f"  {row['what']:<40}  {figure}{spread}{row['text']}  ".ljust(WIDTH) + row["verdict"]


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def one_line(error: BaseException) -> str:
    return traceback.format_exception_only(error)[-1].splitlines()[0][:200]
