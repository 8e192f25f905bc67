"""The command line of `train.py`: options → a checked recipe → training (`training/start.py`), or a sub-command.

Nothing heavy is imported at the top. What is wrong with an option, a recipe or the data's path is told in a second;
torch and the like, which take ten, come when training starts.
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

# What other trainers call the options of train.py; for settings see recipes.config_names.
OTHERS_NAMES = {
    "--data": "data_dir data_path dataset root",
    "--recipe": "c cfg config config_file hparams",
    "--resume": "ckpt checkpoint resume_from resume_from_checkpoint",
    "--run-dir": "experiment exp_dir log_dir logdir out output output_dir save_dir",
}


class Group(terminal.Group):
    """Commands that run under torchrun, too: what is wrong with the command line is told once."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: object
    ) -> click.Context:
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError:
            let_rank_0_speak()
            raise


class Commands(Group):
    """Those of `train.py`."""

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
    """The error with what somebody means by an option that there is not: `--lr`, `--output-dir`."""
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
                 help="Packed dataset; without it the recipe's data.path (demo: own images)."),
    click.option("--recipe", "recipe_name", metavar="NAME|FILE",
                 help="A file of recipes/, or a path.  [default: that of the run in --run-dir or --resume; else demo]"),
    click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Override a recipe's value."),
    click.option("--run-dir", metavar="DIR", type=click.Path(path_type=Path), help="[default: runs/RECIPE-TIME]"),
    click.option("--resume", default="auto", metavar="auto|never|PATH", help="auto: if --run-dir has a checkpoint."),
    DEVICE,
    click.option("--max-steps", type=click.IntRange(min=0), metavar="N", help="End after N steps of the whole run."),
    click.option("--max-minutes", type=click.FloatRange(min=0, min_open=True), metavar="M",
                 help="End in time: the schedule is fitted to M minutes where the recipe takes longer."),
    click.option("--max-val-images", type=click.IntRange(min=1), metavar="N",
                 help="Validate on N images, for trials: always the same ones, chosen at random."),
    click.option("--profile", type=click.IntRange(min=1), metavar="N",
                 help="Trace N steps, after the first 10, into RUN/trace.json.gz: docs/benchmarking.md."),
    click.option("--deterministic", is_flag=True, help="Deterministic kernels on the GPU too; the CPU's always are."),
    click.option("--no-machine-config", is_flag=True,
                 help="Leave out the machine.toml of `bench.py tune` in this folder."),
    click.option("--show-config", is_flag=True, help="Print all settings as TOML, with what each means, and end."),
    click.option("--show-schedule", is_flag=True, help="Plot learning rate and sizes over the epochs, and end."),
)  # fmt: skip


def command_line(train: "Callable[[Setup], None]") -> click.Group:
    """The program: its sub-commands, and without one of them a run that trains by `train`.

    Its context's object is when the command began, by `time.perf_counter`; without one that is when it is called.
    """

    @click.group(cls=Commands, commands=COMMANDS, invoke_without_command=True, context_settings=CONTEXT)
    @with_train_options
    @taking(TrainOptions)
    def main(options: TrainOptions) -> None:
        """Train a classifier from packed shards; or run a command on what was trained.

        \b
        python train.py                                    the demo: makes its own images, a minute or two on 2 cores
        python train.py --data DIR --recipe cifar10-cpu    DIR comes from: python -m shard_tools pack SOURCE DIR
        torchrun --nproc-per-node 8 train.py --data DIR --recipe rn50-90ep

        Ctrl-C and SIGTERM write a checkpoint; the same command with the same --run-dir goes on there, on any number of
        GPUs that divides the global batch. The last lines say top-1, images/s and where the report lies.
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
    """Show what the options come to, where that is asked for, or train."""
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
        click.echo(
            f"{chosen.origin}: loading PyTorch and DALI"
        )  # five seconds, a minute where they are new on this disk
    from penstock.training.start import start

    start(train, chosen, options, dataset, began)


def choose_recipe(options: TrainOptions) -> Chosen:
    """The recipe by name, or without one that of the run that goes on, or the demo's; with what the options say.

    Raises ValueError for what is wrong in it, in one line.
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
        origin = f"no --recipe: the run's own settings, {own}"
    return Chosen(recipe, name, origin, of_machine)


def check(chosen: Chosen, options: TrainOptions) -> ShardSet | None:
    """All that can be checked without torch. Answers the dataset, or None for the demo's, which is still to be made.

    Raises ValueError for what is wrong, in one line.
    """
    recipe = chosen.recipe
    run_dirs.check_resume(options.resume)
    check_network(recipe.model.name)
    check_teacher(recipe.loss.teacher, recipe.loss.teacher_weights)
    lr_at(0, epochs=recipe.train.epochs, base_lr=recipe.optimizer.lr, config=recipe.schedule)
    if recipe.train.wandb and not find_spec("wandb"):
        raise ValueError("train.wandb: the package wandb is not installed; uv pip install wandb")
    if not recipe.data.path:
        raise ValueError(f"{chosen.origin}: names no data; give --data DIR")
    for line in config.to_toml(recipe).splitlines():
        if any("\ud800" <= character <= "\udfff" for character in line):  # a file name that is no UTF-8
            raise ValueError(f"{line}: {run_dirs.CONFIG_FILE} cannot hold such a name; rename it, or link to it")
    run_dirs.check_place(options.run_dir or Path("runs"))
    if recipe.data.path == DEMO_DATA:
        return None
    try:
        dataset = ShardSet.open(recipe.data.path, recipe.data.cache_dir, recipe.data.store_timeout_s)
    except ValueError as error:
        raise ValueError(f"{error}; if it is elsewhere: --data DIR" if not options.data else str(error)) from None
    check_splits(recipe, dataset)
    return dataset
