"""Sets of shards on disk and on remote storage: their format, their stores, and local copies of remote files."""
