"""Write the report of one run (`report.png`, `report.html`), or a comparison of several runs."""

from collections.abc import Sequence
from pathlib import Path

from penstock.training.figures import rate
from penstock.training.report.curves import picture
from penstock.training.report.page import comparison_page, run_page
from penstock.training.report.runs import Run, read_run

REPORT_FILE = "report.html"
COMPARISON_FILE = "comparison.html"
_TITLE_FIGURES = (("top1", "top-1"), ("ema_top1", "EMA top-1"))


def write_report(run_dir: Path, out: Path | None = None) -> tuple[Path, Path]:
    """Write a PNG of one run's curves and an HTML page with everything about it. The run need not be finished.

    `out`: the page's path. The PNG is written beside it. Default: `report.html` in the run's directory. Returns the
    paths of the PNG and the page. Raises ValueError, naming the file, if the run has no metrics.
    """
    run = read_run(run_dir)
    return _write(out or run_dir / REPORT_FILE, picture([run], _title(run)), run_page(run))


def write_comparison(run_dirs: Sequence[Path], out: Path) -> tuple[Path, Path]:
    """Write a PNG and a page that compare several runs: curves, results, and the settings that differ.

    Returns and raises as `write_report` does.
    """
    runs = [read_run(run_dir) for run_dir in run_dirs]
    return _write(out, picture(runs, f"{len(runs)} runs"), comparison_page(runs))


def _title(run: Run) -> str:
    parts = [run.name]
    for line, what in ((run.last, ""), (run.test, "test ")):
        parts += [f"{what}{label} {line[key]:.4f}" for key, label in _TITLE_FIGURES if key in line]
    if run.images_per_s > 0:
        parts.append(f"{rate(run.images_per_s)} images/s")
    return "  ·  ".join(parts)


def _write(page_file: Path, png: bytes, page: str) -> tuple[Path, Path]:
    """Write each file under a temporary name, then rename it. Text that is not valid UTF-8 (some file names) becomes
    question marks."""
    page_file = page_file.with_suffix(".html")
    picture_file = page_file.with_suffix(".png")
    page_file.parent.mkdir(parents=True, exist_ok=True)
    for path, data in ((picture_file, png), (page_file, page.encode(errors="replace"))):
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_bytes(data)
        temporary.replace(path)
    return picture_file, page_file
