"""One round of each fault; all of them with PENSTOCK_LONG=1, else the part for every day."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.nightly.faults.cases import CASES, QUICK

ROOT = Path(__file__).parents[3]
NAMES = tuple(CASES) if os.environ.get("PENSTOCK_LONG") else QUICK


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What each fault did. In a process of its own: the runs are forked from one that has imported what they need."""
    table = tmp_path_factory.mktemp("faults") / "table.json"
    only = [argument for name in NAMES for argument in ("--only", name)]
    command = [sys.executable, "-m", "tests.nightly.faults", "--json", str(table), *only]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120 * len(NAMES))
    assert table.exists(), done.stderr
    return {row["fault"]: row for row in json.loads(table.read_text())}


@pytest.mark.parametrize("name", NAMES)
def test_a_run_outlives(name: str, rows: dict[str, dict[str, Any]]) -> None:
    assert rows[name]["failed"] == []
    assert rows[name]["wrong_samples"] == 0
