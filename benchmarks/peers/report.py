"""What `bench.py peers` prints: a line a program, a line for each that is left out."""

import statistics
from collections.abc import Mapping
from typing import Any

from benchmarks.peers.registry import OURS

COLUMNS = (
    "program", "version", "workers", "images/s", "ours/theirs", "memory MB", "first batch s", "prepare s", "disk MB"
)  # fmt: skip
UNKNOWN = "–"


def table(result: Mapping[str, Any]) -> str:
    """The programs of a result, the fastest first; under it those that were left out, and why."""
    programs = result["programs"]
    order = sorted(programs, key=lambda name: -statistics.median(programs[name]["images_per_s"]))
    rows = [COLUMNS, *(row(name, programs[name], result["ratios"].get(f"{OURS} / {name}")) for name in order)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for line in rows:
        names = [cell.ljust(width) for cell, width in zip(line[:2], widths[:2], strict=True)]
        numbers = [cell.rjust(width) for cell, width in zip(line[2:], widths[2:], strict=True)]
        lines.append("  " + "  ".join([*names, *numbers]))
    lines += [f"  {name}: skipped, {why}" for name, why in result["skipped"].items()]
    lines += [f"  {name}: FAILED, {why}" for name, why in result["failed"].items()]
    return "\n".join(lines)


def row(name: str, figures: Mapping[str, Any], ratio: Mapping[str, float] | None) -> tuple[str, ...]:
    """The cells of one program's line. ratio: ours to it, as in a result; None for ours."""
    rates = figures["images_per_s"]
    prepared = figures["prepare_s"]
    return (
        name,
        figures["version"],
        str(figures["workers"]),
        f"{statistics.median(rates):,.0f} [{min(rates):,.0f}–{max(rates):,.0f}]",
        f"{ratio['median']:.2f} [{ratio['low']:.2f}–{ratio['high']:.2f}]" if ratio else "1",
        f"{figures['memory_mb']:,.0f}",
        f"{figures['first_batch_s']:.1f}",
        UNKNOWN if prepared is None else f"{prepared:,.1f}",
        f"{figures['size_bytes'] / 1e6:,.1f}",
    )
