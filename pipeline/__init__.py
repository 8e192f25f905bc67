"""Packed shards → batches. The plan decides every step up front (NumPy); DALI executes it."""
