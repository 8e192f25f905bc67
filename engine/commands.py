"""The sub-commands of `train.py`, each beside what it does; imported when one is called."""

import os
from importlib import import_module

import click

COMMANDS = {
    "eval": "engine.evaluate",
    "predict": "engine.predict",
    "export": "engine.export",
    "replay": "engine.replay",
}
# What other trainers call the options of train.py; for settings see training.config_names.
OPTIONS = {
    "--data": "data_dir data_path dataset root",
    "--recipe": "c cfg config config_file hparams",
    "--resume": "ckpt checkpoint resume_from resume_from_checkpoint",
    "--run-dir": "experiment exp_dir log_dir logdir out output output_dir save_dir",
}
IN_ONE_PROCESS = ("predict", "export", "replay")


class LazyGroup(click.Group):
    """A group whose commands are the attributes `command` of the modules in COMMANDS."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            raise meant(error, ctx) from None

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        if name in IN_ONE_PROCESS and int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise click.ClickException(f"{name} runs in one process; start it without torchrun")
        command: click.Command = import_module(COMMANDS[name]).command
        return command


def meant(error: click.NoSuchOption, context: click.Context) -> click.NoSuchOption:
    """The error with what somebody means by an option that there is not: `--lr`, `--output-dir`."""
    from recipes import Recipe
    from training.config import keys
    from training.config_names import keys_like

    word = error.option_name.lstrip("-").lower().replace("-", "_")
    found = [option for option, names in OPTIONS.items() if word in names.split()]
    found = found or [f"--set {key}=…" for key in keys_like(word, keys(Recipe))]
    if not found:
        return error
    return click.NoSuchOption(
        error.option_name, f"No such option {error.option_name!r}: give {' or '.join(found)}", ctx=context
    )
