"""Views equal the files' bytes, and a damaged directory gives a clear error."""

from pathlib import Path

import numpy as np
import pytest

from penstock.pipeline.reader import ShardReader
from penstock.shards.format import ShardSet


def stored_bytes(shard_set: ShardSet, sample_id: int) -> bytes:
    row = shard_set.split("train").samples[sample_id]
    data = (shard_set.root / f"train-{row['shard']:06d}.tar").read_bytes()
    return data[int(row["offset"]) : int(row["offset"]) + int(row["size"])]


def base_of(array: np.ndarray) -> object:
    base: object = array
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    return base


def test_views_are_the_files_bytes_in_the_order_asked(dataset: ShardSet) -> None:
    reader = ShardReader(dataset.split("train"))
    last = len(dataset.split("train")) - 1
    for sample_ids in ([0], [last, 0, 30, 29, 31, 30], list(np.random.default_rng(0).permutation(last + 1)), []):
        views = reader.views(np.array(sample_ids, dtype=np.int64))
        assert [view.tobytes() for view in views] == [stored_bytes(dataset, int(i)) for i in sample_ids]
        assert all(view.dtype == np.uint8 and view.ndim == 1 for view in views)
    assert reader.views(np.array([5]))[0][:2].tobytes() == b"\xff\xd8"  # a JPEG's first bytes
    reader.close()


def test_views_are_zero_copy_and_read_only(dataset: ShardSet) -> None:
    reader = ShardReader(dataset.split("train"))
    first, again, other = reader.views(np.array([3, 3, 4]))
    assert np.shares_memory(first, again)
    assert base_of(first) is base_of(other)  # both are windows on one map
    assert not first.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 0
    with pytest.raises(ValueError, match=r"cannot set WRITEABLE|WRITEABLE"):
        first.flags.writeable = True


def test_views_outlive_the_reader(dataset: ShardSet) -> None:
    reader = ShardReader(dataset.split("train"))
    (view,) = reader.views(np.array([7]))
    reader.close()
    reader.close()
    assert view.tobytes() == stored_bytes(dataset, 7)


def test_read_ahead_takes_any_samples(dataset: ShardSet) -> None:
    """Read-ahead only advises the kernel, so it accepts any order, repeats, the last page of a file, or no samples."""
    reader = ShardReader(dataset.split("train"))
    n = len(dataset.split("train"))
    rng = np.random.default_rng(0)
    for sample_ids in ([], [0], [n - 1], [5, 5, 5], range(n), range(n - 1, -1, -1), rng.integers(0, n, 200)):
        reader.read_ahead(np.array(sample_ids, dtype=np.int64))
    assert reader.views(np.array([n - 1]))[0].tobytes() == stored_bytes(dataset, n - 1)


def test_a_missing_shard_is_named(dataset_copy: Path) -> None:
    (dataset_copy / "train-000001.tar").unlink()
    with pytest.raises(ValueError, match=r"train-000001\.tar: cannot read this shard.*pack the dataset again"):
        ShardReader(ShardSet.open(dataset_copy).split("train"))
    ShardReader(ShardSet.open(dataset_copy).split("val"))


@pytest.mark.parametrize("change", [-1, -5000, 1])
def test_a_shard_of_another_size_is_named(dataset_copy: Path, change: int) -> None:
    path = dataset_copy / "train-000002.tar"
    data = path.read_bytes()
    path.write_bytes(data[:change] if change < 0 else data + b"\0" * change)
    with pytest.raises(ValueError, match=rf"train-000002\.tar: has {len(data) + change} bytes, .* lists {len(data)}"):
        ShardReader(ShardSet.open(dataset_copy).split("train"))


def test_an_empty_shard_is_named(dataset_copy: Path) -> None:
    (dataset_copy / "val-000000.tar").write_bytes(b"")
    with pytest.raises(ValueError, match=r"val-000000\.tar: has 0 bytes"):
        ShardReader(ShardSet.open(dataset_copy).split("val"))


def test_requests_join_over_small_gaps(dataset: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every second sample: as many requests as samples, but one a shard where the gaps may be read too."""
    split = dataset.split("train")
    sample_ids = np.arange(0, len(split), 2)
    requests: dict[int, list[tuple[int, int]]] = {}

    class Pages:
        def madvise(self, advice: int, start: int, length: int) -> None:
            requests.setdefault(gap, []).append((start, length))

    reader = ShardReader(split)
    monkeypatch.setattr(reader, "_shard", lambda shard: (Pages(), None))
    for gap in (0, 1 << 20):
        reader.read_ahead(sample_ids, gap_bytes=gap)
    assert len(requests[1 << 20]) == len(split.shards) < len(requests[0])
    assert sum(length for _, length in requests[1 << 20]) > sum(length for _, length in requests[0])
