"""The shards are standard: other readers see the same bytes and labels as `ShardReader`, and the same pixels as Pillow.

This also holds if `pack --pixels` has stored some of the images as pixels.
"""

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from penstock.pipeline.reader import ShardReader
from penstock.shards.format import ShardSet

Samples = list[tuple[bytes, int]]
EITHER = "jpg;ppm"


def decoded(samples: Samples) -> list[np.ndarray]:
    return [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data, _ in samples]


def ours(shard_set: ShardSet, split_name: str) -> Samples:
    split = shard_set.split(split_name)
    views = ShardReader(split).views(np.arange(len(split)))
    return [(view.tobytes(), int(label)) for view, label in zip(views, split.samples["label"], strict=True)]


def tars(shard_set: ShardSet, split_name: str) -> list[str]:
    return sorted(str(path) for path in shard_set.root.glob(f"{split_name}-*.tar"))


@pytest.fixture(params=["jpegs", "mixed"])
def packed(request: pytest.FixtureRequest, dataset: ShardSet, mixed_dir: Path) -> tuple[ShardSet, str]:
    """A dataset, and the field of its images."""
    return (ShardSet.open(mixed_dir), EITHER) if request.param == "mixed" else (dataset, "jpg")


@pytest.mark.parametrize("split", ["train", "val"])
def test_webdataset_reads_the_shards(packed: tuple[ShardSet, str], split: str) -> None:
    import webdataset

    dataset, image = packed
    expected = ours(dataset, split)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        samples = list(webdataset.WebDataset(tars(dataset, split), shardshuffle=False).to_tuple(image, "cls"))
        reader = webdataset.WebDataset(tars(dataset, split), shardshuffle=False).decode("pil")
        images, labels = zip(*reader.to_tuple(image, "cls"), strict=True)
    assert [(data, int(label)) for data, label in samples] == expected
    assert list(labels) == [label for _, label in expected]
    assert all((np.asarray(a) == b).all() for a, b in zip(images, decoded(expected), strict=True))


@pytest.mark.parametrize("with_index", [True, False])
@pytest.mark.parametrize("split", ["train", "val"])
def test_dali_reads_the_shards(packed: tuple[ShardSet, str], split: str, with_index: bool) -> None:
    from nvidia.dali import Pipeline, fn, types

    dataset, image = packed
    paths = tars(dataset, split)
    index = {"index_paths": [path.removesuffix(".tar") + ".idx" for path in paths]} if with_index else {}
    expected = ours(dataset, split)
    pipe = Pipeline(batch_size=10, num_threads=1, device_id=None)
    with pipe:
        files, labels = fn.readers.webdataset(paths=paths, ext=[image, "cls"], random_shuffle=False, **index)
        settings = {"output_type": types.RGB, "adjust_orientation": False}
        pipe.set_outputs(files, labels, fn.decoders.image(files, **settings))
    pipe.build()
    found: Samples = []
    pixels: list[np.ndarray] = []
    while len(found) < len(expected):
        files, labels, images = pipe.run()
        for i in range(len(files)):
            found.append((np.array(files.at(i)).tobytes(), int(np.array(labels.at(i)).tobytes())))
            pixels.append(np.array(images.at(i)))
    assert found[: len(expected)] == expected
    assert all((a == b).all() for a, b in zip(pixels, decoded(expected), strict=False))
