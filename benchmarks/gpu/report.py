"""What a stage has found: rows, printed as they are measured, and in PART.json before the next one is begun.

PART.json is a list of results, one a stage: {"part": "compute", "stage": "eager", "settings": {…}, "verdict":
"measured", "seconds": 41.2, "env": {…}, "figures": [{"what": "bf16", "figure": 3612.0, "unit": "images/s", "min": …,
"max": …, "repeats": […], "text": "", "verdict": "measured"}, …], "tail": […]}
"""

import json
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import NotRequired, TypedDict

from shards.format import atomic_write

WIDTH = 104  # of a row before its verdict
NOT_ENDED = "failed (not ended)"
BAD = ("failed", "wrong")
ENDS_THE_GPU = ("CUDA error", "CUBLAS_STATUS", "CUDNN_STATUS_EXECUTION")  # nothing works after it in this process


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
    """A stage's. expected: in words. settings: what the figures depend on. tail: what a stage that failed printed."""

    format: int
    part: str
    stage: str
    time: str
    expected: str
    rehearsed: bool
    seconds: float
    limit_s: NotRequired[float]
    env: Mapping[str, object]
    settings: dict[str, object]
    figures: list[Row]
    verdict: str
    tail: NotRequired[list[str]]


def read(path: Path) -> dict[str, Result]:
    """The results in a PART.json by their stage, none where there is no file. Raises ValueError for another file."""
    try:
        results: list[Result] = json.loads(path.read_text(encoding="utf-8"))
        return {result["stage"]: result for result in results if result["figures"] is not None}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"{path}: no results of this command: give another --out") from None


def put(path: Path, result: Result) -> None:
    """Add a result to a PART.json, in place of an earlier one of its stage."""
    results = [*(read(path) | {result["stage"]: result}).values()]
    with atomic_write(path) as stream:
        stream.write(json.dumps(results, indent=1, ensure_ascii=False, default=str).encode() + b"\n")


class Report:
    """A stage's result under way."""

    def __init__(self, path: Path, result: Result) -> None:
        """path: of PART.json."""
        self._path, self.result = path, result
        put(path, result)

    def settings(self, **values: object) -> None:
        """What the figures depend on."""
        self.result["settings"] |= values
        put(self._path, self.result)

    def row(
        self, what: str, figure: float | Sequence[float] | None = None, unit: str = "", text: str = "", *,
        right: bool | None = None, verdict: str = "", details: Mapping[str, object] | None = None,
    ) -> None:  # fmt: skip
        """One figure, or the repeats of one. text: what was found, in words. right: whether it is as it must be.
        verdict: where it is not to be worked out of that."""
        middle = median(figure) if isinstance(figure, Sequence) else figure
        judged = "wrong" if right is False else "rehearsed" if self.result["rehearsed"] else "ok" if right else ""
        row: Row = {"what": what, "figure": middle, "unit": unit, "text": text,
                    "verdict": verdict or judged or "measured"}  # fmt: skip
        if isinstance(figure, Sequence):
            row["min"], row["max"], row["repeats"] = min(figure), max(figure), list(figure)
        if details:
            row["details"] = details
        self.result["figures"].append(row)
        put(self._path, self.result)
        print(line(row), flush=True)

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """What may fail without ending the stage: its error is a row. One that leaves the GPU unusable ends it."""
        try:
            yield
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            self.row(what, verdict=f"failed ({one_line(error)})")
            if any(words in str(error) for words in ENDS_THE_GPU):
                raise

    def end(self) -> None:
        """All is done: the stage's verdict is the worst of its rows'."""
        found = [row["verdict"] for row in self.result["figures"]]
        least = "rehearsed" if self.result["rehearsed"] else "measured" if "measured" in found else "ok"
        self.result["verdict"] = next((one for bad in BAD for one in found if one.startswith(bad)), least)
        put(self._path, self.result)


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def line(row: Row) -> str:
    """A row for people; they stand below each other as a table."""
    figure = "" if row["figure"] is None else f"{number(row['figure'])} {row['unit']}"
    spread = f" [{number(row['min'])}–{number(row['max'])}]" if "min" in row else ""
    return f"  {row['what']:<44}  {f'{figure}{spread}  ' if figure else ''}{row['text']}".ljust(WIDTH) + row["verdict"]


def shown(result: Result) -> str:
    """A stage's verdict and what was expected, and its rows."""
    head = f"{result['part']} {result['stage']}  {result['seconds']:.0f} s".ljust(WIDTH) + result["verdict"]
    expected = [f"  expected: {result['expected']}"] if result["figures"] else []
    return "\n".join([head, *expected, *map(line, result["figures"])])


def one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]
