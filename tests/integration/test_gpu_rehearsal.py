"""`python -m benchmarks.gpu --rehearse`: every stage in small on the CPU, as it will run on a GPU.

`check` runs as on a machine that lacks DALI and other packages: their imports are blocked.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.registry import STAGES

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
NEEDS_A_GPU = {"h2d", "tests", "reduce-overhead", "max-autotune-no-cudagraphs", "max-autotune", "compiled-large",
               "end-to-end-no-graphs"}  # fmt: skip


def rehearse(out: Path, *arguments: str, search: Path | None = None) -> tuple[str, dict[str, dict[str, Any]]]:
    """What the command prints, and the result files by the stage's name. It must end well."""
    path = os.pathsep.join(map(str, filter(None, (search, ROOT))))
    command = [sys.executable, "-m", "benchmarks.gpu", *arguments, "--rehearse", "--out", str(out)]
    done = subprocess.run(
        command, cwd=out.parent, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = [json.loads(file.read_text()) for file in out.glob("*-*.json")]
    return done.stdout, {result["stage"]: result for result in results}


def check(printed: str, results: dict[str, dict[str, Any]], out: Path, skipped: set[str]) -> None:
    table = printed[printed.index("\nstage ") :]
    for name, result in results.items():
        assert f"{result['part']} {name} " in table
        assert result["verdict"] in table
        assert result["env"]["packages"]["torch"]
        assert result["env"]["cores_allowed"]
        assert result["seconds"] <= result.get("limit_s", 0)
        if name in skipped:
            assert result["verdict"].startswith("skipped: ")
        else:
            assert result["verdict"] == "rehearsed", result
            assert result["figures"], name
            assert all(row["verdict"] == "rehearsed" for row in result["figures"])
    joined = [
        result
        for part in {r["part"] for r in results.values()}
        for result in json.loads((out / f"{part}.json").read_text())
    ]
    assert sorted(result["stage"] for result in joined) == sorted(results)
    assert all(result == results[result["stage"]] for result in joined)
    assert len(json.loads((out / "summary.json").read_text())) == len(results)


def test_check_without_dali_and_what_else_may_be_missing(tmp_path: Path) -> None:
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "sitecustomize.py").write_text(BLOCK)
    printed, results = rehearse(tmp_path / "out", "check", search=tmp_path / "search")
    assert set(results) == {"device", "run", "recipes", "h2d", "tests"}
    check(printed, results, tmp_path / "out", {"h2d", "tests"})
    assert results["tests"]["verdict"] == "skipped: DALI is not installed"
    assert results["h2d"]["verdict"] == "skipped: needs a GPU"
    resumed = [row for row in results["run"]["figures"] if "resumed" in row["what"]]
    assert [row["text"] for row in resumed] == ["samples the same"] * 2
    assert [row["figure"] for row in resumed] == [0, 0]


def test_compute_decode_and_train(tmp_path: Path) -> None:
    pytest.importorskip("nvidia.dali")
    names = [stage.name for stage in STAGES if stage.part != "check"]
    printed, results = rehearse(tmp_path / "out", "all", "--only", ",".join(names))
    assert set(results) == set(names)
    check(printed, results, tmp_path / "out", NEEDS_A_GPU)
    decoded = [row for row in results["whole-fancy"]["figures"] if "decoders" in row]
    assert [row["decoders"] for row in decoded] == [{"libjpeg_turbo_decoder": 8}] * 2
    assert all(0 < row["mean"] < 1 for row in decoded)
    audits = [row["text"] for row in results["resume"]["figures"] if "audit" in row["what"]]
    assert audits == ["2 epochs, 512 samples as planned"] * 3
