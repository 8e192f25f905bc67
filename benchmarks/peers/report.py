"""What `bench.py peers` prints: a line a program, a line for each that is left out."""

from benchmarks.measure import Ratio
from benchmarks.peers.registry import OURS
from benchmarks.record import Figures, Result
from benchmarks.tables import rates_cell, ratio_cell
from benchmarks.text import tabulated, wrapped

COLUMNS = (
    "program", "version", "workers", "images/s", "ours/theirs", "memory MB", "first batch s", "prepare s", "disk MB"
)  # fmt: skip
UNKNOWN = "–"


def table(result: Result) -> str:
    """The programs of a result, the fastest first; under it those that were left out, and why."""
    programs = result.programs
    order = sorted(programs, key=lambda name: -programs[name].median)
    rows = [COLUMNS, *(row(name, programs[name], result.ratios.get(f"{OURS} / {name}")) for name in order)]
    lines = tabulated(rows, 2)
    for outcome, name, why in (
        *(("skipped", *one) for one in result.more["skipped"].items()),
        *(("FAILED", *one) for one in result.more["failed"].items()),
    ):
        lines += wrapped(f"  {name}: {outcome}, {why}")
    return "\n".join(lines)


def row(name: str, figures: Figures, ratio: Ratio | None) -> tuple[str, ...]:
    """The cells of one program's line. ratio: ours to it, as in a result; None for ours."""
    return (
        name,
        figures.version or UNKNOWN,
        str(figures.workers),
        rates_cell(figures.images_per_s),
        ratio_cell(ratio) if ratio else "1",
        f"{figures.memory_mb or 0:,.0f}",
        f"{figures.first_batch_s or 0:.1f}",
        UNKNOWN if figures.prepare_s is None else f"{figures.prepare_s:,.1f}",
        f"{(figures.size_bytes or 0) / 1e6:,.1f}",
    )
