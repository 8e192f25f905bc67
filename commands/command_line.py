"""The command line of `train.py`: options → a checked recipe → training (`training/start.py`), or a sub-command.

Nothing heavy is imported at the top. An error in an option, a recipe or the data's path is reported within a second.
torch and similar packages take ten seconds and are imported when training starts.
"""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from penstock.commands.options import COMMANDS, CONTEXT, DEVICE, IN_ONE_PROCESS, taking
from penstock.model.names import check_network, check_teacher
from penstock.model.schedule import lr_at
from penstock.recipes import DEMO_DATA, Recipe, config, recipe_file
from penstock.recipes.config_names import keys_like
from penstock.recipes.config_text import commented_toml
from penstock.recipes.machine import load_recipe
from penstock.shard_tools import terminal
from penstock.shards.format import ShardSet
from penstock.training import run_dir as run_dirs
from penstock.training.refusal import Refused, let_rank_0_speak, refusing
from penstock.training.request import Chosen, TrainOptions
from penstock.training.splits import check_splits

if TYPE_CHECKING:
    from penstock.training.setup import Setup

F = TypeVar("F", bound=Callable[..., object])

# The names that other trainers use for options of train.py. For settings see recipes.config_names.
OTHERS_NAMES = {
    "--data": "data_dir data_path dataset root",
    "--recipe": "c cfg config config_file hparams",
    "--resume": "ckpt checkpoint resume_from resume_from_checkpoint",
    "--run-dir": "experiment exp_dir log_dir logdir out output output_dir save_dir",
}


class Group(terminal.Group):
    """Commands that also run under torchrun. An error in the command line is printed once, not by every rank."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: object
    ) -> click.Context:
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError:
            let_rank_0_speak()
            raise


class Commands(Group):
    """The sub-commands of `train.py`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            raise meant(error, ctx) from None

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name in IN_ONE_PROCESS and int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise Refused(f"{name} runs in one process; start it without torchrun")
        return super().get_command(ctx, name)


def meant(error: click.NoSuchOption, context: click.Context) -> click.NoSuchOption:
    """The error for an unknown option such as `--lr` or `--output-dir`, with the option that was probably meant."""
    word = error.option_name.lstrip("-").lower().replace("-", "_")
    found = [option for option, names in OTHERS_NAMES.items() if word in names.split()]
    found = found or [f"--set {key}=…" for key in keys_like(word, config.keys(Recipe))]
    if not found:
        return error
    return click.NoSuchOption(
        error.option_name, f"No such option {error.option_name!r}: give {' or '.join(found)}", ctx=context
    )


TRAIN_OPTIONS = (
    click.option("--data", metavar="DIR|URL",
                 help="Packed dataset.  [default: the recipe's data.path; the demo generates its own images]"),
    click.option("--recipe", "recipe_name", metavar="NAME|FILE",
                 help="Recipe: a name in recipes/, or a path.  [default: the recipe of the run in --run-dir or "
                      "--resume; otherwise demo]"),
    click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE",
                 help="Override a recipe setting. May be repeated."),
    click.option("--run-dir", metavar="DIR", type=click.Path(path_type=Path),
                 help="Directory for checkpoints, metrics and reports.  [default: runs/RECIPE-TIME]"),
    click.option("--resume", default="auto", metavar="auto|never|PATH",
                 help="auto: resume if --run-dir has a checkpoint; never: start from scratch; PATH: a run directory or "
                      "a checkpoint to resume from."),
    DEVICE,
    click.option("--max-steps", type=click.IntRange(min=0), metavar="N",
                 help="Stop after N steps, counted over the whole run."),
    click.option("--max-minutes", type=terminal.FloatRange(min=0, min_open=True), metavar="M",
                 help="Time limit for the whole run. If the recipe takes longer, its schedule is fitted to M minutes."),
    click.option("--max-val-images", type=click.IntRange(min=1), metavar="N",
                 help="For trials: validate on only N images, chosen at random but always the same."),
    click.option("--profile", type=click.IntRange(min=1), metavar="N",
                 help="Trace N steps, after the first 10, into RUN/trace.json.gz (see docs/benchmarking.md)."),
    click.option("--deterministic", is_flag=True,
                 help="Use deterministic kernels on the GPU too. On the CPU they always are."),
    click.option("--no-machine-config", is_flag=True,
                 help="Ignore the machine.toml that `bench.py tune` wrote in this folder."),
    click.option("--show-config", is_flag=True,
                 help="Print all settings as TOML, with a description of each, and exit."),
    click.option("--show-schedule", is_flag=True,
                 help="Plot learning rate and sizes over the epochs, and exit."),
)  # fmt: skip


def command_line(train: "Callable[[Setup], None]") -> click.Group:
    """Build the program: its sub-commands, and a training run by `train` if no sub-command is given.

    The context's object is the time at which the command began, by `time.perf_counter`. It defaults to the time of the
    call.
    """

    @click.group(cls=Commands, commands=COMMANDS, invoke_without_command=True, context_settings=CONTEXT)
    @with_train_options
    @taking(TrainOptions)
    def main(options: TrainOptions) -> None:
        """Train a classifier from packed shards, or use a trained network.

        \b
        python train.py                                    the demo: makes its own images, a minute or two on 2 cores
        python train.py --data DIR --recipe cifar10-cpu    pack DIR first: python -m shard_tools pack SOURCE DIR
        torchrun --nproc-per-node 8 train.py --data DIR --recipe rn50-90ep

        Ctrl-C and SIGTERM write a checkpoint and stop the run. The same command with the same --run-dir resumes it, on
        any number of GPUs that divides the global batch size. The last lines show top-1, images/s and the path of the
        report.
        """
        context = click.get_current_context()
        if not context.invoked_subcommand:
            run(train, options, began=context.obj or time.perf_counter())

    return main


def with_train_options(function: F) -> F:
    for option in reversed(TRAIN_OPTIONS):
        function = option(function)
    return function


def run(train: "Callable[[Setup], None]", options: TrainOptions, began: float) -> None:
    """Print the settings or the schedule if an option requests it, otherwise train."""
    with refusing():
        chosen = choose_recipe(options)
    if options.show_config:
        click.echo(commented_toml(chosen.recipe), nl=False)
        return
    if options.show_schedule:
        from penstock.recipes.show import schedule_chart

        click.echo(schedule_chart(chosen.recipe))
        return
    with refusing():
        dataset = check(chosen, options)

    if os.environ.get("RANK", "0") == "0":
        click.echo(f"{chosen.origin}: loading PyTorch and DALI")  # takes five seconds, or a minute the first time
    from penstock.training.start import start

    start(train, chosen, options, dataset, began)


def choose_recipe(options: TrainOptions) -> Chosen:
    """Return the recipe with the options applied: the named one, that of the run to resume, or the demo's.

    Raises ValueError, in one line, for an error in the recipe or the options.
    """
    own = None if options.recipe_name else run_dirs.config_of_run(options.resume, options.run_dir)
    file = own or recipe_file(options.recipe_name or "demo")
    use_machine = not options.no_machine_config
    try:
        recipe, of_machine = load_recipe(file, options.overrides, device=options.device, use=use_machine)
    except ValueError as error:
        raise ValueError(f"{error}; give --recipe" if own and str(error).startswith(str(own)) else str(error)) from None
    recipe = replace(recipe, data=replace(recipe.data, path=options.data or recipe.data.path))
    name, origin = file.stem, f"recipe {file.stem}"
    if file.name == run_dirs.CONFIG_FILE:
        name, origin = file.absolute().parent.name, f"recipe {file}"
    if own:
        origin = f"the run's own settings in {own} (no --recipe given)"
    return Chosen(recipe, name, origin, of_machine)


def check(chosen: Chosen, options: TrainOptions) -> ShardSet | None:
    """Check everything that needs no torch. Return the dataset, or None for the demo's, which does not exist yet.

    Raises ValueError, in one line, for the first error.
    """
    recipe = chosen.recipe
    run_dirs.check_resume(options.resume)
    check_network(recipe.model.name)
    check_teacher(recipe.loss.teacher, recipe.loss.teacher_weights)
    lr_at(0, epochs=recipe.train.epochs, base_lr=recipe.optimizer.lr, config=recipe.schedule)
    if recipe.train.wandb and not find_spec("wandb"):
        raise ValueError("train.wandb: the package wandb is not installed. Install it: uv pip install wandb")
    if not recipe.data.path:
        raise ValueError(f"{chosen.origin}: names no data. Give --data DIR")
    for line in config.to_toml(recipe).splitlines():
        if any("\ud800" <= character <= "\udfff" for character in line):  # a file name that is not UTF-8
            raise ValueError(f"{line}: {run_dirs.CONFIG_FILE} cannot hold this name, which is not UTF-8. Rename the "
                             "file, or link to it")  # fmt: skip
    run_dirs.check_place(options.run_dir or Path("runs"))
    if recipe.data.path == DEMO_DATA:
        return None
    try:
        dataset = ShardSet.open(recipe.data.path, recipe.data.cache_dir, recipe.data.store_timeout_s)
    except ValueError as error:
        hint = "" if options.data else "; if the data is elsewhere, give --data DIR"
        raise ValueError(f"{error}{hint}") from None
    check_splits(recipe, dataset)
    return dataset
