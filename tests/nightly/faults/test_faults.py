"""One round of each fault. CI's short round runs some of them."""

import random

import pytest

from tests.nightly.faults.bench import Bench
from tests.nightly.faults.cases import CASES, QUICK


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("faults"), random.Random(0))


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.long) for n in CASES])
def test_a_run_outlives(name: str, bench: Bench) -> None:
    assert CASES[name](bench).wrong_samples == 0
