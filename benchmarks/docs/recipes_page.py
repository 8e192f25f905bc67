"""Training runs → docs/recipes.md: the table of the measured runs, and their curves.

Input: `run-*.json` and `first-run-*.json` (`bench.py record`), and the CIFAR-10 stages of `benchmarks.gpu`.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock.benchmarks.docs.results_page import PICTURES, RESULTS
from penstock.benchmarks.text import markdown_row, shown_rate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STAGES = {"cifar10": "cifar10-rn18", "cifar10-cpu": "cifar10-cpu"}  # of `benchmarks.gpu` → the recipe that it trains
HEAD = ("recipe", "top-1", "epochs", "images/s", "waiting for data", "time", "on")


@dataclass(frozen=True)
class Trained:
    """A finished run. top1: epoch → fraction; the last is the result. seconds: duration of the whole command."""

    recipe: str
    changed: tuple[str, ...]
    top1: dict[float, float]
    images_per_s: float
    data_wait: float
    seconds: float
    device: str
    loss: tuple[tuple[float, float], ...] = ()


def trained() -> list[Trained]:
    """Return all runs in benchmarks/results, sorted by recipe, then by device."""
    found = [_of_run(path) for path in [*RESULTS.glob("first-run-*.json"), *RESULTS.glob("run-*.json")]]
    for path in RESULTS.glob("gpu-train-*.json"):
        found += _of_stages(path)
    return sorted(found, key=lambda one: (one.recipe, one.changed, one.device))


def trained_block() -> str:
    """Return the table of the finished runs."""
    rows = [HEAD, ("---", "---:", "---:", "---:", "---:", "---:", "---")]
    for one in trained():
        name = f"`{one.recipe}`" + (f" with {', '.join(f'`{line}`' for line in one.changed)}" if one.changed else "")
        rows.append((name, f"{list(one.top1.values())[-1]:.4f}", f"{list(one.top1)[-1]:g}",
                     shown_rate(one.images_per_s), f"{one.data_wait:.1%}", f"{one.seconds:,.0f} s",
                     one.device))  # fmt: skip
    return "\n".join(map(markdown_row, rows))


def draw_all() -> list[Path]:
    """Draw the curves: one picture per recipe, with each device's top-1, and the training loss if it was recorded."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    from penstock.training.report.curves import PALETTE

    paths, runs = [], trained()
    for recipe in dict.fromkeys(one.recipe for one in runs):
        of_it = [one for one in runs if one.recipe == recipe]
        with plt.rc_context({"font.size": 9}):
            drawing, (left, right) = plt.subplots(1, 2, figsize=(8.0, 3.0), layout="constrained")
            for number, one in enumerate(of_it):
                colour, label = PALETTE[number % len(PALETTE)], ", ".join([one.device, *one.changed])
                left.plot(list(one.top1), list(one.top1.values()), color=colour, marker="o", markersize=3, label=label)
                if one.loss:
                    right.plot(*zip(*one.loss, strict=True), color=colour, linewidth=0.8, label=label)
            _finish(left, "top-1 on the validation split")
            _finish(right, "training loss")
            drawing.suptitle(recipe, fontsize=10)
            PICTURES.mkdir(parents=True, exist_ok=True)
            paths.append(PICTURES / f"trained-{recipe}.png")
            drawing.savefig(paths[-1], dpi=130)
            plt.close(drawing)
    return paths


def _finish(axes: "Axes", title: str) -> None:
    from penstock.training.report.curves import FAINT

    axes.set_title(title, fontsize=9)
    axes.set_xlabel("epoch")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=7)
    else:
        axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center", color="gray")


def _of_run(path: Path) -> Trained:
    content = json.loads(path.read_text(encoding="utf-8"))
    env, end = content["env"], content["end"]
    device = env.get("gpu") or f"{env['cpu']}, {env['cores_allowed']:g} cores"
    return Trained(
        recipe=content["recipe"], changed=tuple(content["changed"]),
        top1={line["epoch"]: line["top1"] for line in content["evals"]},
        images_per_s=end["images_per_s"], data_wait=end["data_wait"], seconds=end["seconds"], device=device,
        loss=tuple((x, y) for x, y in content["loss"]),
    )  # fmt: skip


def _of_stages(path: Path) -> Iterator[Trained]:
    for stage in json.loads(path.read_text(encoding="utf-8")):
        if stage["stage"] not in STAGES:
            continue
        figures: dict[str, dict[str, Any]] = {one["what"]: one for one in stage["figures"]}
        top1 = {float(name.removeprefix("epoch ")): one["figure"] for name, one in figures.items()
                if name.startswith("epoch ")}  # fmt: skip
        top1[list(top1)[-1]] = figures["top-1"]["figure"]  # of the average of the weights, where a recipe has one
        speed = figures["in training"]
        seconds = figures["time"]["figure"] if "time" in figures else _number(figures["top-1"]["text"])
        yield Trained(
            recipe=STAGES[stage["stage"]], changed=(), top1=top1, images_per_s=speed["figure"],
            data_wait=_number(speed["text"]) / 100, seconds=seconds, device=stage["env"]["gpu"],
        )  # fmt: skip


def _number(text: str) -> float:
    """Return the first number of a text such as "in 28 s". Raises ValueError if there is none."""
    found = re.search(r"\d+(\.\d+)?", text)
    if not found:
        raise ValueError(f'no number in "{text}"')
    return float(found[0])
