"""`bench.py`: its figures are consistent, and its JSON holds what scripts read."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import bench

SMALL = ["--batch-size", "8", "--image-size", "32", "--seconds", "0.3", "--repeats", "3", "--device", "cpu"]


@pytest.mark.parametrize("loader", ["dali", "reference", "synthetic"])
def test_loader_writes_its_figures(loader: str, dataset_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "out" / "result.json"
    arguments = ["loader", "--data", str(dataset_dir), "--loader", loader, "--threads", "1", "--json", str(file)]
    result = CliRunner().invoke(bench.main, [*arguments, *SMALL])
    assert result.exit_code == 0, result.output
    figures = json.loads(file.read_text())
    assert 0 < figures["images_per_s_min"] <= figures["images_per_s"] <= figures["images_per_s_max"]
    assert figures["data_wait"] > 0.5, "a loader that nobody works on is all waiting"
    assert (
        figures["settings"] | {"loader": loader, "image_size": 32, "batch_size": 8, "threads": 1} == figures["settings"]
    )
    assert figures["env"]["packages"]["torch"]


@pytest.mark.parametrize("kind", ["compute", "train"])
def test_steps_are_measured(kind: str, dataset_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    network = ["--recipe", "demo", "--set", "model.name=cifar_resnet8"]
    result = CliRunner().invoke(bench.main, [kind, "--data", str(dataset_dir), *network, "--json", str(file), *SMALL])
    assert result.exit_code == 0, result.output
    figures = json.loads(file.read_text())
    assert figures["images_per_s"] > 0
    assert figures["settings"]["model"] == "cifar_resnet8"
    assert figures["data_wait"] < 0.9


def test_two_loaders_are_compared_in_turn(dataset_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    pair = ["--loader", "synthetic", "--against", "dali", "--json", str(file)]
    result = CliRunner().invoke(bench.main, ["loader", "--data", str(dataset_dir), *pair, *SMALL])
    assert result.exit_code == 0, result.output
    figures = json.loads(file.read_text())
    assert figures["ratio"] > 1, "making no images is faster than decoding them"
    assert figures["against"]["loader"] == "dali"


@pytest.mark.parametrize("more", [["--data", "nowhere"], ["--recipe", "nothing"], ["--set", "data.threads=x"]])
def test_bad_input_gets_one_clear_line(more: list[str], dataset_dir: Path) -> None:
    result = CliRunner().invoke(bench.main, ["loader", "--data", str(dataset_dir), *more])
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
