"""Scripts that make a table of the docs each; not part of `bench.py`."""
