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
IN_ONE_PROCESS = ("predict", "export", "replay")


class LazyGroup(click.Group):
    """A group whose commands are the attributes `command` of the modules in COMMANDS."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        if name in IN_ONE_PROCESS and int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise click.ClickException(f"{name} runs in one process; start it without torchrun")
        command: click.Command = import_module(COMMANDS[name]).command
        return command
