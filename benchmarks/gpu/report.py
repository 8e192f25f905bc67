"""What a stage has found so far: rows, printed as they are measured, and on disk before the next one is begun.

{"format": 1, "part": "compute", "stage": "eager", "settings": {…}, "verdict": "ok", "seconds": 41.2, "env": {…},
 "figures": [{"what": "bf16, batch 256", "figure": 3612.0, "unit": "images/s", "min": …, "max": …, "repeats": […],
              "expected": "≥ 3,500", "verdict": "ok", …}], "tail": […]}
"""

import json
import os
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.gpu.expected import verdict
from shards.format import atomic_write

FORMAT = 1
PARTS = ("check", "compute", "decode", "train")
NOT_ENDED = "failed (not ended)"
ENDS_THE_GPU = ("CUDA error", "CUBLAS_STATUS", "CUDNN_STATUS_EXECUTION")  # nothing works after it in this process


class Skipped(Exception):
    """A stage, or what is left of it, cannot be measured here; the message says why."""


def write_json(path: Path, content: Any) -> None:
    with atomic_write(path) as stream:
        stream.write(json.dumps(content, indent=1, ensure_ascii=False, default=str).encode() + b"\n")


class Report:
    """A stage's rows: printed as they are measured, and on disk before the next one is begun."""

    def __init__(self, path: Path, about: dict[str, Any], rehearsed: bool, terminal: int | None = None) -> None:
        """`terminal`: a file descriptor that gets a line a row, besides standard output."""
        self._path, self._rehearsed, self._terminal = path, rehearsed, terminal
        self.result: dict[str, Any] = about | {"settings": {}, "figures": [], "verdict": NOT_ENDED}
        self.write()

    def write(self) -> None:
        write_json(self._path, self.result)

    def say(self, line: str) -> None:
        print(line, flush=True)
        if self._terminal is not None:
            os.write(self._terminal, f"  {line}\n".encode())

    def settings(self, **values: Any) -> None:
        """What the figures depend on."""
        self.result["settings"] |= values
        self.write()

    def row(
        self,
        what: str,
        figure: float | Sequence[float] | None = None,
        unit: str = "",
        *,
        at_least: float | None = None,
        at_most: float | None = None,
        right: bool | None = None,
        text: str = "",
        judged: str | None = None,
        shown: bool = True,
        again: bool = False,
        **more: Any,
    ) -> None:
        """One figure, or the repeats of one: then their median, least and most are kept.

        at_least, at_most: its bar. right: whether what was found is as it must be. text: what was found, in words.
        judged: the verdict, where it is not to be worked out of these. shown: in the table at the end too.
        again: in place of the row of that name before, which had fewer repeats; a line is not printed for it.
        """
        row: dict[str, Any] = {"what": what, "figure": figure, "unit": unit, "text": text, "shown": shown, **more}
        if isinstance(figure, Sequence):
            row |= {"figure": median(figure), "min": min(figure), "max": max(figure), "repeats": list(figure)}
        row["expected"] = expected_text(at_least, at_most)
        row["verdict"] = judged or verdict(row["figure"], at_least, at_most, right, self._rehearsed)
        places = [i for i, earlier in enumerate(self.result["figures"]) if again and earlier["what"] == what]
        if places:
            self.result["figures"][places[-1]] = row
        else:
            self.result["figures"].append(row)
        self.write()
        if not places:
            self.say(described(row))

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """What may fail without ending the stage: its error is a row. One that leaves the GPU unusable ends it."""
        try:
            yield
        except Skipped as skipped:
            self.row(what, judged=f"skipped: {skipped}")
        except Exception as error:
            traceback.print_exc()
            self.row(what, judged=f"failed ({one_line(error)})")
            if any(words in str(error) for words in ENDS_THE_GPU):
                raise


def expected_text(at_least: float | None, at_most: float | None) -> str:
    bars = [(sign, bar) for sign, bar in (("≥", at_least), ("≤", at_most)) if bar is not None]
    return " and ".join(f"{sign} {number(bar)}" for sign, bar in bars)


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def figure_text(row: dict[str, Any]) -> str:
    if row["figure"] is None:
        return str(row["text"])
    spread = f" [{number(row['min'])}–{number(row['max'])}]" if row.get("min") is not None else ""
    words = f"  {row['text']}" if row["text"] else ""
    return f"{number(row['figure'])} {row['unit']}{spread}{words}".replace("  ", " ")


def described(row: dict[str, Any]) -> str:
    expected = f"   expected {row['expected']}" if row["expected"] else ""
    return f"{row['what']}: {figure_text(row)}{expected}   {row['verdict']}"


def one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]
