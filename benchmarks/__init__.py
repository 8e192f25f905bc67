"""The work behind `bench.py`: `programs` are timed by `measure`, `record` keeps the results; docs/benchmarking.md."""
