"""ReaL's file, and the network outputs for ImageNet's class numbers."""

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from penstock.commands.class_map import map_classes
from penstock.commands.real_labels import RealLabels, outputs_of, read_real_labels, score_real
from penstock.pipeline.batch import Batch
from penstock.pipeline.holes import NO_SAMPLE
from penstock.shard_tools.sources.imagenet import imagenet_classes
from penstock.shards.format import ClassInfo

IMAGENET = [ClassInfo(*item) for item in imagenet_classes().items()]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[1], ", "is not JSON"),
        ('{"a": 1}', "contains a dict. real.json is a list of 50,000"),
        (json.dumps([[1]] * 10_000), "contains a list of 10,000. real.json is a list of 50,000"),
        (json.dumps([[1]] * 49_999 + [[1000]]), r"entry 49999 is \[1000\], not a list of numbers from 0 to 999"),
        (json.dumps([[-1]] + [[]] * 49_999), r"entry 0 is \[-1\], not a list"),
        (json.dumps([7] + [[]] * 49_999), "entry 0 is 7, not a list"),
        (json.dumps([["7"]] + [[]] * 49_999), r"entry 0 is \['7'\], not a list"),
        (json.dumps([[True]] + [[]] * 49_999), r"entry 0 is \[True\], not a list"),
    ],
)
def test_files_that_are_no_real_json(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_real_labels(tmp_path / "real.json")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "real.json") in str(caught.value)


def test_a_networks_outputs_for_imagenets_numbers() -> None:
    turned = IMAGENET[::-1]
    assert outputs_of(turned, IMAGENET, map_classes(turned, IMAGENET)).tolist() == list(range(999, -1, -1))
    few = IMAGENET[10:12]
    expected = [-1] * 10 + [0, 1] + [-1] * 988
    assert outputs_of(few, few, map_classes(few, few)).tolist() == expected
    assert outputs_of(IMAGENET, few, map_classes(IMAGENET, few)).tolist() == list(range(1000)), "also those of no image"


def test_a_file_says_which_output_it_is(tmp_path: Path) -> None:
    network, dataset = [ClassInfo("bird", "bird"), ClassInfo("fish", "fish")], IMAGENET[:12]
    lines = [f"{'bird' if i > 6 else 'fish'} {info.wnid}" for i, info in enumerate(dataset)]
    (tmp_path / "map").write_text("\n".join(lines))
    found = map_classes(network, dataset, tmp_path / "map")
    assert outputs_of(network, dataset, found).tolist() == [1] * 7 + [0] * 5 + [-1] * 988


def test_a_sample_that_was_quarantined_counts_as_wrong() -> None:
    """Of three samples the second has no image; the third's labels are not taken for its."""
    logits, none = torch.eye(4)[[0, 3, 3]], -1
    labels = torch.tensor([[1, 0], [2, none], [3, none], [none, none]])
    real = RealLabels(labels, np.array([True, True, True]))
    batch = Batch(logits.reshape(3, 4, 1, 1), torch.tensor([0, -100, 0]), torch.tensor([0, NO_SAMPLE, 2]))
    feed = SimpleNamespace(chosen=None, num_samples=3, split=range(3))
    loader: Any = SimpleNamespace(feed=feed, iter_epoch=lambda epoch: iter([batch]))
    found = score_real(nn.Flatten(), loader, real, torch.device("cpu"), nullcontext())
    assert found == {
        "top1": pytest.approx(2 / 3),
        "top5": pytest.approx(2 / 3),
        "num_images": 3,
        "unlabelled_images": 0,
    }
