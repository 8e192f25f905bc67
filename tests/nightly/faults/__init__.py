"""Fault tolerance of whole runs: each fault is injected at an exact place, and the end is compared with a clean run's.

`python -m tests.nightly.faults --rounds N` prints the table. pytest runs one round of some of the faults.
"""
