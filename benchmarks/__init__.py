"""What `bench.py` runs: `programs` is what is timed, `measure` how, `record` what comes of it; docs/benchmarking.md."""
