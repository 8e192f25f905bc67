"""One round of each fault; all of them with PENSTOCK_LONG=1, else the part for every day."""

import os
import random

import pytest

from tests.integration.faults.bench import Bench
from tests.integration.faults.cases import CASES, QUICK


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("faults"), random.Random(0))


@pytest.mark.parametrize("name", CASES if os.environ.get("PENSTOCK_LONG") else QUICK)
def test_a_run_outlives(name: str, bench: Bench) -> None:
    try:
        outcome = CASES[name](bench)
    except PermissionError as error:
        pytest.skip(str(error))
    assert outcome.wrong_samples == 0
