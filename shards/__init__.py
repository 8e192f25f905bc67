"""What a set of shards is, on disk and on remote storage: its format, the stores it lies in, their local copies."""
