"""What the tests of `bench.py` share."""

import pytest

from benchmarks import measure, programs


@pytest.fixture
def short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A measurement starts after three batches, and takes any rate for steady: what it says is not asked for."""
    monkeypatch.setattr(programs, "SETTLE_BATCHES", 3)
    monkeypatch.setattr(measure, "STEADY", 10.0)
