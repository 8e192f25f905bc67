"""`Buffers`: memory for batches, reused once no reference to the batch is left."""

import sys

import numpy as np
import torch

_FREE = 2  # `sys.getrefcount` of a free array: the list's reference, and the call's own argument


class Buffers:
    """Reusable memory for batches. Fresh memory costs a page fault every 4 KiB, as much as resizing a small image.

    A batch's tensor, and every view of it, holds a reference to its buffer. A buffer with no reference but this list's
    is free. If a caller holds more than `most` batches, further buffers are made but not kept.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: list[np.ndarray] = []

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """An uninitialised tensor on the CPU, in memory that nothing else uses."""
        num_bytes = int(np.prod(shape)) * dtype.itemsize
        for place in range(len(self._kept)):
            if self._kept[place].nbytes >= num_bytes and sys.getrefcount(self._kept[place]) <= _FREE:
                return _tensor(self._kept[place], num_bytes, dtype, shape)
        memory = np.empty(num_bytes, np.uint8)
        if len(self._kept) < self._most:
            self._kept.append(memory)
        return _tensor(memory, num_bytes, dtype, shape)


def _tensor(memory: np.ndarray, num_bytes: int, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(memory[:num_bytes]).view(dtype).view(shape)
