"""Packed shards → batches. The plan (NumPy) decides every step in advance; DALI executes it."""
