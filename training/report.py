"""`RUN/metrics.jsonl` → `RUN/report.png`: loss, validation accuracy, learning rate and throughput over steps.

Also a command: `python -m training.report RUN…`.
"""

import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np

from training.metrics import read_metrics

REPORT_FILE = "report.png"
# Okabe and Ito's palette, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
_MAX_POINTS = 4000  # more than the picture has columns


def write_report(run_dir: Path) -> Path:
    """Draw the run's `report.png` and return its path.

    A step that was logged twice, because it was made again after a resume, counts as it was logged last.

    Raises ValueError, naming the file, where there are no metrics.
    """
    lines = read_metrics(run_dir)
    steps, evals = _by_step(lines, "step"), _by_step(lines, "eval")
    if not steps and not evals:
        raise ValueError(f"{run_dir}: the metrics have no step and no eval yet: nothing to draw")

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2, sharex=True)
    _draw_loss(axes[0, 0], steps, evals)
    _draw_accuracy(axes[0, 1], evals)
    _draw_curve(axes[1, 0], steps, "lr", "learning rate", BLUE)
    _draw_throughput(axes[1, 1], steps)
    for ax in axes.flat:
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(ax is axes[1, 1])
        ax.set_xlabel("step")
        ax.tick_params(labelbottom=True)
    figure.suptitle(_title(run_dir, steps, evals))
    path = run_dir / REPORT_FILE
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, format="png")
    temporary.replace(path)
    return path


def _by_step(lines: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    last = {line["step"]: line for line in lines if line.get("kind") == kind and "step" in line}
    return [last[step] for step in sorted(last)]


def _column(lines: list[dict[str, Any]], name: str) -> np.ndarray:
    return np.array([line.get(name, np.nan) for line in lines], dtype=float)


def _smooth(values: np.ndarray) -> np.ndarray:
    """A centred moving mean over 1/50 of the run, over fewer steps at its ends; NaN does not spread."""
    width = max(len(values) // 50, 1) | 1
    window = np.ones(width)
    known = np.isfinite(values)
    total = np.convolve(np.where(known, values, 0.0), window, mode="same")
    count = np.convolve(known.astype(float), window, mode="same")
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0.5)


def _plot(ax: Any, x: np.ndarray, y: np.ndarray, **style: Any) -> None:
    stride = len(x) // _MAX_POINTS + 1
    marker = "o" if len(x) < 40 else None
    ax.plot(x[::stride], y[::stride], **{"marker": marker, "markersize": 3} | style)


def _draw_loss(ax: Any, steps: list[dict[str, Any]], evals: list[dict[str, Any]]) -> None:
    x, loss = _column(steps, "step"), _column(steps, "loss")
    _plot(ax, x, loss, color=BLUE, alpha=0.3, linewidth=0.7, marker=None)
    _plot(ax, x, _smooth(loss), color=BLUE, linewidth=1.8, marker=None, label="training")
    if evals:
        _plot(ax, _column(evals, "step"), _column(evals, "loss"), color=ORANGE, linewidth=1.5, label="validation")
    ax.set_title("loss")
    ax.legend(frameon=False)


def _draw_accuracy(ax: Any, evals: list[dict[str, Any]]) -> None:
    x = _column(evals, "step")
    for name, color in (("top1", GREEN), ("top5", PURPLE)):
        values = _column(evals, name)
        if np.isfinite(values).any():
            _plot(ax, x, values, color=color, label=f"{name} {values[np.isfinite(values)][-1]:.4f}", marker="o")
    ax.set_title("validation accuracy")
    if evals:
        ax.legend(frameon=False, loc="lower right")


def _draw_curve(ax: Any, steps: list[dict[str, Any]], name: str, title: str, color: str) -> None:
    _plot(ax, _column(steps, "step"), _column(steps, name), color=color, linewidth=1.5, marker=None)
    ax.set_title(title)


def _draw_throughput(ax: Any, steps: list[dict[str, Any]]) -> None:
    x = _column(steps, "step")
    _plot(ax, x, _column(steps, "images_per_s"), color=BLUE, linewidth=1.2, marker=None)
    ax.set_ylim(bottom=0)
    ax.set_ylabel("images/s", color=BLUE)
    right = ax.twinx()
    _plot(right, x, 100 * _column(steps, "data_wait"), color=ORANGE, linewidth=1.2, marker=None)
    right.set_ylim(0, 100)
    right.set_ylabel("waiting for data, %", color=ORANGE)
    right.spines[["top"]].set_visible(False)
    ax.set_title("throughput and data wait")


def _title(run_dir: Path, steps: list[dict[str, Any]], evals: list[dict[str, Any]]) -> str:
    parts = [_recipe_name(run_dir) or run_dir.name]
    if evals:
        parts.append(f"top-1 {evals[-1].get('top1', np.nan):.4f} at step {evals[-1]['step']}")
    rates = _column(steps, "images_per_s")
    if np.isfinite(rates).any():
        parts.append(f"{np.nanmedian(rates):,.0f} images/s (median)")
    return "   ·   ".join(parts)


def _recipe_name(run_dir: Path) -> str | None:
    """`name` at the top of config.toml, or of its [train] section."""
    try:
        config = tomllib.loads((run_dir / "config.toml").read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError):
        return None
    name = config.get("name") or config.get("train", {}).get("name")
    return str(name) if name else None


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python -m training.report RUN…")
    try:
        for argument in sys.argv[1:]:
            print(write_report(Path(argument)))
    except ValueError as message:
        sys.exit(f"error: {message}")
