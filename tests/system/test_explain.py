"""`bench.py explain` names what was made slow: the disk, the decoding, the network."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import bench
from benchmarks.explain import command
from pipeline.reader import ShardReader
from shard_tools.writer import PackOptions, pack
from tests.common.images import picture
from training import environment

WIDTH, HEIGHT = 2000, 1500


@pytest.fixture(autouse=True)
def quick(short_turns: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "best_precision", lambda device: "fp32")


@pytest.fixture(scope="session")
def large_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed dataset of a few photographs' sizes."""
    root, rng = tmp_path_factory.mktemp("large"), np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 2)):
        for number in range(count):
            path = root / "images" / split / f"class{number % 2}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(HEIGHT, WIDTH, rng).save(path, quality=90)
    with ThreadPoolExecutor(1) as executor:
        pack(root / "images", root / "packed", PackOptions(samples_per_shard=4), executor=executor)
    return root / "packed"


def explain(data: Path, *more: str, tmp_path: Path) -> tuple[dict[str, Any], str]:
    """The result's part of explain, and what was printed."""
    file = tmp_path / "result.json"
    small = ["--image-size", "32", "--device", "cpu", "--seconds", "0.1", "--repeats", "1", "--no-machine-config"]
    arguments = ["--data", str(data), "--recipe", "demo", *small, *more, "--json", str(file)]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(file.read_text())["explain"], result.output


TINY = ("--set", "model.name=cifar_resnet8", "--set", "train.precision=fp32")


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
    assert "communication: none (1 rank)" in output
    assert max(map(len, output.partition("most worth")[0].splitlines())) <= 80, "without a terminal"


def test_slow_decoding_is_named_and_its_cure_applied(large_images: Path, tmp_path: Path) -> None:
    found, output = explain(
        large_images, *TINY, "--batch-size", "2", "--threads", "1", "--apply", "--out", str(tmp_path), tmp_path=tmp_path
    )
    assert found["bottleneck"] == "decode"
    assert min(found["headroom"].values()) > 1
    options = [change["option"] for change in found["advice"]]
    assert "python -m shard_tools pack SOURCE OUT --short-side" in options[0], "36 times fewer pixels"
    assert found["advice"][0]["expected"] > 1.3, "2 and more on a quiet machine"
    if len(options) > 1 and "threads" in options[1]:
        assert found["applied"]["options"] == [options[1]]
        assert found["applied"]["seen"]["median"] > 0
        assert f"applied {options[1]}" in output
    (kept,) = tmp_path.glob("explain-*.json")
    assert json.loads(kept.read_text())["explain"] == found


def test_a_slow_network_is_named(dataset_dir: Path, tmp_path: Path) -> None:
    network = ("--set", "model.name=resnet152", "--set", "train.precision=fp32")
    found, _ = explain(dataset_dir, *network, "--batch-size", "2", "--threads", "2", tmp_path=tmp_path)
    assert found["bottleneck"] == "compute"
    assert found["headroom"]["decode"] > 3


def test_bad_input_gets_one_clear_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(bench.main, ["explain", "--data", str(tmp_path)])
    assert result.exit_code == 1
    assert result.output.startswith(f"Error: {tmp_path}: no packed dataset here")
