"""`bench.py parity`: its statistics against NumPy's, and its report."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from penstock.benchmarks import parity
from penstock.model.config import ModelConfig
from penstock.model.networks import build_model
from penstock.recipes import Recipe, config
from penstock.shards.format import ShardSet
from tests.common import forked
from tests.common.images import VAL_SIZES

SMALL_IMAGES = [
    f"--set={setting}" for setting in ("data.image_size=32", "data.val_image_size=32", "data.val_resize_size=36")
]


def test_parity_reports_both_splits(dataset_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    arguments = ["parity", "--data", str(dataset_dir), "--num", "50", "--out", str(out), *SMALL_IMAGES]
    # In a process of its own: the reference loader forks, which the threads of earlier tests do not always survive.
    result = forked.run(["bench.py", *arguments, "--threads", "1", "--device", "cpu"])
    assert result.returncode == 0, result.stderr
    report = json.loads((out / "parity.json").read_text())
    splits = [(line["split"], line["num_images"]) for line in report["differences"]]
    assert splits == [("training", 50), ("validation", len(VAL_SIZES))]
    for line in report["differences"]:
        assert line["mean"] <= line["worst_mean"] < 1.5, "a grey level or so, or another image was decoded"
        assert line["worst_image"].endswith(".jpg")
        assert Image.open(out / line["picture"]).size == (3 * 32, 32)
        assert line["picture"] in result.stdout


def test_a_network_sees_the_same_in_both(dataset: ShardSet) -> None:
    """Trained a little on DALI's images, it calls PIL's and torchvision's images the same classes."""
    torch.manual_seed(0)
    recipe = config.load_config(Recipe, None, [setting.removeprefix("--set=") for setting in SMALL_IMAGES])
    split = dataset.split("train")
    batches = list(parity.both(parity.feed_of(recipe, split, False, len(split)), torch.device("cpu"), 1))
    net = build_model(ModelConfig(name="cifar_resnet8"), len(dataset.classes))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for ours, _, ids in batches * 10:
        labels = torch.from_numpy(split.samples["label"][ids.numpy()].astype(np.int64))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(ours / 64 - 2), labels).backward()
        optimizer.step()
    net.eval()
    with torch.no_grad():
        seen = [[net(images / 64 - 2).argmax(dim=1) for images in pair[:2]] for pair in batches]
    ours, theirs = (torch.cat(classes) for classes in zip(*seen, strict=True))
    assert len(ours.unique()) > 1, "it tells classes apart"
    assert (ours == theirs).double().mean() >= 0.99


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
