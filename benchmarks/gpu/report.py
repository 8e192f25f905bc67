"""The findings of a stage: rows, written to PART.json as they are measured, and the printed table."""

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
WIDTH = 112  # width of a row before its verdict


class Row(TypedDict):
    """A figure, or words. Several repeats give the median, the least and the most."""

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
    """The result of a stage. expected: in words. settings: the user's. tail: the log's last lines if the stage failed
    or is wrong."""

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
    """Read a PART.json: stage → result, empty if there is no file.

    Raises ValueError if the file is not a PART.json, or if only one of the file and this run is a rehearsal.
    """
    try:
        results: list[Result] = json.loads(path.read_text(encoding="utf-8"))
        if all(result["rehearsed"] == rehearsed for result in results):
            return {result["stage"]: result for result in results}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"{path}: holds no results of stages. Give another --out.") from None
    raise ValueError(f"{path}: holds {'measured' if rehearsed else 'rehearsed'} results. Give another --out.")


def put(path: Path, result: Result) -> None:
    """Add a result to a PART.json. It replaces an earlier result of its stage."""
    results = list((read(path, result["rehearsed"]) | {result["stage"]: result}).values())
    with atomic_write(path) as stream:
        stream.write(json.dumps(results, indent=1, ensure_ascii=False, default=str).encode() + b"\n")


class Report:
    """The result of a running stage, in the PART.json at `path`."""

    def __init__(self, path: Path, result: Result) -> None:
        self._path, self.result = path, result

    def row(
        self, what: str, figure: float | Sequence[float] | None = None, unit: str = "", text: str = "", *,
        right: bool = True, verdict: str = "", details: Mapping[str, object] | None = None,
    ) -> None:  # fmt: skip
        """Report one figure, or its repeats. The row replaces an earlier one of the same name.

        text: the finding, in words. right: whether the finding is as it must be. verdict: overrides the verdict from
        `right`.
        """
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
        """Run work that may fail without ending the stage. An error becomes a row."""
        try:
            yield
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            self.row(what, verdict=f"failed ({one_line(error)})")

    def end(self) -> None:
        """Finish the stage. Its verdict is the worst of its rows'."""
        found = [row["verdict"] for row in self.result["figures"]]
        self.result["verdict"] = next((one for bad in BAD for one in found if one.startswith(bad)), "ok")
        put(self._path, self.result)


def shown(result: Result) -> str:
    """Return the text of a stage's result: verdict, expected result, and rows."""
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
