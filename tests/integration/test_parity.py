"""`bench.py parity`: its statistics against NumPy's, and its report."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import bench
from benchmarks import parity
from recipes import Recipe
from shards.format import ShardSet
from tests.conftest import VAL_SIZES

SMALL_IMAGES = [
    f"--set={setting}" for setting in ("data.image_size=32", "data.val_image_size=32", "data.val_resize_size=36")
]


def test_parity_reports_both_splits(dataset_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    arguments = ["parity", "--data", str(dataset_dir), "--num", "50", "--out", str(out), *SMALL_IMAGES]
    result = CliRunner().invoke(bench.main, [*arguments, "--threads", "1", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    report = json.loads((out / "parity.json").read_text())
    splits = [(line["split"], line["num_images"]) for line in report["differences"]]
    assert splits == [("training", 50), ("validation", len(VAL_SIZES))]
    for line in report["differences"]:
        assert line["mean"] <= line["worst_mean"] < 1.5, "a grey level or so, or another image was decoded"
        assert line["worst_image"].endswith(".jpg")
        assert Image.open(out / line["picture"]).size == (3 * 32, 32)
        assert line["picture"] in result.output


def test_parity_statistics_are_numpys(dataset: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    feed = parity.feed_of(Recipe(), dataset.split("val"), False, 8)
    rng = np.random.default_rng(0)
    ours, noise = rng.uniform(20, 200, (8, 3, 5, 5)), rng.exponential(3, (8, 3, 5, 5))
    noise[5] += 4

    def both(*_: object) -> Iterator[tuple[torch.Tensor, ...]]:
        for rows in (slice(0, 3), slice(3, 8)):
            left, right = (levels[rows] for levels in (ours, ours + noise))
            yield torch.from_numpy(left).float(), torch.from_numpy(right).float(), torch.arange(8)[rows]

    monkeypatch.setattr(parity, "both", both)
    found = parity.compare(feed, torch.device("cpu"), 1, tmp_path)
    assert found.num_images == 8
    np.testing.assert_allclose(found.mean, noise.mean(), rtol=1e-4)
    np.testing.assert_allclose(found.p99, np.percentile(noise, 99), atol=2 * parity.BIN)
    np.testing.assert_allclose([found.max, found.worst_mean], [noise.max(), noise[5].mean()], rtol=1e-4)
    assert found.worst_image == dataset.split("val").source_name(5)
    pixels = np.asarray(Image.open(tmp_path / found.picture), np.float64).transpose(2, 0, 1)
    expected = [ours[5], ours[5] + noise[5], noise[5] * 8]
    np.testing.assert_allclose(pixels, np.concatenate(expected, axis=2).clip(0, 255), atol=0.51)
