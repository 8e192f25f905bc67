"""Faults against whole runs: each is injected at an exact place, and the end is compared with an undisturbed run's.

`python -m tests.nightly.faults --rounds N` makes the table; pytest runs one round of a part of them.
"""
