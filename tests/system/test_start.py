"""How `train.py` starts: a refusal leaves no trace and is reported once, and a bare command finds its settings."""

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from penstock import train
from tests.common import forked
from tests.common.runs import ROOT, by_step, run

REFUSED: dict[str, tuple[list[str], str]] = {
    "the other run's recipe": (["--resume", "{one_step}", "--set", "optimizer.lr=0.01"], "made with other settings"),
    "its own recipe": (["--set", "optimizer.lr=0.01"], "made with other settings"),
    "no checkpoint": (["--resume", "{data}"], "no checkpoint there"),
    "pretrained": (["--resume", "never", "--set", "model.pretrained=nowhere.pt"], "nowhere.pt"),
    "global batch": (["--resume", "never", "--set", "train.accumulation=5"], "train.accumulation 5"),
    "image size": (["--resume", "never", "--set", "model.name=vit_b_32"], "accepts only images of 224 px"),
    "warm-up": (["--resume", "never", "--set", "schedule.warmup_epochs=9"], "schedule.warmup_epochs"),
    "test split": (["--resume", "never", "--set", "data.test_split=tset"], "train, val"),
    "training shard": (["--resume", "never"], "train-000001.tar"),
    "validation shard": ([], "val-000000.tar"),
}


@pytest.fixture(scope="module")
def one_step(dataset_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "one"
    assert run(dataset_dir, run_dir, "--max-steps", "1").exit_code == 0
    return run_dir


@pytest.mark.parametrize("case", REFUSED)
def test_a_start_that_is_refused_leaves_the_earlier_run_as_it_was(
    case: str, one_step: Path, dataset_copy: Path, tmp_path: Path
) -> None:
    more, expected = REFUSED[case]
    if case.endswith("shard"):
        (dataset_copy / expected).unlink()
    run_dir = Path(shutil.copytree(one_step, tmp_path / "runs/run"))
    before = {path: path.is_dir() or path.read_bytes() for path in (tmp_path / "runs").rglob("*")}
    result = run(dataset_copy, run_dir, *[word.format(one_step=one_step, data=dataset_copy) for word in more])
    assert result.exit_code == 1, result.output
    assert expected in result.output
    assert {path: path.is_dir() or path.read_bytes() for path in (tmp_path / "runs").rglob("*")} == before
    if "never" in more:
        assert run(dataset_copy, tmp_path / "runs/new/one", *more).exit_code == 1
        assert not (tmp_path / "runs/new").exists()


def test_without_a_recipe_a_run_goes_on_with_its_own_settings(
    one_step: Path, dataset_copy: Path, tmp_path: Path
) -> None:
    """Its data have moved, too; the loss is another's where other settings were taken."""
    run_dir = Path(shutil.copytree(one_step, tmp_path / "run"))
    bare = ["--run-dir", str(run_dir), "--data", str(dataset_copy), "--device", "cpu", "--max-steps", "2"]
    result = CliRunner().invoke(train.main, bare)
    assert result.exit_code == 0, result.output
    assert f"the run's own settings in {run_dir}/config.toml (no --recipe given)" in result.output
    assert "recipe run" not in result.output  # a directory's name is no recipe's
    assert "resuming from" in result.output
    assert len(by_step(run_dir, "loss")) == 2
    changed = CliRunner().invoke(train.main, [*bare, "--set", "optimizer.lr=0.7"])
    assert changed.exit_code == 1
    assert "optimizer.lr: 0.2 → 0.7" in changed.output
    # --resume says whose: here a checkpoint of another run, which stays as it is
    other = tmp_path / "other"
    again = ["--run-dir", str(other), "--resume", str(run_dir / "checkpoints/last.pt"), *bare[2:-1], "3"]
    result = CliRunner().invoke(train.main, again)
    assert result.exit_code == 0, result.output
    assert list(by_step(other, "loss")) == [2]
    assert len(by_step(run_dir, "loss")) == 2


def test_a_run_without_its_settings_wants_a_recipe(one_step: Path, tmp_path: Path) -> None:
    """Such a run remains if only checkpoints were copied, or after a full disk."""
    run_dir = Path(shutil.copytree(one_step, tmp_path / "run"))
    (run_dir / "config.toml").write_text("[train")
    broken = CliRunner().invoke(train.main, ["--run-dir", str(run_dir)])
    assert f"{run_dir}/config.toml: not a TOML file" in broken.output
    assert broken.output.endswith("; give --recipe\n")
    (run_dir / "config.toml").unlink()
    lost = CliRunner().invoke(train.main, ["--run-dir", str(run_dir)])
    assert f"{run_dir}: has checkpoints but no config.toml with its settings. Give --recipe" in lost.output
    assert broken.exit_code == lost.exit_code == 1


@pytest.mark.parametrize("program", ["train.py", "bench.py loader"])
def test_under_torchrun_what_is_wrong_is_told_once(program: str) -> None:
    script, *command = program.split()
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    done = forked.run([*launcher, ROOT / script, *command, "--set", "optimizer.learning_rate=1"], timeout=120)
    assert done.returncode == 1
    assert done.stderr.count("Error: --set optimizer.learning_rate=1") == 1, done.stderr
