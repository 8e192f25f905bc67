"""Runs → curves: one PNG of all panels, or one SVG per panel with colours that the page sets.

With one run, each series has its own colour. With several runs, each run has its own colour, the series differ by
line style, and series that are for a single run are not drawn.
"""

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from penstock.training.report.runs import Run, column, epoch_of, short_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

# Okabe and Ito's palette, which colour-blind readers can tell apart.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")
INK, FAINT = "#1b1b1f", "#d0d0d6"  # text and grid
_MAX_POINTS = 4000  # more than the number of pixel columns
_MAX_NAME = 48
# Small, because the page enlarges it: 9 pt are 11 px in the narrowest column, 13 in a wide one.
_SVG_INCHES = (3.6, 2.7)
_LINES = ("-", "--", ":", "-.")


class Series(NamedTuple):
    lines: Literal["steps", "evals", "epochs"]  # which list of the run
    field: str
    label: str
    noisy: bool = False  # drawn smoothed, over a faint line of the raw values
    several: bool = True  # drawn in a comparison of several runs too


class Panel(NamedTuple):
    name: str
    series: tuple[Series, ...]
    scale: float = 1.0
    limits: tuple[float | None, float | None] = (None, None)
    if_changing: bool = False


PANELS = (
    Panel(
        "loss",
        (
            Series("steps", "loss", "training", noisy=True),
            Series("evals", "loss", "validation"),
            Series("evals", "ema_loss", "validation, EMA", several=False),
        ),
    ),
    Panel(
        "validation accuracy",
        (
            Series("evals", "top1", "top-1"),
            Series("evals", "ema_top1", "top-1, EMA"),
            Series("evals", "top5", "top-5", several=False),
            Series("evals", "ema_top5", "top-5, EMA", several=False),
        ),
    ),
    Panel("learning rate", (Series("steps", "lr", "lr"),)),
    Panel("training speed, images/s", (Series("steps", "images_per_s", "images/s"),), limits=(0, None)),
    Panel("time waiting for data, %", (Series("steps", "data_wait", "data wait"),), scale=100, limits=(0, 100)),
    Panel("image size, px", (Series("epochs", "image_size", "image size"),), if_changing=True),
    Panel("global batch size", (Series("epochs", "global_batch_size", "batch size"),), if_changing=True),
    Panel("gradient norm", (Series("steps", "grad_norm", "norm", noisy=True),)),
    Panel("GPU memory, GB", (Series("steps", "gpu_memory_gb", "memory"),), limits=(0, None)),
)


def colours(runs: Sequence[Run]) -> list[str]:
    """Return one colour per run: from the palette, or from viridis if there are more runs than the palette has."""
    if len(runs) <= len(PALETTE):
        return list(PALETTE[: len(runs)])
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(rgba) for rgba in colormaps["viridis"](np.linspace(0, 0.95, len(runs)))]


def picture(runs: Sequence[Run], title: str) -> bytes:
    """Return a PNG of all panels that have data."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = shown_panels(runs)
    columns = min(3, max(1, len(panels)))
    rows = max(1, -(-len(panels) // columns))
    with rc_context(_style()):
        figure = Figure(figsize=(4.6 * columns, 3.2 * rows + 0.6), dpi=110, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, squeeze=False).flatten()
        for ax, panel in zip(axes, panels, strict=False):
            draw(ax, panel, runs)
        for ax in axes[len(panels) :]:
            ax.set_visible(False)
        figure.suptitle(title, fontsize=12)
        if len(runs) > 1:
            from matplotlib.lines import Line2D

            handles = [Line2D([], [], color=colour, linewidth=2.5) for colour in colours(runs)]
            names = [_legend_name(name) for name in short_names(runs)]
            figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False)
        out = io.BytesIO()
        figure.savefig(out, format="png")
    return out.getvalue()


def svgs(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Return the name and `<svg>` element of each panel.

    Colours are CSS variables: --ink and --faint, and --c0, --c1 … for the palette.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    elements = []
    for panel in shown_panels(runs):
        # The salt goes into the ids of clip paths and markers, which must differ between the SVGs of a page.
        with rc_context(_style(9) | {"svg.fonttype": "none", "svg.hashsalt": panel.name}):
            figure = Figure(figsize=_SVG_INCHES, layout="constrained")
            FigureCanvasSVG(figure)
            draw(figure.subplots(), panel, runs)
            out = io.StringIO()
            figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
        elements.append((panel.name, _embedded(out.getvalue(), panel.name)))
    return elements


def _embedded(svg: str, name: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    referenced = set(re.findall(r"#([\w.-]+)", svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in referenced else "", svg)
    svg = re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", svg, count=1)
    svg = re.sub(r'<svg ([^>]*?)height="[^"]*"', rf'<svg \1role="img" aria-label="{name}"', svg, count=1)
    for colour in (INK, FAINT, *PALETTE):
        svg = svg.replace(colour, themed(colour))
    return svg


def themed(colour: str) -> str:
    """Return the CSS for a colour: the variable that the page sets for light and dark, if it has one."""
    variables = {INK: "--ink", FAINT: "--faint"} | {known: f"--c{i}" for i, known in enumerate(PALETTE)}
    return f"var({variables[colour]})" if colour in variables else colour


def shown_panels(runs: Sequence[Run]) -> list[Panel]:
    """Return the panels for which some run has a value or, with `if_changing`, two different values."""
    panels = []
    for panel in PANELS:
        found = [
            {value for value in column(getattr(run, series.lines), series.field) if np.isfinite(value)}
            for run in runs
            for series in panel.series
        ]
        least = 2 if panel.if_changing else 1
        if any(len(values) >= least for values in found):
            panels.append(panel)
    return panels


def draw(ax: "Axes", panel: Panel, runs: Sequence[Run]) -> None:
    """Draw one panel on matplotlib axes, over epochs, or over steps if some run has not finished an epoch."""
    alone = len(runs) == 1
    in_epochs = all(epoch_of(run, run.epochs) is not None for run in runs)
    drawn: dict[str, Line2D] = {}
    for run, colour in zip(runs, colours(runs), strict=True):
        for i, series in enumerate(panel.series):
            lines = getattr(run, series.lines)
            y = panel.scale * column(lines, series.field)
            if not np.isfinite(y).any() or not (alone or series.several):
                continue
            x = epoch_of(run, lines) if in_epochs else column(lines, "step")
            assert x is not None
            label = series.label
            if alone and series.lines == "evals" and panel.name != "loss":
                label += f" {y[np.isfinite(y)][-1]:.4f}"
            line_colour, linestyle = (PALETTE[i], "-") if alone else (colour, _LINES[i])
            if series.noisy:
                if alone:
                    ax.plot(*_thinned(x, y), color=colour, alpha=0.3, linewidth=0.6)
                y = smooth(y)
            if series.lines == "epochs":  # the line at an epoch's end is for the whole epoch
                x, y = np.insert(x, 0, 0.0), np.insert(y, 0, y[0])
            drawstyle = "steps-pre" if series.lines == "epochs" else "default"
            marker = "o" if (len(x) < 40 and series.lines == "evals") or len(x) == 1 else None
            (line,) = ax.plot(*_thinned(x, y), color=line_colour, linestyle=linestyle, drawstyle=drawstyle,
                              linewidth=1.6, marker=marker, markersize=3)  # fmt: skip
            drawn.setdefault(label, line)
    ax.set_title(panel.name)
    ax.set_xlabel("epoch" if in_epochs else "step")
    ax.set_xlim(0, _length(runs, in_epochs) * 1.02)  # the same in all panels, also in one with a single point
    if ax.dataLim.width > 4:
        ax.locator_params("x", integer=True)
    ax.set_ylim(*(limit if limit is not None else now for limit, now in zip(panel.limits, ax.get_ylim(), strict=True)))
    ax.grid(alpha=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    if len(drawn) > 1 or (drawn and panel.name == "validation accuracy"):
        legend = ax.legend(drawn.values(), drawn.keys(), frameon=False)
        if not alone:
            for handle in legend.get_lines():
                handle.set_color(INK)


def _length(runs: Sequence[Run], in_epochs: bool) -> float:
    """How far the longest run came, in epochs or steps."""
    ends = [1.0]
    for run in runs:
        for lines in (run.steps, run.evals, run.epochs):
            x = epoch_of(run, lines) if in_epochs else column(lines, "step")
            ends += [] if x is None else x[np.isfinite(x)].tolist()
    return max(ends)


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    stride = len(x) // _MAX_POINTS + 1
    return x[::stride], y[::stride]


def smooth(values: np.ndarray) -> np.ndarray:
    """Return a centred moving mean over 1/50 of the run, over fewer steps at both ends. NaN does not spread."""
    width = max(len(values) // 50, 1) | 1
    window = np.ones(width)
    known = np.isfinite(values)
    total = np.convolve(np.where(known, values, 0.0), window, mode="same")
    count = np.convolve(known.astype(float), window, mode="same")
    means: np.ndarray = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0.5)
    return means


def _legend_name(name: str) -> str:
    name = name if len(name) <= _MAX_NAME else "…" + name[1 - _MAX_NAME :]
    return f" {name}" if name.startswith("_") else name  # matplotlib skips labels that begin with "_"


def _style(points: int = 8) -> dict[str, object]:
    """`points`: the size of the smallest text."""
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "axes.titlecolor")
    sizes = {
        "font.size": points + 1,
        "axes.labelsize": points + 1,
        "xtick.labelsize": points,
        "ytick.labelsize": points,
    }
    sizes |= {"axes.titlesize": points + 2, "legend.fontsize": points}
    # A dollar sign in a name is a dollar sign.
    return {**dict.fromkeys(inked, INK), "grid.color": FAINT, "text.parse_math": False, **sizes}
