"""`bench.py peers` with the real programs that the project's environment has, each in its own process."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from penstock.benchmarks import record
from penstock.benchmarks.peers import command, run
from penstock.benchmarks.peers.registry import OURS

MEASURED = ["torchvision-tensor", "webdataset"]


@pytest.mark.long
def test_peers_are_checked_measured_and_compared(
    dataset_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "NUM_CHECKED", 300)
    file = tmp_path / "result.json"
    options = ["--data", dataset_dir, "--folder", tmp_path / "peers", "--image-size", 32, "--batch-size", 16]
    options += ["--threads", 1, "--workers", 1, "--seconds", 0.1, "--repeats", 2, "--json", file]
    for name in [*MEASURED, "ffcv"]:
        options += ["--only", name]
    ran = CliRunner().invoke(command, [str(option) for option in options])
    assert ran.exit_code == 0, ran.output

    result = record.read(file)
    assert set(result.programs) == {OURS, *MEASURED}
    assert set(result.ratios) == {f"{OURS} / {name}" for name in MEASURED}
    assert list(result.more["skipped"]) == ["ffcv"]
    assert result.more["failed"] == {}
    for name, figures in result.programs.items():
        assert len(figures.images_per_s) == 2
        assert figures.workers == 1
        assert 50 < (figures.memory_mb or 0) < 20_000, name
        assert 0.05 < (figures.first_batch_s or 0) < 600, name
        assert (figures.version or "")[0].isdigit()
    programs = result.programs
    assert programs["webdataset"].size_bytes == programs[OURS].size_bytes
    assert 0 < (programs["torchvision-tensor"].size_bytes or 0) < (programs["webdataset"].size_bytes or 0)
    assert (
        "ffcv: skipped: its environment does not exist yet. Install it with: python bench.py peers --setup"
        in ran.output
    )
    assert "ours/theirs" in ran.output
