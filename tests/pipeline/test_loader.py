"""`DaliLoader` and `PixelLoader` on generated shards: pixels compared with PIL and torchvision, laws 1 to 4, errors."""

import errno
import io
import itertools
import multiprocessing.synchronize
import shutil
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from penstock.pipeline.augment import AugmentConfig
from penstock.pipeline.batch import Batch
from penstock.pipeline.build import build_loader
from penstock.pipeline.config import DataConfig
from penstock.pipeline.holes import IGNORE_LABEL, NO_SAMPLE, BadSample
from penstock.pipeline.loader import DaliLoader
from penstock.pipeline.reference import ReferenceLoader
from penstock.pipeline.synthetic import SyntheticLoader
from penstock.shards.format import ShardSet
from tests.common import feeds
from tests.common.feeds import (
    CPU,
    CROPS,
    JITTER,
    SIZE,
    by_position,
    gray_levels,
    loader_of,
    make_feed,
    make_loader,
    same_rows,
)  # fmt: skip

Damage = Callable[[ShardSet, str, int, bytes], None]


def ids(batches: list[Batch]) -> list[int]:
    return [sample_id for batch in batches for sample_id in batch.sample_ids.tolist()]


@pytest.fixture(scope="module")
def baseline(dataset_dir: Path) -> dict[int, tuple[int, int, torch.Tensor]]:
    """Epoch 1 with colour jitter, one rank, batches of 24, one thread."""
    loader = make_loader(ShardSet.open(dataset_dir), augment=JITTER, batch_size=24, threads=1)
    return by_position(loader.iter_epoch(1), loader.feed)


@pytest.fixture(autouse=True, params=["none", "pixels", "members"])
def source(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The source of every loader's pixels: JPEGs, JPEGs decoded once, or shards in which half the members are pixels.
    Those of module fixtures have JPEGs: so pixels are compared with what these give."""
    name: str = request.param
    monkeypatch.setitem(feeds.EVERY, "cache", "pixels" if name == "pixels" else "none")
    return name


@pytest.fixture
def dataset(source: str, dataset_dir: Path, mixed_dir: Path) -> ShardSet:
    return ShardSet.open(mixed_dir if source == "members" else dataset_dir)


@pytest.fixture
def dataset_copy(dataset: ShardSet, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dataset.root, tmp_path / "copy"))


JPEGS = pytest.mark.parametrize("source", ["none"], indirect=True)  # what only the graph that decodes does

# --- the contract


def test_batches_keep_the_contract(dataset: ShardSet) -> None:
    loader = make_loader(dataset)
    split = dataset.split("train")
    batches, copies = [], []
    assert len(loader) == 6  # 90 samples: 3 global batches of 24, in two rounds
    for i, batch in enumerate(loader.iter_epoch(2)):
        assert (batch.epoch, batch.position) == (2, 12 * (i + 1))
        assert batch.images.shape == (12, 3, SIZE, SIZE)
        assert batch.images.dtype == torch.float32
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.images.stride() == (3 * SIZE * SIZE, 1, 3 * SIZE, 3)
        assert batch.labels.dtype == batch.sample_ids.dtype == torch.int64
        assert batch.labels.tolist() == split.samples["label"][batch.sample_ids.numpy()].tolist()
        batches.append(batch)
        copies.append(batch.images.clone())
    assert len(batches) == len(loader)
    assert ids(batches) == loader.feed.plan(2).sample_ids(0, 72).tolist()
    for batch, copy in zip(batches, copies, strict=True):  # a batch stays what it was while later ones are made
        assert torch.equal(batch.images, copy)
    loader.close()
    assert torch.equal(batches[0].images, copies[0])
    loader.close()


def test_validation_gives_each_image_once(dataset: ShardSet) -> None:
    for world_size in (1, 2, 3, 8):
        seen = []
        for rank in range(world_size):
            loader = make_loader(dataset, augment=None, batch_size=5, world_size=world_size, rank=rank)
            batches = list(loader.iter_epoch(0))
            assert [len(batch.images) for batch in batches] == [span.count for span in loader.feed.spans(0)]
            assert len(batches) == len(loader)
            seen += ids(batches)
            loader.close()
        assert sorted(seen) == list(range(len(dataset.split("val"))))


@pytest.mark.parametrize("augment", [CROPS, AugmentConfig(crop="pad"), None])
def test_the_image_size_does_not_change_which_samples_come(dataset: ShardSet, augment: AugmentConfig | None) -> None:
    sequences = []
    for size in (24, 56, SIZE):
        loader = make_loader(dataset, augment=augment, image_size=size, val_image_size=size, val_resize_size=size)
        batches = list(loader.iter_epoch(0))
        assert {tuple(batch.images.shape[1:]) for batch in batches} == {(3, size, size)}
        sequences.append(ids(batches))
        loader.close()
    assert all(sequence == sequences[0] for sequence in sequences)


# --- laws 1 and 2: the same pixels, whoever decodes them, before and after a restart


@pytest.mark.parametrize(("world_size", "batch_size", "threads"), [(1, 24, 3), (1, 4, 1), (2, 6, 2), (3, 8, 1)])
def test_pixels_belong_to_positions(
    dataset: ShardSet, baseline: dict[int, Any], world_size: int, batch_size: int, threads: int
) -> None:
    rows: dict[int, Any] = {}
    for rank in range(world_size):
        loader = make_loader(
            dataset, augment=JITTER, batch_size=batch_size, threads=threads, world_size=world_size, rank=rank
        )
        rows |= by_position(loader.iter_epoch(1), loader.feed)
        loader.close()
    assert same_rows(rows, baseline)


@JPEGS
@pytest.mark.parametrize(("read_ahead", "prefetch"), [(0, 1), (50, 4)])
def test_reading_ahead_changes_nothing(
    dataset: ShardSet, baseline: dict[int, Any], read_ahead: int, prefetch: int
) -> None:
    loader = make_loader(dataset, augment=JITTER, read_ahead=read_ahead, prefetch=prefetch)
    assert same_rows(by_position(loader.iter_epoch(1), loader.feed), baseline)
    loader.close()


def test_a_resume_continues_the_epoch(dataset: ShardSet, baseline: dict[int, Any]) -> None:
    loader = make_loader(dataset, augment=JITTER, batch_size=8)
    for position in (24, 48, 72):
        rest = by_position(loader.iter_epoch(1, position), loader.feed, position)
        assert same_rows(rest, {p: row for p, row in baseline.items() if p >= position})
    loader.close()


def test_an_abandoned_epoch_leaves_nothing_behind(dataset: ShardSet, baseline: dict[int, Any]) -> None:
    loader = make_loader(dataset, augment=JITTER)
    for batches_taken in (0, 1, 3, 6):
        epoch = loader.iter_epoch(0)
        for _ in range(batches_taken):
            next(epoch)
        epoch.close()
        assert same_rows(by_position(loader.iter_epoch(1), loader.feed), baseline)
    loader.close()


def test_a_new_epoch_ends_one_that_is_still_open(dataset: ShardSet, baseline: dict[int, Any]) -> None:
    """The old generator is still referenced: its prefetched batches must not come out of the new one, nor may closing
    it take the new one's pipeline away."""
    loader = make_loader(dataset, augment=JITTER, batch_size=24)
    open_one, other = loader.iter_epoch(0), loader.iter_epoch(2)
    next(open_one)
    next(other)
    epoch = loader.iter_epoch(1)
    first = next(epoch)
    assert (first.epoch, first.position) == (1, 24)
    with pytest.raises(ValueError, match="this epoch has ended"):
        next(open_one)
    other.close()
    rest = list(epoch)
    assert same_rows(by_position(iter([first, *rest]), loader.feed), baseline)
    loader.close()


def test_epochs_and_seeds_differ(dataset: ShardSet, baseline: dict[int, Any]) -> None:
    loader = make_loader(dataset, augment=JITTER, batch_size=24)
    other_epoch = by_position(loader.iter_epoch(2), loader.feed)
    assert [row[0] for row in other_epoch.values()] != [row[0] for row in baseline.values()]
    pixels = {row[0]: row[2] for row in baseline.values()}
    both = [row for row in other_epoch.values() if row[0] in pixels]
    assert len(both) > 40
    assert not any(torch.equal(row[2], pixels[row[0]]) for row in both)  # the same image, another crop
    loader.close()


def threads_and_files() -> tuple[int, int]:
    return len(list(Path("/proc/self/task").iterdir())), len(list(Path("/proc/self/fd").iterdir()))


def test_epochs_leak_neither_threads_nor_files(dataset: ShardSet) -> None:
    loader = make_loader(dataset)

    def use() -> None:
        list(loader.iter_epoch(0))
        epoch = loader.iter_epoch(1)
        next(epoch)
        epoch.close()
        list(loader.iter_epoch(2))

    for _ in range(3):  # a pool of threads grows until it has once had work for all
        use()
    before = threads_and_files()
    for _ in range(5):
        use()
    threads, files = threads_and_files()
    assert threads < before[0] + 3  # of five rounds; a pool may grow by one yet
    assert files <= before[1]
    loader.close()
    deadline = time.monotonic() + 20
    while threads_and_files()[1] >= files:  # the shards'
        assert time.monotonic() < deadline, "closing the loader leaves the shards open"
        time.sleep(0.01)


# --- pixels


def pil_image(image_tree: Path, name: str) -> Image.Image:
    return Image.open(image_tree / name).convert("RGB")


@pytest.mark.parametrize(("image_size", "resize_size"), [(40, 46), (64, 64), (33, 50), (224, 256)])
def test_validation_pixels_are_torchvisions(
    dataset: ShardSet, image_tree: Path, image_size: int, resize_size: int
) -> None:
    """`Resize` then `CenterCrop` on the source image as PIL decodes it: mean difference ≤ 0.5 grey levels an image."""
    loader = make_loader(dataset, augment=None, val_image_size=image_size, val_resize_size=resize_size)
    transform = v2.Compose([v2.Resize(resize_size, antialias=True), v2.CenterCrop(image_size), v2.PILToTensor()])
    split = dataset.split("val")
    for batch in loader.iter_epoch(0):
        for sample_id, pixels in zip(
            batch.sample_ids.tolist(), gray_levels(batch.images, loader.feed.config), strict=True
        ):
            name = split.source_name(sample_id)
            difference = (pixels - transform(pil_image(image_tree, name)).float()).abs()
            assert difference.mean() <= 0.5, name  # 0.23 was the largest seen; on real photographs 0.19
            assert difference.max() <= 2, name
    loader.close()


def test_training_pixels_are_torchvisions(dataset: ShardSet, image_tree: Path) -> None:
    """The planned box, cut and resized and flipped by torchvision from what PIL decodes: mean difference ≤ 0.5 grey
    levels an image (0.22 was the largest seen). At the crop's border the two filters weigh the outside differently:
    PIL ignores it, DALI repeats the last pixel. A hard edge there may differ by about 12 levels."""
    loader = make_loader(dataset)
    split, feed = dataset.split("train"), loader.feed
    flips = 0
    for span, batch in zip(feed.spans(0), loader.iter_epoch(0), strict=True):
        params = feed.batch(0, span, SIZE).params
        for row, pixels in enumerate(gray_levels(batch.images, feed.config)):
            name = split.source_name(int(batch.sample_ids[row]))
            (top, left), (height, width) = params["anchor"][row].tolist(), params["shape"][row].tolist()
            image = v2.functional.resized_crop(
                pil_image(image_tree, name), top, left, height, width, [SIZE, SIZE], antialias=True
            )
            if params["mirror"][row]:
                image = v2.functional.horizontal_flip(image)
                flips += 1
            difference = (pixels - v2.functional.pil_to_tensor(image).float()).abs()
            assert difference.mean() <= 0.5, name
            assert difference[:, 1:-1, 1:-1].max() <= 2, name
            assert difference.max() <= 24, name
    assert 20 < flips < 52
    loader.close()


@JPEGS
def test_the_reference_loader_names_what_its_processes_lack(dataset: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(multiprocessing.synchronize._multiprocessing, "SemLock", fail)
    loader = ReferenceLoader(make_feed(dataset, augment=None), device=CPU, workers=1)
    with pytest.raises(ValueError, match=r"/dev/shm: .*Read-only file system.*make it writable"):
        next(loader.iter_epoch(0))


@pytest.mark.parametrize("augment", [CROPS, AugmentConfig(crop="pad"), None])
def test_the_reference_loader_agrees(dataset: ShardSet, augment: AugmentConfig | None) -> None:
    feed = make_feed(dataset, augment=augment)
    dali, reference = loader_of(feed, threads=2), ReferenceLoader(feed, device=CPU, workers=0)
    assert len(dali) == len(reference)
    for ours, theirs in zip(dali.iter_epoch(1), reference.iter_epoch(1), strict=True):
        assert (ours.epoch, ours.position) == (theirs.epoch, theirs.position)
        assert torch.equal(ours.sample_ids, theirs.sample_ids)
        assert torch.equal(ours.labels, theirs.labels)
        assert theirs.images.dtype == torch.float32
        assert theirs.images.is_contiguous(memory_format=torch.channels_last)
        difference = (gray_levels(ours.images, feed.config) - gray_levels(theirs.images, feed.config)).abs()
        assert difference.mean(dim=(1, 2, 3)).max() <= 0.5
    dali.close()


def test_half_precision_is_the_same_image(dataset: ShardSet) -> None:
    feed = make_feed(dataset)
    half = loader_of(feed, threads=1, dtype=torch.float16)
    full = loader_of(feed, threads=1)
    a, b = next(half.iter_epoch(0)), next(full.iter_epoch(0))
    assert a.images.dtype == torch.float16
    assert a.images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(a.images, b.images.half())


# --- law 4: a bad sample costs a line, not the run


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 6]


def png_start(data: bytes) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()[: len(data)]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "header": lambda data: bytes(byte ^ 255 for byte in data[:4]) + data[4:],
    "truncated": truncated,
    "zeros": lambda data: b"",
    "text": lambda data: b"<html>404 Not Found</html>" * (len(data) // 26),
    "png": png_start,
}


def stored(shard_set: ShardSet, sample_id: int, split: str = "train") -> bytes:
    row = shard_set.split(split).samples[sample_id]
    data = shard_set.split(split).shard_path(int(row["shard"])).read_bytes()
    return data[int(row["offset"]) : int(row["offset"] + row["size"])]


@pytest.mark.parametrize(
    ("places", "kinds"),
    [
        ([0], ["header"]),
        ([71], ["text"]),  # the last sample of the epoch
        ([12, 23], ["zeros", "png"]),  # two in a batch, its first and its last
        (list(range(24, 36)), ["header", "zeros", "text", "png"]),  # a whole batch
        ([0, 11, 12, 50, 70, 71], ["zeros", "header"]),  # neighbours on both sides of a batch
    ],
    ids=["first", "last", "two", "batch", "many"],
)
def test_bad_samples_are_quarantined(
    dataset: ShardSet, dataset_copy: Path, damage: Damage, places: list[int], kinds: list[str]
) -> None:
    healthy = make_loader(dataset)
    expected = by_position(healthy.iter_epoch(1), healthy.feed)
    healthy.close()
    shard_set = ShardSet.open(dataset_copy)
    bad = {place: expected[place][0] for place in places}
    for i, sample_id in enumerate(bad.values()):
        damage(shard_set, "train", sample_id, DAMAGES[kinds[i % len(kinds)]](stored(shard_set, sample_id)))

    reported: list[BadSample] = []
    loader = loader_of(make_feed(shard_set), threads=2, on_bad=reported.append)
    rows = by_position(loader.iter_epoch(1), loader.feed)
    assert rows.keys() == expected.keys()
    for position, (sample_id, label, image) in rows.items():
        if position in bad:
            assert (sample_id, label) == (NO_SAMPLE, IGNORE_LABEL)
            assert image.abs().max() < 0.05  # gray: nothing after normalising
        else:
            assert (sample_id, label) == expected[position][:2]
            assert torch.equal(image, expected[position][2])
    assert sorted(sample.sample_id for sample in reported) == sorted(bad.values())
    assert loader.quarantine == set(bad.values())
    split = shard_set.split("train")
    for sample in reported:
        row = split.samples[sample.sample_id]
        assert f"train-{row['shard']:06d}.tar at byte {row['offset']} (" in sample.where
        assert split.source_name(sample.sample_id) in sample.where
        assert sample.reason
        assert "\n" not in sample.reason
        assert any(word in sample.reason for word in ("decod", "nvImageCodec", "the table says"))

    again = by_position(loader.iter_epoch(1), loader.feed)
    assert same_rows(again, rows)
    assert len(reported) == len(bad)  # reported once
    loader.close()

    reported.clear()  # a run that knows them from its checkpoint
    loader = loader_of(make_feed(shard_set), threads=2, quarantine=set(bad.values()), on_bad=reported.append)
    assert same_rows(by_position(loader.iter_epoch(1), loader.feed), rows)
    assert not reported
    loader.close()


@JPEGS
def test_a_truncated_image_is_bad_where_the_crop_reaches_the_damage(
    dataset: ShardSet, dataset_copy: Path, damage: Damage
) -> None:
    """Only the planned region is decoded. The epoch continues either way, and no neighbour changes."""
    healthy = make_loader(dataset)
    expected = by_position(healthy.iter_epoch(1), healthy.feed)
    healthy.close()
    shard_set = ShardSet.open(dataset_copy)
    hurt = {expected[place][0] for place in range(5, 17)}
    for sample_id in hurt:
        damage(shard_set, "train", sample_id, truncated(stored(shard_set, sample_id)))
    loader = make_loader(shard_set)
    rows = by_position(loader.iter_epoch(1), loader.feed)
    assert loader.quarantine
    assert loader.quarantine <= hurt
    assert sum(row[0] == NO_SAMPLE for row in rows.values()) == len(loader.quarantine)
    for position in set(rows) - set(range(5, 17)):
        assert rows[position][:2] == expected[position][:2]
        assert torch.equal(rows[position][2], expected[position][2])
    loader.close()


def test_a_resume_just_before_a_bad_batch(dataset_copy: Path, damage: Damage) -> None:
    shard_set = ShardSet.open(dataset_copy)
    loader = make_loader(shard_set, augment=JITTER)
    bad = int(loader.feed.plan(0).sample_ids(24, 1)[0])
    damage(shard_set, "train", bad, b"")
    rows = by_position(loader.iter_epoch(0, 24), loader.feed, 24)
    assert [position for position, row in rows.items() if row[0] == NO_SAMPLE] == [24]
    loader.close()


def test_a_bad_sample_on_one_rank_keeps_the_ranks_in_step(
    dataset: ShardSet, dataset_copy: Path, damage: Damage
) -> None:
    """Three ranks, two rounds a global batch: the loader restarts inside a global batch, and yields no batch more or
    less for it (an uneven count would hang DDP)."""
    shard_set = ShardSet.open(dataset_copy)
    whole = make_loader(dataset, batch_size=24)
    expected = by_position(whole.iter_epoch(0), whole.feed)
    whole.close()
    places = [17, 18, 47, 71]  # of ranks 1, 1, 2 and 2, in second rounds
    for place in places:
        damage(shard_set, "train", expected[place][0], b"")
    rows: dict[int, Any] = {}
    for rank in range(3):
        loader = make_loader(shard_set, batch_size=4, world_size=3, rank=rank)
        rows |= by_position(loader.iter_epoch(0), loader.feed)
        loader.close()
    assert [position for position in sorted(rows) if rows[position][0] == NO_SAMPLE] == places
    assert all(torch.equal(rows[p][2], expected[p][2]) for p in expected if p not in places)


def test_the_ranks_lose_the_same_samples_in_every_epoch(dataset_copy: Path, damage: Damage) -> None:
    """Whether a truncated image is bad depends on the crop. Once it was, it is out from the next epoch on, on every
    rank that the order sends it to, and after a resume in mid-epoch too: as the trainer joins their quarantines."""
    shard_set = ShardSet.open(dataset_copy)
    for sample_id in range(0, 90, 3):
        data = stored(shard_set, sample_id)
        damage(shard_set, "train", sample_id, data[: len(data) * 4 // 5])
    alone = make_loader(shard_set)
    known = []
    whole = []
    for epoch in range(3):
        known.append(set(alone.quarantine))
        whole.append(by_position(alone.iter_epoch(epoch), alone.feed))
    seen = {row[0] for row in whole[0].values()}
    assert known[1]
    if alone.feed.config.cache == "none":
        assert alone.quarantine & seen  # some crops missed the damage at first
    alone.close()

    ranks = [make_loader(shard_set, batch_size=12, world_size=2, rank=rank) for rank in range(2)]
    for epoch in range(3):
        joined = ranks[0].quarantine | ranks[1].quarantine
        rows: dict[int, Any] = {}
        for loader in ranks:
            loader.quarantine |= joined
            rows |= by_position(loader.iter_epoch(epoch), loader.feed)
        assert same_rows(rows, whole[epoch])
    resumed = loader_of(make_feed(shard_set), threads=1, quarantine=set(known[2]))
    rest = by_position(resumed.iter_epoch(2, 48), resumed.feed, 48)
    assert same_rows(rest, {position: row for position, row in whole[2].items() if position >= 48})


def test_a_hole_in_a_centre_crop_is_gray(dataset_copy: Path, damage: Damage) -> None:
    shard_set = ShardSet.open(dataset_copy)
    damage(shard_set, "train", 5, b"")
    loader = make_loader(shard_set, augment=AugmentConfig(crop="centre"))
    for _ in range(2):
        rows = by_position(loader.iter_epoch(0), loader.feed)
        holes = [image for sample_id, _, image in rows.values() if sample_id == NO_SAMPLE]
        assert len(holes) == 1
        assert holes[0].abs().max() < 0.05
    loader.close()


@JPEGS
def test_block_order_asks_for_a_window_before_it_is_due(dataset: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = make_loader(dataset, order="block", block_size=6, window_blocks=4)  # windows of 24 samples, two batches
    asked: list[list[int]] = []
    monkeypatch.setattr(loader._reader, "read_ahead", lambda ids, gap_bytes=0: asked.append(ids.tolist()))
    batches = list(loader.iter_epoch(0))
    assert [len(window) for window in asked] == [24, 24, 24]
    assert [sample_id for window in asked for sample_id in window] == ids(batches)
    loader.close()


def test_one_in_a_hundred(dataset: ShardSet, dataset_copy: Path, damage: Damage) -> None:
    """Damage of every kind all over a long epoch: the table's rows 40 times, each image bad at one of its places."""
    shard_set = ShardSet.open(dataset_copy)
    split = shard_set.split("train")
    bad_id, copies = 17, 40
    damage(shard_set, "train", bad_id, b"GIF89a")
    long = replace(split, samples=np.tile(split.samples, copies))
    long.samples["offset"][: len(split) * (copies - 1)] = np.tile(dataset.split("train").samples["offset"], copies - 1)
    feed = replace(make_feed(shard_set, batch_size=24), split=long)
    reported: list[BadSample] = []
    loader = loader_of(feed, threads=2, on_bad=reported.append)
    seen = [row[0] for row in by_position(loader.iter_epoch(0), feed).values()]
    expected = feed.plan(0).sample_ids(0, len(seen)).tolist()
    is_bad = [sample_id % 90 == bad_id for sample_id in expected]
    assert sum(is_bad) == copies
    assert seen == [NO_SAMPLE if bad else sample_id for sample_id, bad in zip(expected, is_bad, strict=True)]
    assert {(bad.epoch, bad.position) for bad in reported} == {(0, i) for i, bad in enumerate(is_bad) if bad}
    loader.close()


def test_no_header_that_dali_cannot_parse_comes_before_it(
    dataset_copy: Path, damage: Damage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a batch as large as this one DALI would not raise an error but end the process."""
    shard_set = ShardSet.open(dataset_copy)
    split = shard_set.split("train")
    for sample_id, kind in zip(range(0, 90, 9), itertools.cycle(["zeros", "text", "header"])):
        damage(shard_set, "train", sample_id, DAMAGES[kind](stored(shard_set, sample_id)))
    monkeypatch.setattr("penstock.pipeline.loader.find_bad", lambda *arguments: pytest.fail("DALI saw one"))
    long = replace(split, samples=np.tile(split.samples, 5))
    feed = replace(make_feed(shard_set), split=long, batch_size=120, global_batch_size=120)
    loader = loader_of(feed, threads=2)
    seen = ids(list(loader.iter_epoch(0)))
    expected = feed.plan(0).sample_ids(0, 360).tolist()
    assert seen == [NO_SAMPLE if sample_id % 9 == 0 else sample_id for sample_id in expected]
    loader.close()


def test_a_smaller_image_than_the_table_says_is_bad(dataset_copy: Path, damage: Damage) -> None:
    """It decodes as a whole; only DALI, given the planned region, objects."""
    shard_set = ShardSet.open(dataset_copy)
    stream = io.BytesIO()
    Image.new("RGB", (9, 9)).save(stream, "JPEG")
    damage(shard_set, "train", 5, stream.getvalue())
    loader = make_loader(shard_set, augment=AugmentConfig(scale=(1, 1)))
    list(loader.iter_epoch(0))
    list(loader.iter_epoch(1))
    assert loader.quarantine == {5}
    loader.close()


@JPEGS
@pytest.mark.parametrize(("deterministic", "load", "taken"), [(True, 0.65, 1.0), (True, 0.0, 0.0), (False, 0.65, 0.65)])
def test_one_decoder_takes_all_where_runs_must_agree(
    dataset: ShardSet, monkeypatch: pytest.MonkeyPatch, deterministic: bool, load: float, taken: float
) -> None:
    """On an H200 two loaders did not give the same bits where both of its decoders worked."""
    seen: list[DataConfig] = []

    def build_graph(source: Any, names: Any, config: DataConfig, **_: Any) -> None:
        seen.append(config)

    monkeypatch.setattr("penstock.pipeline.loader.build_graph", build_graph)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: deterministic)
    make_loader(dataset, hw_decoder_load=load)._build_pipe(())
    assert [config.hw_decoder_load for config in seen] == [taken]


@JPEGS
def test_shards_in_memory(dataset_copy: Path, baseline: dict[int, tuple[int, int, torch.Tensor]]) -> None:
    loader = make_loader(ShardSet.open(dataset_copy), augment=JITTER, cache="encoded")
    for shard in dataset_copy.glob("train-*.tar"):
        shard.unlink()
    assert same_rows(by_position(loader.iter_epoch(1), loader.feed), baseline)
    loader.close()


@JPEGS
def test_shards_that_do_not_fit_the_memory(dataset: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.pipeline.reader.available_bytes", lambda: 1000)
    with pytest.raises(ValueError, match=r'data\.cache = "encoded" needs .* GB for split \'train\''):
        make_loader(dataset, cache="encoded")


def test_too_many_bad_samples_end_the_run(dataset_copy: Path, damage: Damage) -> None:
    shard_set = ShardSet.open(dataset_copy)
    for sample_id in range(90):
        damage(shard_set, "train", sample_id, b"")
    loader = make_loader(shard_set, max_bad_fraction=0.2)
    with pytest.raises(ValueError, match=r"of 90 samples .* more than data\.max_bad_fraction = 0\.2 allows") as e:
        list(loader.iter_epoch(0))
    assert str(dataset_copy) in str(e.value)
    assert "train-00000" in str(e.value)
    assert "verify" in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("num_bad", [1, 2])
def test_one_bad_sample_is_always_tolerated(dataset_copy: Path, damage: Damage, num_bad: int) -> None:
    shard_set = ShardSet.open(dataset_copy)
    loader = make_loader(shard_set, max_bad_fraction=0.0)
    for sample_id in loader.feed.plan(0).sample_ids(30, num_bad).tolist():
        damage(shard_set, "train", sample_id, b"")
    if num_bad == 1:
        assert len(list(loader.iter_epoch(0))) == len(loader)
    else:
        with pytest.raises(ValueError, match="2 of 90 samples"):
            list(loader.iter_epoch(0))


def test_a_bad_validation_image_is_an_error_that_names_it(dataset_copy: Path, damage: Damage) -> None:
    shard_set = ShardSet.open(dataset_copy)
    damage(shard_set, "val", 7, b"not an image")
    split = shard_set.split("val")
    for loader in (
        make_loader(shard_set, augment=None, batch_size=4),
        ReferenceLoader(make_feed(shard_set, augment=None, batch_size=4), device=CPU, workers=0),
    ):
        seen: list[Batch] = []
        with pytest.raises(ValueError, match="cannot be decoded") as error:
            seen.extend(loader.iter_epoch(0))
        assert ids(seen) == [0, 1, 2, 3]  # those before it are good
        assert split.source_name(7) in str(error.value)
        assert f"val-000000.tar at byte {split.samples['offset'][7]}" in str(error.value)
        loader.close()


@JPEGS
def test_an_error_of_another_keeps_its_cause(dataset: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """What DALI calls, or what makes its graph, may raise a RuntimeError too: no sample is looked for."""

    def fail(*arguments: Any, **more: Any) -> Any:
        raise RuntimeError("the reader's own")

    with closing(make_loader(dataset)) as loader:
        monkeypatch.setattr(loader._reader, "views", fail)
        with pytest.raises(RuntimeError, match=r"^the reader's own$"):
            next(loader.iter_epoch(0))
    monkeypatch.setattr("penstock.pipeline.loader.build_graph", fail)
    with closing(make_loader(dataset)) as loader, pytest.raises(RuntimeError, match=r"^the reader's own$"):
        next(loader.iter_epoch(0))


@JPEGS
def test_an_error_of_dalis_before_the_first_sample_says_so(dataset: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DaliLoader, "_gpu", 99)  # which no machine has
    with (
        closing(make_loader(dataset)) as loader,
        pytest.raises(ValueError, match=r"^DALI failed, before it got a sample: .*(?i:cuda|driver|device)"),
    ):
        next(loader.iter_epoch(0))


@pytest.mark.parametrize("cut", [None, 0, 4096])
def test_a_missing_or_short_shard_is_an_error_at_once(dataset_copy: Path, cut: int | None) -> None:
    path = dataset_copy / "train-000001.tar"
    if cut is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:cut])
    shard_set = ShardSet.open(dataset_copy)
    with pytest.raises(ValueError, match=r"train-000001\.tar: "):
        make_loader(shard_set)


# --- the other loaders


@JPEGS
@pytest.mark.parametrize("name", ["dali", "reference", "synthetic"])
@pytest.mark.parametrize("augment", [CROPS, AugmentConfig(crop="pad"), None])
def test_every_loader_keeps_the_contract(dataset: ShardSet, name: str, augment: AugmentConfig | None) -> None:
    feed = make_feed(dataset, augment=augment, loader=name, batch_size=8)
    loader = build_loader(feed, device=CPU, threads=0 if name == "reference" else 1)
    batches = []
    for span, batch in zip(feed.spans(0), loader.iter_epoch(1), strict=True):
        assert (batch.epoch, batch.position) == (1, span.end)
        assert batch.images.shape == (span.count, 3, SIZE, SIZE)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.sample_ids.tolist() == feed.plan(1).sample_ids(span.start, span.count).tolist()
        assert batch.labels.tolist() == feed.split.samples["label"][batch.sample_ids.numpy()].tolist()
        batches.append(batch)
    assert len(batches) == len(loader) == len(feed)
    loader.close()


@JPEGS
def test_the_synthetic_loader_touches_no_shard(dataset_copy: Path) -> None:
    for path in dataset_copy.glob("*.tar"):
        path.unlink()
    loader = SyntheticLoader(make_feed(ShardSet.open(dataset_copy)), device=CPU)
    assert len(list(loader.iter_epoch(0))) == 6
