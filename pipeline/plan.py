"""What an epoch feeds, decided up front: position → sample id and random draws.

Everything here is a pure function of (seed, epoch, position): no state, no I/O, no array as long as the data set.
That is why a run resumes at any position on any number of GPUs, and why its samples can be told afterwards.

A position counts the samples of the whole epoch over all ranks. A global batch is a run of consecutive positions;
each rank takes its own consecutive part of it (`train_spans`, `eval_spans`).
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
    """One epoch's order and random draws.

    `order`: "global" is a permutation of all samples; "block" permutes blocks of `block_size` stored neighbours and
    then the samples inside a window of `window_blocks` blocks, so that reading stays sequential over large pieces;
    "sequential" is the stored order (validation).
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
        """The sample ids at positions start…start+count-1, which must lie inside the epoch. (count,) int64."""
        if start < 0 or count < 0 or start + count > self.num_samples:
            raise ValueError(f"positions {start}…{start + count - 1} are outside an epoch of {self.num_samples}")
        return self.ids_at(np.arange(start, start + count, dtype=np.int64))

    def ids_at(self, positions: np.ndarray) -> np.ndarray:
        """The sample ids at any positions of the epoch, (count,) int64 each. The more at a time, the cheaper: for 256
        it costs ten times as much a sample as for 4,096."""
        if self.order == "sequential":
            return positions
        if self.order == "global":
            return permute(positions, self.num_samples, philox_key(self.seed, self.epoch, "order"))
        return self._block_order(positions)

    def _block_order(self, positions: np.ndarray) -> np.ndarray:
        """Blocks are laid on the stored order turned by a random amount, so that every epoch cuts them elsewhere and
        the short rest (num_samples mod block_size) is another one; it goes with the last window."""
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
        """Random numbers that belong to positions: (count, num_draws) float64 in [0, 1).

        A row depends on (seed, epoch, stream, position) and nothing else: the counter-based generator is advanced to
        the position (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
        """
        blocks = -(-num_draws // 4)  # Philox makes four 64-bit words a count
        bits = np.random.Philox(key=philox_key(self.seed, self.epoch, stream)).advance(start * blocks)
        words = bits.random_raw(count * blocks * 4).reshape(count, blocks * 4)[:, :num_draws]
        return (words >> np.uint64(11)) * 2.0**-53


@dataclass(frozen=True)
class Span:
    """The positions start…start+count-1, read by one rank as one batch; `end` is where the epoch then stands."""

    start: int
    count: int
    end: int


def train_spans(
    num_samples: int, position: int, *, global_batch_size: int, batch_size: int, rank: int, world_size: int
) -> Iterator[Span]:
    """One rank's batches from a position on. The last partial global batch of an epoch is dropped.

    A global batch is `global_batch_size / (batch_size × world_size)` rounds (gradient accumulation) of one batch a
    rank, so at any world size the same positions make up the same global step.
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
    """One rank's batches of a validation epoch: every position once over all ranks, the last ones shorter or none."""
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
    """The positions of spans, in their order, as few runs of (start, count): neighbours are one."""
    found = list[tuple[int, int]]()
    for span in spans:
        if found and sum(found[-1]) == span.start:
            found[-1] = found[-1][0], found[-1][1] + span.count
        else:
            found.append((span.start, span.count))
    return found
