"""Scripts that settled one question each; not part of `bench.py`. Their figures: `benchmarks/results/`, docs/LOG.md."""
