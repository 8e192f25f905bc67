"""The plan of an epoch: which sample comes at which position, and with which random numbers.

A position is a sample's place in the epoch, from 0, counted over all ranks. `EpochPlan` maps positions to sample ids
and random draws. A global batch is a range of consecutive positions. `train_spans` and `eval_spans` give each rank its
part of it.

Everything here is a pure function of (seed, epoch, position): no state, no I/O, no array as long as the dataset.
Therefore a run can resume at any position on any number of GPUs, and anyone can compute afterwards which samples it
used.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from penstock.pipeline.permutation import permute, philox_key

Order = Literal["global", "block", "sequential"]
ORDERS: tuple[Order, ...] = ("global", "block", "sequential")


@dataclass(frozen=True, kw_only=True)
class EpochPlan:
    """The order of the samples in one epoch, and the random draws for them.

    order: "global" permutes all samples. "block" permutes blocks of `block_size` consecutive samples, then the samples
        inside each window of `window_blocks` blocks, so that large pieces are read sequentially. "sequential" is the
        stored order (validation).
    """

    num_samples: int
    seed: int = 0
    epoch: int = 0
    order: Order = "global"
    block_size: int = 256
    window_blocks: int = 16

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise ValueError(f"order: {self.order!r} is not one of {', '.join(ORDERS)}")
        if self.num_samples < 1 or self.block_size < 1 or self.window_blocks < 1:
            raise ValueError("num_samples, block_size and window_blocks must be at least 1")

    def sample_ids(self, start: int, count: int) -> np.ndarray:
        """The sample ids at positions start…start+count-1: (count,) int64.

        Raises ValueError if a position is outside the epoch.
        """
        if start < 0 or count < 0 or start + count > self.num_samples:
            raise ValueError(f"positions {start}…{start + count - 1} are outside an epoch of {self.num_samples}")
        return self.ids_at(np.arange(start, start + count, dtype=np.int64))

    def ids_at(self, positions: np.ndarray) -> np.ndarray:
        """The sample ids at any positions of the epoch: (count,) int64 → (count,) int64.

        Larger calls are cheaper: with 256 positions a sample costs ten times as much as with 4,096.
        """
        if self.order == "sequential":
            return positions
        if self.order == "global":
            return permute(positions, self.num_samples, philox_key(self.seed, self.epoch, "order"))
        return self._block_order(positions)

    def _block_order(self, positions: np.ndarray) -> np.ndarray:
        """The sample ids in "block" order.

        The stored order is first rotated by a random amount, so that each epoch has other block boundaries and another
        short remainder (num_samples mod block_size). The remainder belongs to the last window.
        """
        n, block = self.num_samples, self.block_size
        window_size = block * self.window_blocks
        num_blocks = n // block
        slots = np.empty_like(positions)
        windows = positions // window_size
        for window in np.unique(windows):
            first = int(window) * window_size
            here = windows == window
            key = philox_key(self.seed, self.epoch, f"window {window}")
            slots[here] = first + permute(positions[here] - first, min(window_size, n - first), key)
        in_full_block = slots < num_blocks * block
        full = slots[in_full_block]
        if len(full):
            blocks = permute(full // block, num_blocks, philox_key(self.seed, self.epoch, "blocks"))
            slots[in_full_block] = blocks * block + full % block
        turn = int(self.uniforms("turn", 0, 1, 1)[0, 0] * n)
        return (slots + turn) % n

    def uniforms(self, stream: str, start: int, count: int, num_draws: int) -> np.ndarray:
        """The random numbers of positions start…start+count-1: (count, num_draws) float64 in [0, 1).

        A row depends only on (seed, epoch, stream, position): the counter-based generator is advanced to the position
        (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"). Each kind of draw has its own stream.
        """
        blocks = -(-num_draws // 4)  # Philox makes four 64-bit words for each count
        bits = np.random.Philox(key=philox_key(self.seed, self.epoch, stream)).advance(start * blocks)
        words = bits.random_raw(count * blocks * 4).reshape(count, blocks * 4)[:, :num_draws]
        return (words >> np.uint64(11)) * 2.0**-53


@dataclass(frozen=True)
class Span:
    """The positions start…start+count-1, which one rank reads as one batch.

    end: the position at which the epoch continues once all ranks have read their batches.
    """

    start: int
    count: int
    end: int


def train_spans(
    num_samples: int, position: int, *, global_batch_size: int, batch_size: int, rank: int, world_size: int
) -> Iterator[Span]:
    """One rank's training batches from `position` to the end of the epoch. The last, partial global batch is dropped.

    A global batch consists of global_batch_size / (batch_size × world_size) rounds, in which each rank reads one batch.
    Several rounds are gradient accumulation. At any world size the same positions form the same global batch.

    Raises ValueError if the global batch does not divide into whole rounds.
    """
    stride = batch_size * world_size
    if min(batch_size, global_batch_size) < 1 or global_batch_size % stride:
        raise ValueError(
            f"global_batch_size {global_batch_size} does not divide into batches of {batch_size} on {world_size} ranks"
        )
    while position + global_batch_size <= num_samples:
        for start in range(position, position + global_batch_size, stride):
            yield Span(start + rank * batch_size, batch_size, start + stride)
        position += global_batch_size


def eval_spans(num_samples: int, position: int, *, batch_size: int, rank: int, world_size: int) -> Iterator[Span]:
    """One rank's validation batches from `position` on: all ranks together read every position once.

    The last batch of a rank may be shorter, or missing.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size {batch_size} must be at least 1")
    while position < num_samples:
        end = min(position + batch_size * world_size, num_samples)
        start = min(position + rank * batch_size, end)
        count = min(batch_size, end - start)
        if count:
            yield Span(start, count, end)
        position = end


def runs(spans: Sequence[Span]) -> list[tuple[int, int]]:
    """The positions of spans, in their order, as runs of (start, count). Adjacent spans are merged."""
    found = list[tuple[int, int]]()
    for span in spans:
        if found and sum(found[-1]) == span.start:
            found[-1] = found[-1][0], found[-1][1] + span.count
        else:
            found.append((span.start, span.count))
    return found
