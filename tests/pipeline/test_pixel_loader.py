"""`PixelLoader`: batches from decoded images equal those from JPEGs bit for bit; memory, ranks, GPU arithmetic."""

import gc
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from penstock.pipeline import pixel_loader
from penstock.pipeline.augment import AugmentConfig
from penstock.pipeline.batch import Batch
from penstock.pipeline.buffers import Buffers
from penstock.pipeline.config import Interpolation
from penstock.pipeline.device_pixels import DevicePixels, Request
from penstock.pipeline.feed import Feed
from penstock.pipeline.holes import BadSample
from penstock.pipeline.loader import DaliLoader
from penstock.pipeline.memory import available_bytes
from penstock.pipeline.pixel_graphs import PixelDecoder
from penstock.pipeline.pixel_loader import PixelLoader
from penstock.pipeline.pixel_sources import Job, Regions
from penstock.pipeline.pixels import PixelStore
from penstock.recipes import Recipe
from penstock.shards.format import ShardSet
from penstock.shards.ppm import header_sizes, ppm_header
from penstock.training.data import TrainingData
from penstock.training.distributed import World
from tests.common import forked
from tests.common.augments import AUGMENTS
from tests.common.fake_cuda import DEVICE, fake_cuda
from tests.common.feeds import CPU, CROPS, JITTER, SIZE, gray_levels, loader_of, make_feed, make_loader

Source = Callable[[Feed], Feed]
INTERPOLATIONS: tuple[Interpolation, ...] = ("nearest", "linear", "cubic", "lanczos")


@pytest.fixture(params=["pixels", "members"])
def source(request: pytest.FixtureRequest, mixed_dir: Path) -> Source:
    """A feed of JPEGs → one of the same images, decoded once, or half of them stored as pixels."""
    if request.param == "pixels":
        return lambda feed: replace(feed, config=replace(feed.config, cache="pixels"))
    mixed = ShardSet.open(mixed_dir)
    return lambda feed: replace(feed, split=mixed.split(feed.split.name))


def both(feed: Feed, source: Source, epochs: int = 2, **more: object) -> Iterator[tuple[Batch, Batch]]:
    """Batches made of JPEGs beside those made of pixels."""
    with closing(loader_of(feed, **more)) as theirs, closing(loader_of(source(feed), **more)) as ours:
        assert isinstance(theirs, DaliLoader)
        assert isinstance(ours, PixelLoader)
        for epoch in range(epochs):
            yield from zip(theirs.iter_epoch(epoch), ours.iter_epoch(epoch), strict=True)


def assert_same(feed: Feed, source: Source, epochs: int = 2, **more: object) -> None:
    batches = 0
    for theirs, ours in both(feed, source, epochs, **more):
        assert ours.images.dtype == theirs.images.dtype
        assert ours.images.stride() == theirs.images.stride()
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.labels, theirs.labels)
        assert torch.equal(ours.sample_ids, theirs.sample_ids)
        assert (ours.epoch, ours.position) == (theirs.epoch, theirs.position)
        batches += 1
    assert batches


@pytest.mark.parametrize("name", AUGMENTS)
def test_every_augmentation_gives_the_same_bits(dataset: ShardSet, source: Source, name: str) -> None:
    assert_same(make_feed(dataset, augment=AUGMENTS[name]), source)


@pytest.mark.parametrize("augment", [CROPS, JITTER, None], ids=["crops", "jitter", "validation"])
def test_half_precision_has_the_same_bits(dataset: ShardSet, source: Source, augment: AugmentConfig | None) -> None:
    assert_same(make_feed(dataset, augment=augment), source, 1, dtype=torch.float16)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("size", [7, 97])
def test_every_filter_and_size_gives_the_same_bits(
    dataset: ShardSet, source: Source, interpolation: Interpolation, antialias: bool, size: int
) -> None:
    sizes = {"image_size": size, "val_image_size": size, "val_resize_size": size + 3}
    for augment in (AugmentConfig(vflip=0.5), AugmentConfig(crop="pad", pad=2), None):
        feed = make_feed(dataset, augment=augment, interpolation=interpolation, antialias=antialias, **sizes)
        assert_same(feed, source, 1)


# --- pixels in shards


def test_what_is_stored_as_pixels_is_not_decoded(mixed_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[np.ndarray] = []
    run = PixelDecoder._run
    monkeypatch.setattr(PixelDecoder, "_run", lambda self, job: decoded.extend(job.encoded.values()) or run(self, job))
    feed = make_feed(ShardSet.open(mixed_dir))
    with closing(loader_of(feed)) as loader:
        ids = [sample_id for batch in loader.iter_epoch(0) for sample_id in batch.sample_ids.tolist()]
    jpegs = header_sizes(feed.split.rows(np.array(ids))) == 0
    assert 0 < jpegs.sum() < len(ids)
    assert len(decoded) == jpegs.sum()
    assert all(view[:2].tolist() == [0xFF, 0xD8] for view in decoded)


def test_stored_pixels_go_into_the_memory_undecoded(dataset: ShardSet, mixed_dir: Path) -> None:
    with (
        closing(make_loader(dataset, cache="pixels")) as theirs,
        closing(make_loader(ShardSet.open(mixed_dir), cache="pixels")) as ours,
    ):
        assert isinstance(theirs, PixelLoader)
        assert isinstance(ours, PixelLoader)
        for loader in (theirs, ours):
            loader.load()
        assert theirs.pixels
        assert ours.pixels
        assert ours.pixels.share == 1
        assert (ours.pixels.pixels == theirs.pixels.pixels).all()


def test_a_jpeg_of_the_size_of_pixels_is_a_jpeg(dataset_copy: Path) -> None:
    """Its size is that of pixels of its height and width, so the table alone cannot distinguish them."""
    sizes = ShardSet.open(dataset_copy).split("train").samples["size"].tolist()
    sample_id, height, width = next(
        (sample_id, height, width)
        for sample_id, size in enumerate(sizes)
        for height in range(1, size // 3)
        for width in range((size - 17) // (3 * height), (size - 11) // (3 * height) + 1)
        if width > 0 and len(ppm_header(height, width)) + 3 * height * width == size
    )
    table = np.lib.format.open_memmap(dataset_copy / "train.samples.npy", mode="r+")
    table["height"][sample_id], table["width"][sample_id] = height, width
    table.flush()
    reported: list[BadSample] = []
    with closing(loader_of(make_feed(ShardSet.open(dataset_copy)), on_bad=reported.append)) as loader:
        assert isinstance(loader, PixelLoader)
        for epoch in range(2):
            list(loader.iter_epoch(epoch))
    assert [bad.sample_id for bad in reported] == [sample_id]
    assert f"the table says {height}×{width}" in reported[0].reason


# --- decoded once


def test_no_image_is_decoded_twice(dataset: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    run = PixelDecoder._run

    def counted(self: PixelDecoder, job: Job) -> object:
        decoded.append(len(job.encoded))
        return run(self, job)

    monkeypatch.setattr(PixelDecoder, "_run", counted)
    with closing(make_loader(dataset, cache="pixels")) as loader:
        assert isinstance(loader, PixelLoader)
        for epoch in range(4):
            list(loader.iter_epoch(epoch))
        assert sum(decoded) == len(set(range(len(loader.feed.split))))  # an epoch drops the rest, another has it
        held = loader.pixels  # as the trainer does where a phase changes the image size
        with closing(make_loader(dataset, cache="pixels", image_size=SIZE // 2)) as smaller:
            list(smaller.iter_epoch(0))
        assert sum(decoded) == len(loader.feed.split)
        del held


def test_the_memory_goes_with_the_last_who_holds_it(dataset: ShardSet) -> None:
    gc.collect()  # the loaders of other tests
    loader = make_loader(dataset, cache="pixels")
    assert isinstance(loader, PixelLoader)
    assert loader.pixels
    assert PixelStore.of(loader.feed) is loader.pixels
    list(loader.iter_epoch(0))
    assert loader.pixels.share > 0
    feed = loader.feed
    loader.close()
    gc.collect()
    assert PixelStore.of(feed).share == 0


def test_training_knows_how_many_are_decoded(
    dataset_copy: Path, damage: Callable[[ShardSet, str, int, bytes], None]
) -> None:
    shard_set = ShardSet.open(dataset_copy)
    damage(shard_set, "train", 3, b"")
    recipe = Recipe(data=make_feed(shard_set, cache="pixels").config)
    recipe = replace(recipe, train=replace(recipe.train, global_batch_size=30))
    data = TrainingData(recipe, shard_set, World(0, 0, 1, 1, CPU), dataset_copy, set())
    data.enter(0)
    assert data.decoded == 0
    seen = []
    for _ in data.batches(0, 0, iter):
        seen.append(data.decoded)
    assert 0 < (seen[0] or 0) <= 1
    assert seen[-1] is None  # 89 of 90; the other is bad
    data.close()
    assert data.decoded is None


SHARING = """
import sys, tempfile, time
from pathlib import Path
import numpy as np
from penstock.pipeline.pixel_sources import Job, Regions
from penstock.pipeline.pixels import PixelStore
from penstock.shards.format import ShardSet
from penstock.shards.ppm import header_sizes, ppm_header
from tests.common.feeds import make_feed

tempfile.tempdir = sys.argv[4]  # the common parent may have kept another
store = PixelStore.of(make_feed(ShardSet.open(sys.argv[1]), cache="pixels", world_size=2))
row, folder = np.array([7]), Path(sys.argv[3])
start, size = int(store.where(row)[0][0]), store.pixels[store.span(int(store.slots(row)[0]))].size
if sys.argv[2] == "first":
    image = np.full(size, 99, np.uint8)
    store.put(row, np.array([image.ctypes.data]))
    (folder / "stored").touch()
    while not (folder / "over").exists():
        time.sleep(0.01)
else:
    assert not store.missing(row)[0]
    assert (store.pixels[start : start + size] == 99).all()
"""


def test_ranks_of_a_machine_share_the_memory(dataset: ShardSet, tmp_path: Path) -> None:
    """Two processes of one parent: what one stores the other sees. A process of another parent has its own."""
    notes, flags = tmp_path / "notes", tmp_path / "flags"
    notes.mkdir()
    flags.mkdir()
    (notes / f"penstock-{os.getuid()}-{2**22 + 1}-abc").write_text("1 1")  # of a parent that there cannot be
    first = forked.start(["-c", SHARING, dataset.root, "first", flags, notes])
    while not (flags / "stored").exists():
        assert first.poll() is None, first.communicate(5)
        time.sleep(0.01)
    assert len(list(notes.iterdir())) == 1
    assert PixelStore.of(make_feed(dataset, cache="pixels", world_size=2)).missing(np.array([7]))[0]
    second = forked.run(["-c", SHARING, dataset.root, "second", flags, notes], timeout=60)
    assert second.returncode == 0, second.stderr
    (flags / "over").touch()
    assert first.wait(60) == 0
    assert not list(notes.iterdir())


# --- bounds


def test_what_does_not_fit_is_an_error_with_the_figure(dataset: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = dataset.split("train").samples
    need = int((3 * rows["height"].astype(int) * rows["width"]).sum())
    with pytest.raises(ValueError, match=rf'data\.cache = "pixels" needs {need} bytes .*data\.cache_bytes = 1000 '):
        make_loader(dataset, cache="pixels", cache_bytes=1000)
    make_loader(dataset, cache="pixels", cache_bytes=need).close()
    monkeypatch.setattr("penstock.pipeline.pixels.available_bytes", lambda: 2000)
    with pytest.raises(ValueError, match=r"the free memory leaves 0\.0 GB; pack smaller images"):
        make_loader(dataset, cache="pixels")


def test_two_splits_have_one_bound(dataset: ShardSet) -> None:
    sizes = {
        name: int((3 * split.samples["height"].astype(int) * split.samples["width"]).sum())
        for name, split in dataset.splits.items()
    }
    bound = sizes["train"] + sizes["val"] - 1
    with (
        closing(make_loader(dataset, cache="pixels", cache_bytes=bound)),
        pytest.raises(ValueError, match=r"split 'val'.* leaves"),
    ):
        make_loader(dataset, augment=None, cache="pixels", cache_bytes=bound)


def test_a_control_groups_limit_counts(tmp_path: Path) -> None:
    """In a container the kernel's estimate is the machine's."""
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 8000 kB\n")
    own, group = tmp_path / "own", tmp_path / "groups" / "a" / "b"
    own.write_text("0::/a/b\n")
    group.mkdir(parents=True)

    def available() -> int:
        return available_bytes(tmp_path / "meminfo", tmp_path / "groups", own)

    assert available() == 8000 * 1024
    (group / "memory.max").write_text("max\n")
    (group / "memory.stat").write_text("anon 1000\nfile 700000\nshmem 200\n")
    assert available() == 8000 * 1024
    (group.parent / "memory.max").write_text("500000\n")
    (group.parent / "memory.stat").write_text("anon 1500\nfile 400000\nshmem 200\n")
    assert available() == 500000 - 1500 - 200
    (group / "memory.max").write_text("1100\n")
    assert available() == 0
    own.unlink()
    (tmp_path / "meminfo").unlink()
    assert available() > 1 << 60


# --- batches are not written over


def test_batches_stay_what_they_are_while_they_are_held(dataset: ShardSet) -> None:
    with closing(make_loader(dataset, cache="pixels", prefetch=1)) as loader:
        held = list(loader.iter_epoch(0))
        copies = [batch.images.clone() for batch in held]
        views = [batch.images[0] for batch in held]
        del held
        list(loader.iter_epoch(1))
        assert all(torch.equal(view, copy[0]) for view, copy in zip(views, copies, strict=True))


def test_memory_is_used_again_once_it_is_free() -> None:
    buffers = Buffers(2)
    first = buffers.empty((4, 8), torch.float32)
    place, view = first.data_ptr(), first.view(-1)[3:]
    second = buffers.empty((4, 8), torch.float32)
    assert second.data_ptr() != place
    third = buffers.empty((4, 8), torch.float32)  # more than are kept
    assert third.data_ptr() not in (place, second.data_ptr())
    del first
    assert buffers.empty((2, 8), torch.uint8).data_ptr() not in (place, second.data_ptr())  # a view holds it
    del view
    assert buffers.empty((2, 8), torch.uint8).data_ptr() == place


# --- on a GPU: the same arithmetic by torch's operations


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("size", [11, 120])
def test_what_a_gpu_computes_is_what_the_kernel_does(
    dataset: ShardSet, interpolation: Interpolation, antialias: bool, size: int
) -> None:
    sizes = {"image_size": size, "val_image_size": size, "val_resize_size": size}
    for augment in (AugmentConfig(vflip=0.5), AugmentConfig(crop="pad", pad=3), AugmentConfig(crop="centre"), None):
        feed = make_feed(dataset, augment=augment, interpolation=interpolation, antialias=antialias, cache="pixels",
                         **sizes)  # fmt: skip
        with closing(loader_of(feed)) as loader:
            assert isinstance(loader, PixelLoader)
            for batch, planned in zip(loader.iter_epoch(0), feed.batches(0, 0, size), strict=True):
                assert loader.pixels
                there = DevicePixels(loader.pixels, CPU)
                images = there.batch(loader._request(planned), size, torch.float32).permute(0, 3, 1, 2)
                assert images.is_contiguous(memory_format=torch.channels_last)
                difference = (gray_levels(images, feed.config) - gray_levels(batch.images, feed.config)).abs()
                assert difference.max() < 1.01
                assert difference.mean() < 0.01


def test_a_device_gets_what_is_stored_later(dataset: ShardSet) -> None:
    feed = make_feed(dataset, cache="pixels")
    with closing(loader_of(feed)) as loader:
        assert isinstance(loader, PixelLoader)
        assert loader.pixels
        there = DevicePixels(loader.pixels, CPU)
        there._pixels = there._pixels.clone()  # a CPU's tensor is the store's own memory
        for batch, planned in zip(loader.iter_epoch(0), feed.batches(0, 0, SIZE), strict=True):
            there.put(planned.sample_ids)
            images = there.batch(loader._request(planned), SIZE, torch.float32)
            difference = images.permute(0, 3, 1, 2) - batch.images
            assert difference.abs().max() < 0.02


@pytest.mark.parametrize("taps", [(1, 1), (3, 4)])
def test_nothing_of_a_batch_waits_for_the_gpu(taps: tuple[int, int]) -> None:
    with fake_cuda():
        there = DevicePixels.__new__(DevicePixels)
        there._device, there._pixels = DEVICE, torch.empty(3 * 5000, dtype=torch.uint8, device=DEVICE)
        request = Request.__new__(Request)
        request.rows, request.taps, request.width = torch.empty(6, 20, dtype=torch.float64), taps, 33
        request.kind, request.antialias = 1, True
        images = there.batch(request, 24, torch.float16)
        assert images.device.type == "cuda"
        assert (images.shape, images.dtype) == ((6, 24, 24, 3), torch.float16)


def test_what_the_gpu_normalises_waits_for_nothing(dataset: ShardSet) -> None:
    with closing(loader_of(make_feed(dataset, cache="pixels"))) as loader, fake_cuda():
        assert isinstance(loader, PixelLoader)
        loader.device, loader.dtype = DEVICE, torch.float16
        loader._levels = torch.empty(2, 3, device=DEVICE)
        images = loader._normalised(torch.empty(4, 9, 9, 3, dtype=torch.uint8, device=DEVICE))
        assert (images.shape, images.dtype) == ((4, 9, 9, 3), torch.float16)


def test_levels_are_normalised_on_a_gpu_as_by_the_kernel(dataset: ShardSet) -> None:
    feed = make_feed(dataset, cache="pixels")
    with closing(loader_of(feed)) as loader:
        assert isinstance(loader, PixelLoader)
        for batch, planned in zip(loader.iter_epoch(0), feed.batches(0, 0, SIZE), strict=True):
            assert loader.pixels
            starts, pitches = loader.pixels.regions(planned)
            regions = Regions(loader.pixels.pixels.ctypes.data + starts, pitches, None)
            levels, under_way = loader._resized(planned, regions, torch.uint8)
            for future in under_way:
                future.result()
            images = loader._normalised(levels).permute(0, 3, 1, 2)
            assert torch.allclose(images, batch.images, atol=1e-5)


@pytest.mark.parametrize("augment", [CROPS, AugmentConfig(crop="pad", pad=2), None], ids=["crops", "pad", "validation"])
def test_the_ways_of_a_gpu_give_the_cpus_batches(
    dataset: ShardSet, augment: AugmentConfig | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is done where there is a GPU, done on the CPU: first the kernel's levels, then the images on the device."""
    feed = make_feed(dataset, augment=augment, cache="pixels")
    with closing(loader_of(feed)) as theirs:
        expected = [[*theirs.iter_epoch(epoch)] for epoch in range(3)]
    monkeypatch.setattr(PixelLoader, "_on_gpu", True)
    monkeypatch.setattr(pixel_loader, "fits", lambda store, device: True)
    with closing(loader_of(feed)) as ours:
        assert isinstance(ours, PixelLoader)
        for epoch in range(3):
            for batch, other in zip(ours.iter_epoch(epoch), expected[epoch], strict=True):
                assert batch.position == other.position
                assert torch.equal(batch.sample_ids, other.sample_ids)
                assert batch.images.is_contiguous(memory_format=torch.channels_last)
                apart = gray_levels(batch.images, feed.config) - gray_levels(other.images, feed.config)
                assert apart.abs().max() < 1.01
                assert apart.abs().mean() < 0.01
            assert (ours._there is not None) == (epoch > 0)
