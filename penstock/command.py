"""The command `penstock`: all programs of the project under one name, with the click commands of the checkout.

penstock train | bench             train.py, bench.py
penstock eval | predict | …        the sub-commands of train.py
penstock pack | verify | info | …  the sub-commands of `python -m shard_tools`
"""

import re
from collections.abc import Iterator
from importlib import import_module

import click

from penstock.shard_tools import terminal

PROGRAMS = {"train": "penstock.train", "bench": "penstock.bench"}  # a module's `main`
GROUPS = ("penstock.shard_tools.__main__", "penstock.train")  # modules; `main` has the sub-commands
AS_TYPED = (  # a program's name in the checkout's texts → the command to type here
    (re.compile(r"(torchrun [^\n]*?)\b(train|bench)\.py\b"), r"\1-m penstock \2"),
    (re.compile(r"\b(?:python )?train\.py (?=(?:eval|predict|export|replay|audit|report)\b)"), "penstock "),
    (re.compile(r"\b(?:python )?(train|bench)\.py\b"), r"penstock \1"),
    (re.compile(r"\bpython -m shard_tools\b"), "penstock"),
)


class Commands(terminal.Group):
    """Finds a command in its own module, and imports only that."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*PROGRAMS, *(name for group in _groups() for name in group.commands)]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name in PROGRAMS:
            program: click.Command = import_module(PROGRAMS[name]).main
            return program
        return next((found for group in _groups() if (found := group.get_command(ctx, name))), None)


def _groups() -> Iterator[click.Group]:
    for module in GROUPS:
        yield import_module(module).main


class Formatter(click.HelpFormatter):
    """Writes --help with the `penstock` commands in place of the checkout's programs."""

    def getvalue(self) -> str:
        text = super().getvalue()
        for theirs, ours in AS_TYPED:
            text = theirs.sub(ours, text)
        return text


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="penstock")
def main() -> None:
    """Pack images into shards, train on them, and measure what limits the speed.

    \b
    penstock train                                          the demo: makes its own images, a minute or two on 2 cores
    penstock pack IMAGENET data/in1k                        images → shards, once
    torchrun --nproc-per-node 8 -m penstock train --data data/in1k --recipe rn50-90ep
    penstock bench explain --data data/in1k                 find the stage that limits the speed
    """


def run() -> None:
    """The console script's entry."""
    click.Context.formatter_class = Formatter
    main(prog_name="penstock")
