"""`DaliLoader`: feed + reader + graph → batches on the training device.

A sample that cannot be decoded costs one line: DALI stops at it and its pipeline is lost, so the loader tries the
samples of that batch (`probe.py`), takes the bad ones out, builds the pipeline anew and goes on at the same position.

The place of a sample taken out stays in the batch, filled with a gray image, label IGNORE_LABEL and id NO_SAMPLE: so no
other sample moves, and no rank has to tell another in mid-epoch. From the next epoch on the sample stays out wherever
it comes (`quarantine`), which ranks agree on between epochs: so an epoch is the same on any number of them.
"""

import io
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import torch

from pipeline.augment import AugmentParams
from pipeline.batch import IGNORE_LABEL, NO_SAMPLE, Batch
from pipeline.feed import Feed, PlannedBatch
from pipeline.graph import build_graph, encoded, graph_inputs
from pipeline.probe import find_bad
from pipeline.reader import ShardReader


@dataclass(frozen=True)
class BadSample:
    """A sample that was taken out: its row, when it was met, where it lies (tar, offset, source name), and what the
    decoder said."""

    sample_id: int
    epoch: int
    position: int
    where: str
    reason: str


class DaliLoader:
    """One rank's batches of a split. See `pipeline.batch.Loader` for the contract.

    Args:
        feed: the split, the settings and this rank's share.
        device: where images and labels go.
        threads: decode threads.
        dtype: of the images, float32 or float16; on the CPU float16 costs more than it saves.
        quarantine: rows of samples known to be bad; new ones are added, and left out from the next `iter_epoch` on.
        on_bad: told of each sample that is taken out.

    Raises:
        ValueError: a shard is missing or has another size (on construction); a validation image cannot be decoded; too
            many training images cannot (while iterating).
    """

    def __init__(
        self,
        feed: Feed,
        *,
        device: torch.device,
        threads: int,
        dtype: torch.dtype = torch.float32,
        quarantine: set[int] | None = None,
        on_bad: Callable[[BadSample], None] = lambda bad: None,
    ) -> None:
        self.feed, self.device, self.threads, self.dtype = feed, device, threads, dtype
        self.quarantine = quarantine if quarantine is not None else set()
        self._on_bad = on_bad
        self._reader = ShardReader(feed.split, in_memory=feed.config.cache == "encoded")
        self._out: frozenset[int] = frozenset()  # the quarantine when the epoch under way began
        self._holes: set[int] = set()  # positions of those met since
        self._state = (0, 0)
        self._pipe: Any = None
        self._pipe_key: tuple[int, tuple[str, ...]] | None = None
        self._planned: Iterator[PlannedBatch] = iter(())
        self._in_flight: deque[tuple[PlannedBatch, tuple[Any, ...]]] = deque()
        self._used = deque(self._in_flight, maxlen=4)  # inputs that the GPU may still be reading, uncopied
        self._turn = object()  # of the epoch under way: a loader runs one at a time

    @property
    def state(self) -> tuple[int, int]:
        return self._state

    def __len__(self) -> int:
        return len(self.feed)

    def iter_epoch(self, epoch: int, position: int = 0, image_size: int | None = None) -> Iterator[Batch]:
        image_size = image_size or self.feed.image_size
        self._state = (epoch, position)
        self._out = frozenset(self.quarantine)
        self._holes.clear()
        turn = self._turn = object()
        if self._in_flight:
            self._drop_pipe()  # the last epoch was left before its end: its batches must not come out here
        while True:
            done = self._state[1]  # perhaps inside a global batch, after a bad sample: the spans stay as they were
            self._planned = self._ahead(self.feed.batches(epoch, position, image_size, done))
            try:
                yield from self._run(epoch, image_size, turn)
                return
            except RuntimeError as error:
                self._take_out_bad(error)
                self._drop_pipe()

    def close(self) -> None:
        self._drop_pipe()
        self._used.clear()
        self._reader.close()

    def _run(self, epoch: int, image_size: int, turn: object) -> Iterator[Batch]:
        first = next(self._planned, None)
        if first is None:
            return
        self._planned = _chain(first, self._planned)
        names = tuple(self._arrays(first))
        if self._pipe_key != (image_size, names):
            self._drop_pipe()
            self._pipe = build_graph(
                self._next_inputs,
                names,
                self.feed.config,
                image_size=image_size,
                batch_size=self.feed.batch_size,
                threads=self.threads,
                gpu=(self.device.index or 0) if self.device.type == "cuda" else None,
                half=self.dtype == torch.float16,
            )
            self._pipe_key = (image_size, names)
        # On a stream the batch is handed over without waiting for the GPU, and its memory is freed in stream order.
        stream = torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None
        while True:
            try:
                (output,) = self._pipe.run(stream)
            except StopIteration:
                self._pipe.reset()
                return
            planned, _ = self._in_flight[0]
            images = torch.from_dlpack(output.as_tensor()).permute(0, 3, 1, 2)  # HWC in memory: a channels-last view
            labels = torch.from_numpy(planned.labels).to(self.device, non_blocking=True)
            self._state = (epoch, planned.span.end)
            yield Batch(images, labels, torch.from_numpy(planned.sample_ids))
            if self._turn is not turn:
                raise ValueError("this epoch ended when iter_epoch was called again: a loader runs one at a time")
            self._used.append(self._in_flight.popleft())

    def _ahead(self, planned: Iterator[PlannedBatch]) -> Iterator[PlannedBatch]:
        """The same batches, the kernel being asked for their bytes before they are due: `read_ahead` batches before, or
        in `block` order a window before, whose samples lie together."""
        config = self.feed.config
        if not config.read_ahead or config.cache == "encoded":
            yield from planned
        elif self.feed.augment and config.order == "block":
            size, before = config.block_size * config.window_blocks, list[PlannedBatch]()
            for _, group in groupby(planned, key=lambda batch: batch.span.start // size):
                window = list(group)
                self._reader.read_ahead(np.concatenate([batch.sample_ids for batch in window]), gap_bytes=1 << 20)
                yield from before
                before = window
            yield from before
        else:
            waiting: deque[PlannedBatch] = deque()
            for batch in planned:
                self._reader.read_ahead(batch.sample_ids)
                waiting.append(batch)
                if len(waiting) > config.read_ahead:
                    yield waiting.popleft()
            yield from waiting

    def _next_inputs(self) -> tuple[Any, ...]:
        """DALI's source: called when the graph has room for one more batch."""
        planned = next(self._planned, None)
        if planned is None:
            raise StopIteration
        views = self._reader.views(planned.sample_ids)
        if self._out or self._holes:
            start = planned.span.start
            bad = [
                place
                for place, sample_id in enumerate(planned.sample_ids.tolist())
                if sample_id in self._out or start + place in self._holes
            ]
            planned = _blank(planned, bad)
            for place in bad:
                views[place] = _GRAY
        inputs = (encoded(views), *self._arrays(planned).values())
        self._in_flight.append((planned, inputs))
        return inputs

    def _arrays(self, planned: PlannedBatch) -> AugmentParams:
        return graph_inputs(planned.params, self.feed.config, on_gpu=self.device.type == "cuda")

    def _take_out_bad(self, error: RuntimeError) -> None:
        """Find the samples in flight that cannot be decoded. Raises ValueError where the run must not go on."""
        gpu = self.device.index or 0 if self.device.type == "cuda" else None
        found = []
        for planned, _ in self._in_flight:
            live = np.flatnonzero(planned.sample_ids != NO_SAMPLE)
            params = {name: values[live] for name, values in planned.params.items()}
            views = self._reader.views(planned.sample_ids[live])
            for i, reason in find_bad(views, params, gpu).items():
                sample_id, position = int(planned.sample_ids[live[i]]), planned.span.start + int(live[i])
                where = self.feed.split.where(sample_id)
                found.append(BadSample(sample_id, self._state[0], position, where, reason))
            if found:
                break
        if not found:
            raise ValueError(f"DALI failed, though every sample decodes alone: {_one_line(error)}") from error
        if not self.feed.augment:
            names = "; ".join(f"{bad.where}: {bad.reason}" for bad in found)
            raise ValueError(f"validation counts every image, and this one cannot be decoded: {names}") from None
        for bad in found:
            self._holes.add(bad.position)
            self.quarantine.add(bad.sample_id)
            self._on_bad(bad)
        limit = max(1, int(self.feed.config.max_bad_fraction * len(self.feed.split)))
        if len(self.quarantine) > limit:
            root, fraction = self.feed.split.root, self.feed.config.max_bad_fraction
            raise ValueError(
                f"{root}: {len(self.quarantine)} of {len(self.feed.split)} samples cannot be decoded, more than "
                f"data.max_bad_fraction {fraction} allows; the last is {found[-1].where}; "
                f"find all with: python -m shard_tools verify --decode {root}"
            )

    def _drop_pipe(self) -> None:
        self._pipe, self._pipe_key = None, None
        self._in_flight.clear()


def _one_line(error: RuntimeError) -> str:
    """The heart of DALI's message, which is a page with stack traces."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if line and "rror" in line), lines[0] if lines else "unknown error")[:300]


def _chain(first: PlannedBatch, rest: Iterator[PlannedBatch]) -> Iterator[PlannedBatch]:
    yield first
    yield from rest


def _blank(planned: PlannedBatch, places: list[int]) -> PlannedBatch:
    """The batch with the samples at these places taken out: no id, no label, the whole gray image as the region."""
    sample_ids, labels = planned.sample_ids.copy(), planned.labels.copy()
    params = {name: values.copy() for name, values in planned.params.items()}
    sample_ids[places], labels[places] = NO_SAMPLE, IGNORE_LABEL
    params["anchor"][places], params["shape"][places] = 0, _GRAY_SIDE
    if "roi_end" in params:
        params["roi_start"][places], params["roi_end"][places] = 0, _GRAY_SIDE
    return replace(planned, sample_ids=sample_ids, labels=labels, params=params)


_GRAY_SIDE = 16


def _gray_jpeg() -> np.ndarray:
    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (_GRAY_SIDE, _GRAY_SIDE), (124, 116, 104)).save(stream, "JPEG")
    return np.frombuffer(stream.getvalue(), dtype=np.uint8)


_GRAY = _gray_jpeg()
