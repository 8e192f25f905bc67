"""The command line of `python -m shard_tools`: what makes datasets in `pack`, what looks at them in `inspect`."""
