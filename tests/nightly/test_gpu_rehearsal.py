"""`python -m benchmarks.gpu --rehearse`: every stage runs at a small size on the CPU, as it will run on a GPU.

`check` runs as on a machine without DALI and other packages: their imports are blocked.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from penstock.benchmarks.gpu.registry import STAGES

ROOT = Path(__file__).parents[2]
LACKING = ("nvidia.dali", "nvidia.nvimgcodec", "webdataset", "simplejpeg", "braceexpand")
BLOCK = f"""
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if any(name == one or name.startswith(one + ".") for one in {LACKING}):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Block())
"""
NEEDS_A_GPU = {"tests", "graphs", "max-autotune"}


def rehearse(out: Path, *arguments: str, search: Path | None = None) -> tuple[str, dict[str, dict[str, Any]]]:
    """Return the command's output, and the results by stage. The command must succeed."""
    path = os.pathsep.join(map(str, filter(None, (search, ROOT))))
    command = [sys.executable, "-m", "benchmarks.gpu", *arguments, "--rehearse", "--out", str(out)]
    done = subprocess.run(
        command, cwd=out.parent, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = [result for file in out.glob("*.json") for result in json.loads(file.read_text())]
    return done.stdout, {result["stage"]: result for result in results}


def check(printed: str, results: dict[str, dict[str, Any]], skipped: set[str]) -> None:
    for name, result in results.items():
        assert f"{result['part']} {name} " in printed
        assert result["verdict"] in printed
        assert result["rehearsed"]
        assert result["env"]["packages"]["torch"]
        assert result["env"]["cores_allowed"]
        if name in skipped:
            assert result["verdict"].startswith("skipped: ")
        else:
            assert result["verdict"] == "ok", result
            assert result["figures"], name
            assert all(row["verdict"] == "ok" and row["what"] in printed for row in result["figures"])


@pytest.mark.long
def test_check_without_dali_and_what_else_may_be_missing(tmp_path: Path) -> None:
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "sitecustomize.py").write_text(BLOCK)
    printed, results = rehearse(tmp_path / "out", "check", search=tmp_path / "search")
    assert set(results) == {"device", "run", "recipes", "tests"}
    check(printed, results, {"tests"})
    assert results["tests"]["verdict"] == "skipped: needs a GPU"
    resumed = [row for row in results["run"]["figures"] if "resumed" in row["what"]]
    assert [row["text"] for row in resumed] == ["2 epochs, 512 samples as planned"] * 2
    assert [row["figure"] for row in resumed] == [0, 0]


@pytest.mark.long
def test_compute_decode_and_train(tmp_path: Path) -> None:
    pytest.importorskip("nvidia.dali")
    names = [stage.name for stage in STAGES if stage.part != "check"]
    printed, results = rehearse(tmp_path / "out", "all", "--only", ",".join(names))
    assert set(results) == set(names)
    check(printed, results, NEEDS_A_GPU)
    resumed = {row["text"]: row["figure"] for row in results["resume"]["figures"]}
    assert resumed == {"2 epochs, 512 samples as planned": 0}
    assert len(results["resume"]["figures"]) == 3
