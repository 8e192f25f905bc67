"""`DaliLoader` on a GPU and on the CPU: the same plan, and pixels that differ only by the decoder's rounding."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from penstock.pipeline.augment import AugmentConfig
from penstock.pipeline.batch import Batch
from penstock.pipeline.config import DataConfig
from penstock.pipeline.holes import IGNORE_LABEL, NO_SAMPLE, BadSample
from penstock.shards.format import ShardSet
from tests.common.feeds import CROPS, JITTER
from tests.common.gpu_loader import make_loader

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def gray_levels(images: torch.Tensor) -> torch.Tensor:
    config = DataConfig()
    std, mean = torch.tensor(config.std), torch.tensor(config.mean)
    return images.cpu().float() * std[:, None, None] + mean[:, None, None]


def on_cpu(batches: list[Batch]) -> list[Batch]:
    torch.cuda.synchronize()
    return [Batch(batch.images.cpu(), batch.labels.cpu(), batch.sample_ids) for batch in batches]


def same(a: list[Batch], b: list[Batch], apart: float = 0.0) -> bool:
    """Whether the samples and labels agree, and the images bit for bit or within `apart` grey levels on average."""
    return len(a) == len(b) and all(
        torch.equal(x.labels, y.labels) and torch.equal(x.sample_ids, y.sample_ids)
        and (torch.equal(x.images, y.images) or per_image(x.images, y.images).max() < apart)
        for x, y in zip(a, b, strict=True)
    )  # fmt: skip


def per_image(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The mean difference of each image in grey levels."""
    return (gray_levels(a) - gray_levels(b)).abs().mean(dim=(1, 2, 3))


@pytest.mark.parametrize(
    ("gpu_decode", "hw_decoder_load"), [("whole", 0.0), ("whole", 0.65), ("whole", 1.0), ("off", 0)]
)
@pytest.mark.parametrize("augment", [CROPS, JITTER, None], ids=["crops", "jitter", "validation"])
def test_the_gpu_makes_the_cpus_batches(
    dataset: ShardSet, augment: AugmentConfig | None, gpu_decode: str, hw_decoder_load: float
) -> None:
    gpu = make_loader(dataset, augment=augment, gpu_decode=gpu_decode, hw_decoder_load=hw_decoder_load)
    cpu = make_loader(dataset, "cpu", augment=augment, dtype=torch.float32)
    differences = []
    for ours, theirs in zip(gpu.iter_epoch(1), cpu.iter_epoch(1), strict=True):
        assert (ours.epoch, ours.position) == (theirs.epoch, theirs.position)
        assert ours.images.device.type == ours.labels.device.type == "cuda"
        assert ours.sample_ids.device.type == "cpu"
        assert ours.images.dtype == torch.float16
        assert ours.images.shape == theirs.images.shape
        assert ours.images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(ours.sample_ids, theirs.sample_ids)
        assert torch.equal(ours.labels.cpu(), theirs.labels)
        differences.append(per_image(ours.images, theirs.images))
    apart = torch.cat(differences)
    print(f"mean {apart.mean():.3f}, largest {apart.max():.3f} grey levels")
    assert apart.mean() < 1
    assert apart.max() < 2
    gpu.close()
    cpu.close()


def test_float32_on_the_gpu(dataset: ShardSet) -> None:
    loader = make_loader(dataset, dtype=torch.float32)
    batch = next(iter(loader.iter_epoch(0)))
    assert batch.images.dtype == torch.float32
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    loader.close()


@pytest.mark.parametrize(("hw_decoder_load", "apart"), [(0.0, 0.0), (1.0, 0.0), (0.65, 0.5)])
def test_resume_and_abandon(dataset: ShardSet, hw_decoder_load: float, apart: float) -> None:
    """If both of the GPU's decoders work, an image may get a different one in each run. On ImageNet's images their
    pixels are 0.03 grey levels apart on average and 3 at most (an H200)."""
    loader = make_loader(dataset, augment=JITTER, hw_decoder_load=hw_decoder_load)
    whole = on_cpu(list(loader.iter_epoch(1)))
    for batches_taken in (1, 3):
        epoch = loader.iter_epoch(0)
        for _ in range(batches_taken):
            next(epoch)
        epoch.close()
        rest = list(loader.iter_epoch(1, 24))
        assert (rest[-1].epoch, rest[-1].position) == (1, 72)
        assert same(on_cpu(rest), whole[2:], apart)
    loader.close()
    again = make_loader(dataset, augment=JITTER, hw_decoder_load=hw_decoder_load)
    assert same(on_cpu(list(again.iter_epoch(1))), whole, apart)
    again.close()


def test_batches_stay_what_they_are(dataset: ShardSet) -> None:
    """A batch is a view on DALI's memory: it must not be written again while it is held, or while work on it waits."""
    loader = make_loader(dataset, batch_size=6)
    held, copies = [], []
    for batch in loader.iter_epoch(0):
        held.append(batch.images)
        copies.append(batch.images.clone())
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(held, copies, strict=True))
    expected = [images.double().sum().item() for images in copies]
    sums = []
    busy = torch.randn(4096, 4096, device="cuda")
    for batch in loader.iter_epoch(0):  # dropped as soon as its work is queued, behind work that takes longer
        for _ in range(20):
            busy = torch.tanh(busy @ busy)
        sums.append(batch.images.double().sum())
        del batch
    assert [float(value) for value in sums] == expected
    loader.close()


@pytest.mark.parametrize("data", [b"", b"<html>404 Not Found</html>"], ids=["zeros", "text"])
def test_a_bad_sample_on_the_gpu(
    dataset: ShardSet,
    dataset_dir: Path,
    tmp_path: Path,
    damage: Callable[[ShardSet, str, int, bytes], None],
    data: bytes,
) -> None:
    healthy = make_loader(dataset)
    expected = on_cpu(list(healthy.iter_epoch(1)))
    healthy.close()
    shard_set = ShardSet.open(shutil.copytree(dataset_dir, tmp_path / "copy"))
    bad = [int(expected[batch].sample_ids[row]) for batch, row in ((1, 0), (1, 11), (4, 5))]
    for sample_id in bad:
        damage(shard_set, "train", sample_id, data)
    reported: list[BadSample] = []
    loader = make_loader(shard_set, on_bad=reported.append)
    found = on_cpu(list(loader.iter_epoch(1)))
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        quarantined = torch.isin(theirs.sample_ids, torch.tensor(bad))
        assert torch.all(ours.sample_ids[quarantined] == NO_SAMPLE)
        assert torch.all(ours.labels[quarantined] == IGNORE_LABEL)
        assert torch.equal(ours.sample_ids[~quarantined], theirs.sample_ids[~quarantined])
        difference = (gray_levels(ours.images) - gray_levels(theirs.images))[~quarantined].abs()
        assert difference.mean() < 0.5  # the hardware decoder's share of a batch may fall on other samples
    assert sorted(sample.sample_id for sample in reported) == sorted(bad)
    assert loader.quarantine == set(bad)
    loader.close()


def test_a_truncated_image_costs_no_other(
    dataset: ShardSet, dataset_copy: Path, damage: Callable[[ShardSet, str, int, bytes], None]
) -> None:
    """A decoder may accept it (nvJPEG may, libjpeg-turbo does not). The other images must stay the same."""
    healthy = make_loader(dataset, hw_decoder_load=0.0)
    expected = on_cpu(list(healthy.iter_epoch(1)))
    healthy.close()
    shard_set = ShardSet.open(dataset_copy)
    bad = int(expected[2].sample_ids[3])
    row = dataset.split("train").samples[bad]
    data = dataset.split("train").shard_path(int(row["shard"])).read_bytes()[int(row["offset"]) :][: int(row["size"])]
    damage(shard_set, "train", bad, data[: len(data) * 2 // 3])
    loader = make_loader(shard_set, hw_decoder_load=0.0)
    for ours, theirs in zip(on_cpu(list(loader.iter_epoch(1))), expected, strict=True):
        others = theirs.sample_ids != bad
        assert torch.equal(ours.sample_ids[others], theirs.sample_ids[others])
        assert torch.equal(ours.images[others], theirs.images[others])
    print(f"quarantined: {loader.quarantine}")
    assert loader.quarantine <= {bad}
    loader.close()
