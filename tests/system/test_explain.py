"""`bench.py explain` names a slow disk. tests/nightly covers slow decoding and a slow network."""

import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from penstock import bench
from penstock.pipeline.reader import ShardReader
from penstock.training import environment
from tests.common.explaining import TINY, explain


@pytest.fixture(autouse=True)
def quick(short_turns: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "best_precision", lambda device: "fp32")


def test_a_slow_disk_is_named(dataset_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    views = ShardReader.views

    def slow_views(reader: ShardReader, sample_ids: np.ndarray) -> list[np.ndarray]:
        time.sleep(0.05)
        return views(reader, sample_ids)

    monkeypatch.setattr(ShardReader, "views", slow_views)
    found, output = explain(dataset_dir, *TINY, "--batch-size", "2", "--threads", "1", tmp_path=tmp_path)
    assert found["bottleneck"] == "read"
    assert 1 / found["costs"]["read"]["clock_s"] < 2 / 0.05
    assert "cache=encoded" in found["advice"][0]["option"], "nothing else takes reading out of the epochs"
    assert found["predicted"]["train"] < 2 / 0.05
    assert "No communication: there is only 1 rank." in output
    before, _, after = output.partition("Most worth trying:")
    assert "The bottleneck is read: " in before
    assert max(map(len, (before + after.partition("Details:")[2]).splitlines())) <= 80, "without a terminal"


def test_bad_input_gets_one_clear_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(bench.main, ["explain", "--data", str(tmp_path)])
    assert result.exit_code == 1
    assert result.output.startswith(f"Error: {tmp_path}: no packed dataset here")
