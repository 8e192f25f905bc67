"""What `bench.py peers` prints: a line a program, a line for each that is left out."""

import statistics
from collections.abc import Mapping
from typing import Any

from benchmarks.peers.registry import OURS
from benchmarks.text import shown_rate, tabulated, wrapped

COLUMNS = (
    "program", "version", "workers", "images/s", "ours/theirs", "memory MB", "first batch s", "prepare s", "disk MB"
)  # fmt: skip
UNKNOWN = "–"


def table(result: Mapping[str, Any]) -> str:
    """The programs of a result, the fastest first; under it those that were left out, and why."""
    programs = result["programs"]
    order = sorted(programs, key=lambda name: -statistics.median(programs[name]["images_per_s"]))
    rows = [COLUMNS, *(row(name, programs[name], result["ratios"].get(f"{OURS} / {name}")) for name in order)]
    lines = tabulated(rows, 2)
    for outcome, name, why in (
        *(("skipped", *one) for one in result["skipped"].items()),
        *(("FAILED", *one) for one in result["failed"].items()),
    ):
        lines += wrapped(f"  {name}: {outcome}, {why}")
    return "\n".join(lines)


def row(name: str, figures: Mapping[str, Any], ratio: Mapping[str, float] | None) -> tuple[str, ...]:
    """The cells of one program's line. ratio: ours to it, as in a result; None for ours."""
    rates = figures["images_per_s"]
    prepared = figures["prepare_s"]
    return (
        name,
        figures["version"],
        str(figures["workers"]),
        f"{shown_rate(statistics.median(rates))} [{shown_rate(min(rates))}–{shown_rate(max(rates))}]",
        f"{ratio['median']:.2f} [{ratio['low']:.2f}–{ratio['high']:.2f}]" if ratio else "1",
        f"{figures['memory_mb']:,.0f}",
        f"{figures['first_batch_s']:.1f}",
        UNKNOWN if prepared is None else f"{prepared:,.1f}",
        f"{figures['size_bytes'] / 1e6:,.1f}",
    )
