"""Ask the kernel to read the bytes of batches in advance."""

from collections import deque
from collections.abc import Iterator
from itertools import groupby
from typing import Protocol

import numpy as np

from penstock.pipeline.feed import Feed, PlannedBatch


class _Reader(Protocol):
    def read_ahead(self, sample_ids: np.ndarray, gap_bytes: int = 0) -> None: ...


def read_ahead(planned: Iterator[PlannedBatch], feed: Feed, reader: _Reader) -> Iterator[PlannedBatch]:
    """Yield the same batches, and ask the kernel to read their bytes `read_ahead` batches in advance. In `block` order
    it is a window in advance, since a window's samples are stored together."""
    config = feed.config
    if not config.read_ahead or config.cache == "encoded":
        yield from planned
    elif feed.augment and config.order == "block":
        size, before = config.block_size * config.window_blocks, list[PlannedBatch]()
        for _, group in groupby(planned, key=lambda batch: batch.span.start // size):
            window = list(group)
            reader.read_ahead(np.concatenate([batch.sample_ids for batch in window]), gap_bytes=1 << 20)
            yield from before
            before = window
        yield from before
    else:
        waiting: deque[PlannedBatch] = deque()
        for batch in planned:
            reader.read_ahead(batch.sample_ids)
            waiting.append(batch)
            if len(waiting) > config.read_ahead:
                yield waiting.popleft()
        yield from waiting
