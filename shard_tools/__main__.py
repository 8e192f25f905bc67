"""The command line `python -m shard_tools pack|verify|info|…`. It prints an error as one line and exits with 1."""

import click

from penstock.shard_tools import terminal
from penstock.shard_tools.commands import inspect, pack


@click.group(cls=terminal.Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def main() -> None:
    """Pack images into tar shards for fast training, and inspect, check and repair such shards.

    \b
    Example: an ImageFolder tree (imagenet/train/n01440764/x.JPEG, imagenet/val/n01440764/y.JPEG)
      python -m shard_tools pack imagenet data/imagenet
      python -m shard_tools info data/imagenet
      python -m shard_tools verify data/imagenet
    """


for command in (*pack.COMMANDS, *inspect.COMMANDS):
    main.add_command(command)

if __name__ == "__main__":
    main(prog_name="python -m shard_tools")
