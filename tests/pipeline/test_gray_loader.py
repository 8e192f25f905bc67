"""A loader hands DALI the shards' own memory, except for gray JPEGs on a GPU: those are repaired copies."""

import io
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from penstock.pipeline.augment import AugmentConfig
from penstock.pipeline.loader import DaliLoader
from penstock.shards.format import ShardSet
from tests.common.fake_cuda import fake_cuda
from tests.common.feeds import CROPS, make_feed


@pytest.mark.parametrize("augment", [CROPS, None], ids=["training", "validation"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_a_loader_hands_to_dali(
    dataset: ShardSet, monkeypatch: pytest.MonkeyPatch, device: str, augment: AugmentConfig | None
) -> None:
    """It is the shards' own memory, except for gray JPEGs with a factor on a GPU: those are always repaired copies."""
    split, given = dataset.split("train"), list[np.ndarray]()

    def graph(source: Callable[[], Any], names: Any, config: Any, *, gpu: int | None, **_: Any) -> Any:
        def run(stream: Any) -> Any:
            images, *_ = source()
            given.extend(np.asarray(images[place]) for place in range(len(images)))
            return (SimpleNamespace(as_tensor=lambda: torch.empty(len(images), 8, 8, 3, device=device)),)

        assert gpu == {"cpu": None, "cuda": 0}[device]
        return SimpleNamespace(run=run, reset=lambda: None)

    monkeypatch.setattr("penstock.pipeline.loader.build_graph", graph)
    monkeypatch.setattr("torch.from_dlpack", lambda tensor: tensor)
    feed = replace(make_feed(dataset, augment=augment, batch_size=6), split=split)
    feed = replace(feed, global_batch_size=30 if augment else 0)  # drops none of the 90 samples
    loader = DaliLoader(feed, device=torch.device(device), threads=1)
    for epoch, position in [(0, 0), (1, 0), (1, 30)]:
        given.clear()
        with fake_cuda():
            assert len(list(loader.iter_epoch(epoch, position))) == (90 - position) / 6
        ids = feed.plan(epoch).sample_ids(position, 90 - position)
        scaled = 0
        for stored, view in zip(loader._reader.views(ids), given, strict=True):
            image: Any = Image.open(io.BytesIO(stored))
            if device == "cuda" and len(image.layer) == 1 and image.layer[0][1:3] != (1, 1):
                scaled += 1
                assert view[view != stored].tolist() == [0x11]
            else:
                assert view.ctypes.data == stored.ctypes.data
        assert position or scaled == (2 if device == "cuda" else 0)
    loader.close()
