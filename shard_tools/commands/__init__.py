"""The command line of `python -m shard_tools`: `pack` has the commands that make datasets, `inspect` the others."""
