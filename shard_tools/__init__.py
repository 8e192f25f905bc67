"""Images → WebDataset tar shards with an index. Run once: `python -m shard_tools --help`."""
