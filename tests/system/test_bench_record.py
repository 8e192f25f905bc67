"""`bench.py record`: a finished run as a result file, and its row in the table of docs/recipes.md."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from penstock import bench
from penstock.benchmarks.docs import recipes_page
from tests.common import runs


@pytest.fixture(scope="module")
def finished(dataset_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "small"
    assert runs.run(dataset_dir, run_dir, "--recipe", "demo").exit_code == 0
    called(run_dir, "/somewhere/train.py", "--recipe", "demo")  # the tests' own command stands there
    return run_dir


def called(run_dir: Path, *words: str) -> None:
    env = json.loads((run_dir / "env.json").read_text())
    (run_dir / "env.json").write_text(json.dumps(env | {"command": list(words)}))


def record(run_dir: Path, out: Path) -> Any:
    return CliRunner().invoke(bench.main, ["record", str(run_dir), "--json", str(out)])


def test_a_result_has_the_runs_curve_and_end(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = record(finished, tmp_path / "run-small.json")
    assert done.exit_code == 0, done.output
    content = json.loads((tmp_path / "run-small.json").read_text())
    (end,), evals, steps = (runs.lines(finished, kind) for kind in ("end", "eval", "step"))
    assert content["recipe"] == "demo"
    assert content["end"].items() <= end.items()
    assert [line["top1"] for line in content["evals"]] == [line["top1"] for line in evals]
    assert [y for _, y in content["loss"]] == pytest.approx([line["loss"] for line in steps], abs=1e-4)
    assert "train.global_batch_size: 64 → 12" in content["changed"]
    assert not [line for line in content["changed"] if line.startswith(("data.path", "train.eval_every"))]
    assert content["env"]["command"][0] == "train.py", "no path of the machine"

    monkeypatch.setattr(recipes_page, "RESULTS", tmp_path)
    *_, row = recipes_page.trained_block().splitlines()
    assert row.startswith("| `demo` with ")
    assert f"| {end['top1']:.4f} | {runs.EPOCHS} |" in row


def test_what_cannot_be_recorded_costs_a_line(finished: Path, tmp_path: Path) -> None:
    for name, words, message in (
        ("no recipe", ["train.py"], "its last command names no --recipe"),
        ("unfinished", ["train.py", "--recipe", "demo"], "not a finished run"),
        ("no run", None, "not a run directory"),
    ):
        run_dir = tmp_path / name
        run_dir.mkdir()
        if words:
            for file in ("metrics.jsonl", "config.toml", "env.json"):
                (run_dir / file).write_bytes((finished / file).read_bytes())
            called(run_dir, *words)
        if name == "unfinished":
            kept = [line for line in (run_dir / "metrics.jsonl").read_text().splitlines() if '"end"' not in line]
            (run_dir / "metrics.jsonl").write_text("\n".join(kept) + "\n")
        done = record(run_dir, tmp_path / "x.json")
        assert done.exit_code == 1
        assert message in done.output
        assert len(done.output.splitlines()) == 1
        assert not (tmp_path / "x.json").exists()
