"""What `bench.py` runs. `programs` is what is timed, `measure` how, `record` what a result is; docs/benchmarking.md: why."""
