"""The command `penstock`: all programs of the project under one name, the same click commands as in the checkout.

penstock train | bench             train.py, bench.py
penstock eval | predict | …        the sub-commands of train.py
penstock pack | verify | info | …  those of `python -m shard_tools`
"""

from importlib import import_module
from typing import TYPE_CHECKING

import click

from penstock.shard_tools import terminal

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAMS = {"train": "penstock.train", "bench": "penstock.bench"}  # a module's `main`
GROUPS = ("penstock.shard_tools.__main__", "penstock.train")  # whose `main` has commands that are also ours
AS_INSTALLED = {  # how the checkout's texts name the programs, longest first
    "torchrun --nproc-per-node 8 train.py": "torchrun --nproc-per-node 8 -m penstock train",
    "torchrun --nproc-per-node 8 bench.py": "torchrun --nproc-per-node 8 -m penstock bench",
    "python -m shard_tools": "penstock",
    "python train.py": "penstock train",
    "python bench.py": "penstock bench",
    "`bench.py ": "`penstock bench ",
}


class Commands(terminal.Group):
    """Looks a command up where it is at home, and imports no more than that."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*PROGRAMS, *(name for group in _groups() for name in group.commands)]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name in PROGRAMS:
            program: click.Command = import_module(PROGRAMS[name]).main
            return renamed(program)
        return next((renamed(found) for group in _groups() if (found := group.get_command(ctx, name))), None)


def _groups() -> "Iterator[click.Group]":
    for module in GROUPS:
        yield import_module(module).main


def renamed(command: click.Command) -> click.Command:
    """The command, and those inside it, with the names of the programs in its help as they are typed here."""
    for theirs, ours in AS_INSTALLED.items():
        command.help = command.help and command.help.replace(theirs, ours)
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            renamed(inner)
    return command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="penstock")
def main() -> None:
    """Pack images into shards, train on them, and measure what limits the speed.

    \b
    penstock train                                          the demo: makes its own images, a minute or two on 2 cores
    penstock pack IMAGENET data/in1k                        images → shards, once
    torchrun --nproc-per-node 8 -m penstock train --data data/in1k --recipe rn50-90ep
    penstock bench explain --data data/in1k                 which stage is the limit
    """
