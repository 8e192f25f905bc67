"""`bench.py explain` names the stage that was made slow: the decoding, or the network."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from penstock.shard_tools.writer import PackOptions, pack
from penstock.training import environment
from tests.common.explaining import TINY, explain
from tests.common.images import picture

WIDTH, HEIGHT = 3000, 2250


@pytest.fixture(autouse=True)
def quick(short_turns: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "best_precision", lambda device: "fp32")


@pytest.fixture(scope="session")
def large_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed dataset of a few images as large as photographs."""
    root, rng = tmp_path_factory.mktemp("large"), np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 2)):
        for number in range(count):
            path = root / "images" / split / f"class{number % 2}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(HEIGHT, WIDTH, rng).save(path, quality=90)
    with ThreadPoolExecutor(1) as executor:
        pack(root / "images", root / "packed", PackOptions(samples_per_shard=4), executor=executor)
    return root / "packed"


@pytest.mark.long
def test_slow_decoding_is_named_and_its_cure_applied(large_images: Path, tmp_path: Path) -> None:
    found, output = explain(
        large_images,
        *TINY,
        "--batch-size",
        "2",
        "--threads",
        "1",
        "--repeats",
        "3",
        "--apply",
        "--out",
        str(tmp_path),
        tmp_path=tmp_path,
    )
    assert found["bottleneck"] == "decode"
    assert min(found["headroom"].values()) > 1
    options = [change["option"] for change in found["advice"]]
    assert options[0] == "--set data.cache=pixels", "decoding each image once is the first cure"
    assert found["advice"][0]["expected"] > 1.3, "2 and more on a quiet machine"
    assert found["applied"]["options"] == [options[0]]
    assert found["applied"]["seen"]["median"] > 0
    assert f"applied {options[0]}" in output
    (kept,) = tmp_path.glob("explain-*.json")
    assert json.loads(kept.read_text())["explain"] == found


@pytest.mark.long
def test_a_slow_network_is_named(dataset_dir: Path, tmp_path: Path) -> None:
    network = ("--set", "model.name=resnet152", "--set", "train.precision=fp32")
    found, _ = explain(dataset_dir, *network, "--batch-size", "2", "--threads", "2", tmp_path=tmp_path)
    assert found["bottleneck"] == "compute"
    assert found["headroom"]["decode"] > 3
