"""No memory is written while it is still read: the batch's, and the inputs that DALI uses without a copy."""

from collections.abc import Callable

import pytest
import torch

from penstock.pipeline.augment import AugmentConfig
from penstock.pipeline.batch import Batch
from penstock.shards.format import ShardSet
from tests.common.augments import EVERYTHING
from tests.common.gpu_loader import make_loader
from tests.common.mortal import mortal_inputs

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

__all__ = ["mortal_inputs"]  # a fixture

LONG_WORK = 20  # products of 4096² matrices: milliseconds, in which several batches are made


def on_this_stream(images: torch.Tensor, work: Callable[[], None]) -> torch.Tensor:
    work()
    return images.double().sum()


def on_another_stream(images: torch.Tensor, work: Callable[[], None]) -> torch.Tensor:
    """As a consumer with a stream of its own must do: the stream that the batch came on waits before the batch goes.
    (`Tensor.record_stream` says nothing to DALI, whose memory this is.)"""
    stream, own = torch.cuda.current_stream(), torch.cuda.Stream()
    own.wait_stream(stream)
    with torch.cuda.stream(own):
        work()
        total = images.double().sum()
    stream.wait_stream(own)
    return total


@pytest.mark.parametrize("read", [on_this_stream, on_another_stream])
@pytest.mark.parametrize("prefetch", [1, 2, 4, 8])
def test_a_batch_is_not_written_while_work_on_it_waits(
    dataset: ShardSet, read: Callable[[torch.Tensor, Callable[[], None]], torch.Tensor], prefetch: int
) -> None:
    loader = make_loader(dataset, batch_size=3, prefetch=prefetch)
    expected = [batch.images.double().sum().item() for batch in loader.iter_epoch(0)]
    busy = torch.randn(4096, 4096, device="cuda", dtype=torch.half)

    def work() -> None:
        for _ in range(LONG_WORK):
            torch.tanh(busy @ busy)

    sums = []
    for batch in loader.iter_epoch(0):
        sums.append(read(batch.images, work))
        del batch
    assert [float(total) for total in sums] == expected
    loader.close()


def test_a_batch_is_what_it_was_while_it_is_held(dataset: ShardSet) -> None:
    """It stays the same through other epochs and after the loader is closed."""
    loader = make_loader(dataset, batch_size=6)
    held: list[Batch] = list(loader.iter_epoch(0))
    copies = [batch.images.clone() for batch in held]
    list(loader.iter_epoch(1))
    epoch = loader.iter_epoch(2)
    next(epoch)
    epoch.close()
    loader.close()
    torch.cuda.synchronize()
    assert all(torch.equal(batch.images, copy) for batch, copy in zip(held, copies, strict=True))


@pytest.mark.usefixtures("busy")
@pytest.mark.parametrize("augment", [AugmentConfig(), EVERYTHING], ids=["crops", "everything"])
@pytest.mark.parametrize("prefetch", [1, 2, 4, 8])
def test_inputs_live_until_the_gpu_has_read_them(
    dataset: ShardSet,
    request: pytest.FixtureRequest,
    augment: AugmentConfig,
    prefetch: int,
) -> None:
    """The CPU runs ahead of a busy GPU: inputs that it released are overwritten (`mortal`)."""
    loader = make_loader(dataset, augment=augment, batch_size=3, hw_decoder_load=0.0)
    expected = [batch.images.cpu() for batch in loader.iter_epoch(1)]
    loader.close()
    request.getfixturevalue("mortal_inputs")
    loader = make_loader(dataset, augment=augment, batch_size=3, hw_decoder_load=0.0, prefetch=prefetch)
    found = [batch.images for batch in loader.iter_epoch(1)]
    torch.cuda.synchronize()
    assert all(torch.equal(a.cpu(), b) for a, b in zip(found, expected, strict=True))
    loader.close()


def test_an_abandoned_epoch_of_a_busy_gpu(dataset: ShardSet, request: pytest.FixtureRequest) -> None:
    """Batches in flight when an epoch is abandoned, or the loader is closed, read their inputs to the end."""
    loader = make_loader(dataset, augment=EVERYTHING, batch_size=6, prefetch=4, hw_decoder_load=0.0)
    expected = [batch.images.cpu() for batch in loader.iter_epoch(1)]
    request.getfixturevalue("mortal_inputs")
    request.getfixturevalue("busy")
    for _ in range(3):
        epoch = loader.iter_epoch(0)
        next(epoch)
        epoch.close()
        assert all(torch.equal(batch.images.cpu(), b) for batch, b in zip(loader.iter_epoch(1), expected, strict=True))
    loader.close()
    torch.cuda.synchronize()
