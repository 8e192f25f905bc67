"""The shards are standard: other readers see the same bytes and labels as `ShardReader`."""

import warnings

import numpy as np
import pytest

from pipeline.reader import ShardReader
from shards.format import ShardSet

Samples = list[tuple[bytes, int]]


def ours(shard_set: ShardSet, split_name: str) -> Samples:
    split = shard_set.split(split_name)
    views = ShardReader(split).views(np.arange(len(split)))
    return [(view.tobytes(), int(label)) for view, label in zip(views, split.samples["label"], strict=True)]


def tars(shard_set: ShardSet, split_name: str) -> list[str]:
    return sorted(str(path) for path in shard_set.root.glob(f"{split_name}-*.tar"))


@pytest.mark.parametrize("split", ["train", "val"])
def test_webdataset_reads_the_shards(dataset: ShardSet, split: str) -> None:
    import webdataset

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        samples = list(webdataset.WebDataset(tars(dataset, split), shardshuffle=False).to_tuple("jpg", "cls"))
        decoded = list(webdataset.WebDataset(tars(dataset, split), shardshuffle=False).decode("rgb8"))
    assert [(jpeg, int(label)) for jpeg, label in samples] == ours(dataset, split)
    assert [sample["cls"] for sample in decoded] == [label for _, label in ours(dataset, split)]
    rows = dataset.split(split).samples
    assert [sample["jpg"].shape for sample in decoded] == [(row["height"], row["width"], 3) for row in rows]


@pytest.mark.parametrize("with_index", [True, False])
@pytest.mark.parametrize("split", ["train", "val"])
def test_dali_reads_the_shards(dataset: ShardSet, split: str, with_index: bool) -> None:
    from nvidia.dali import Pipeline, fn

    paths = tars(dataset, split)
    index = {"index_paths": [path.removesuffix(".tar") + ".idx" for path in paths]} if with_index else {}
    expected = ours(dataset, split)
    pipe = Pipeline(batch_size=10, num_threads=1, device_id=None)
    with pipe:
        pipe.set_outputs(*fn.readers.webdataset(paths=paths, ext=["jpg", "cls"], random_shuffle=False, **index))
    pipe.build()
    found: Samples = []
    while len(found) < len(expected):
        jpegs, labels = pipe.run()
        for i in range(len(jpegs)):
            found.append((np.array(jpegs.at(i)).tobytes(), int(np.array(labels.at(i)).tobytes())))
    assert found[: len(expected)] == expected
