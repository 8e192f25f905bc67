"""`bench.py record`: a training run's directory → a result file, for the docs: its machine, settings, curve and end."""

import json
from pathlib import Path
from typing import Any

import click

from penstock.recipes import DEMO_DATA, FREE_ON_RESUME, Recipe, recipe_file
from penstock.recipes.config import diff, from_toml, load_config

_NOT_THE_RECIPE = FREE_ON_RESUME | {"data.val_split"}  # the data's path, how often it validates, …
MAX_POINTS = 200  # of the loss, as many as a curve of the docs can show
_END = ("top1", "top5", "loss", "ema_top1", "ema_top5", "ema_loss", "images_per_s", "data_wait", "seconds",
        "total_steps", "epochs", "num_images")  # fmt: skip


def summary(folder: Path) -> dict[str, Any]:
    """Return the facts about a finished run that the docs show.

    {"format": 1, "benchmark": "run", "recipe": …, "changed": ["train.epochs: 8 → 2"], "env": {…},
     "end": {top1, images_per_s, seconds, …}, "evals": [{epoch, top1, ema_top1}], "loss": [[epoch, loss], …]}

    Raises ValueError if the directory is not a run, the run has not finished, or its files do not name the recipe.
    """
    from penstock.training.report.runs import column, epoch_of, read_run

    run = read_run(folder)
    if not run.end:
        raise ValueError(f"{folder}: not a finished run. Record it after `train.py` has ended")
    words = run.environment.get("command")
    if not isinstance(words, list):
        raise ValueError(f"{folder}: no env.json, which has the command and the machine. Record a run that has one")
    command = [Path(word).name if Path(word).is_absolute() else word for word in map(str, words)]
    config = from_toml(Recipe, (folder / "config.toml").read_text(encoding="utf-8"), str(folder / "config.toml"))
    if "--recipe" in command:
        name = command[command.index("--recipe") + 1]
    elif config.data.path == DEMO_DATA:
        name = "demo"
    else:
        raise ValueError(f"{folder}: its last command names no --recipe. Resume a run with its --recipe to record it")
    recipe = load_config(Recipe, recipe_file(name))
    changed = [line for line in diff(recipe, config) if line.partition(":")[0] not in _NOT_THE_RECIPE]
    epochs, losses = epoch_of(run, run.steps), column(run.steps, "loss")
    every = max(1, len(losses) // MAX_POINTS)
    points = (
        []
        if epochs is None
        else [[round(x, 3), round(y, 4)] for x, y in zip(epochs.tolist(), losses.tolist(), strict=True)]
    )
    evals = [{key: line[key] for key in ("epoch", "step", "top1", "ema_top1") if key in line} for line in run.evals]
    return {
        "format": 1, "benchmark": "run", "recipe": name, "changed": changed,
        "env": run.environment | {"command": command},
        "end": {key: run.end[key] for key in _END if key in run.end}, "evals": evals, "loss": points[::every],
    }  # fmt: skip


@click.command(name="record")
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False), metavar="RUN")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), required=True, help="Result file."
)
def command(folder: Path, json_file: Path) -> None:
    """Summarise a training run as a result file.

    RUN is the directory of a finished run. The result has the machine, changed settings, curve, accuracy and speed.
    """
    json_file.write_text(json.dumps(summary(folder), indent=1) + "\n", encoding="utf-8")
    click.echo(json_file)
