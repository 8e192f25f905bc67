"""What `bench.py` runs. `measure` is how anything is timed, `record` what a result is; docs/benchmarking.md: why."""
