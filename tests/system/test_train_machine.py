"""`train.py` with a `machine.toml`: it shows the settings that it uses."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from penstock import train
from tests.common.machine_file import recipe_in, written


def test_train_says_what_it_took(dataset_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe_file = recipe_in(tmp_path, monkeypatch)
    written("threads = 1\nprefetch = 1\n")
    small = ["data.image_size=16", "data.val_image_size=16", "data.val_resize_size=18", "model.name=cifar_resnet8",
             "train.global_batch_size=8", "data.loader=reference", "optimizer.name=sgd"]  # fmt: skip
    sets = [word for setting in small for word in ("--set", setting)]
    arguments = ["--recipe", str(recipe_file), "--data", str(dataset_dir), "--device", "cpu", "--max-steps", "0"]
    done = CliRunner().invoke(train.main, [*arguments, *sets, "--run-dir", "run"])
    assert done.exit_code == 0, done.output
    assert "\nmachine.toml: data.threads=1, data.prefetch=1\n" in done.output
