"""`PixelLoader`: feed + pixels + the resize kernel → batches. The pixels are in memory, or in shards (`pixel_sources`).

It has the plan, kernel and batches of `DaliLoader`, bit for bit on the CPU. One thread prepares batches ahead. DALI
decodes encoded samples for it, and a pool of threads runs the kernel. With `data.cache = "pixels"` no JPEG is read
after the first epoch. Augmentations beyond crops and flips are nodes of DALI's graph that get resized images.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from functools import cached_property
from itertools import islice, pairwise
from typing import NamedTuple

import numpy as np
import torch

from penstock.pipeline import ranges
from penstock.pipeline.augment.params import Name, StepArray
from penstock.pipeline.bad_samples import BadSamples
from penstock.pipeline.batch import Batch
from penstock.pipeline.buffers import Buffers
from penstock.pipeline.device_pixels import DevicePixels, Request, fits
from penstock.pipeline.feed import Feed, PlannedBatch
from penstock.pipeline.holes import BadSample, blank
from penstock.pipeline.pixel_graphs import Finisher, PixelDecoder
from penstock.pipeline.pixel_sources import Decoded, Job, Regions, Source, source_of
from penstock.pipeline.pixels import PixelStore
from penstock.pipeline.read_ahead import read_ahead
from penstock.pipeline.reader import open_reader

_LEAST = 1 << 16  # pixels that justify waking a thread
_MOST = 0.5  # stored share of the images from which a GPU gets a copy; later images are added one by one
_AT_ONCE = 1 << 24  # image values that a GPU makes at once, if they are several batches


class Made(NamedTuple):
    """A batch on the CPU and its bad samples; or several small batches, one after the other, for a GPU.

    images: (n, S, S, 3), complete when all of `under_way` have ended: normalised, or uint8 for the GPU to normalise; or
        the request from which `DevicePixels` makes them.
    """

    planned: list[PlannedBatch]
    images: torch.Tensor | Request
    under_way: list[Future[None]]
    found: list[list[BadSample]]


class PixelLoader:
    """One rank's batches of a split. See `pipeline.batch.Loader` for the contract; the arguments are `DaliLoader`'s.

    pixels: the store of `data.cache = "pixels"`. It lives as long as there is a reference to it.

    Raises:
        ValueError: as `DaliLoader`; also if the images do not fit into memory (`PixelStore`).
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
        self._bad = BadSamples(feed, quarantine, on_bad)
        self.quarantine = self._bad.quarantine
        self._reader = open_reader(feed)
        self.pixels = PixelStore.of(feed) if feed.config.cache == "pixels" else None
        self._source: Source | None = source_of(feed, self._reader, self._bad, self.pixels)
        self._decoder = PixelDecoder(feed, threads)
        self._finisher: Finisher | None = None
        self._there: DevicePixels | None = None
        self._levels: torch.Tensor | None = None  # mean and std, (2, 3), on a GPU
        self._maker = ThreadPoolExecutor(1, "penstock-batches")
        self._pool = ThreadPoolExecutor(threads, "penstock-pixels")
        self._buffers = Buffers(2 * (feed.config.prefetch + 2))
        self._jobs: Iterator[tuple[Job, Decoded]] = iter(())
        self._read: list[Future[None]] = []  # these must end before DALI overwrites its decoded regions
        self._ahead: deque[Future[Made | None]] = deque()
        self._turn = object()  # identifies the current epoch: a loader runs only one at a time

    def __len__(self) -> int:
        return len(self.feed)

    def iter_epoch(self, epoch: int, position: int = 0) -> Iterator[Batch]:
        turn = self._turn = object()
        self._stop()  # the last epoch may have been abandoned
        self._bad.begin(epoch)
        batches, share = self.feed.batches(epoch, position, self.feed.image_size), 0.0
        if self.pixels:
            share = self.pixels.share
            wanted = self._on_gpu and not self._steps and self._there is None
            if wanted and share >= _MOST and fits(self.pixels, self.device):
                self._there = DevicePixels(self.pixels, self.device)
        if share < 1:
            self._reader.follow(self.feed.windows(epoch, position))
            batches = read_ahead(batches, self.feed, self._reader)
        assert self._source
        self._jobs = self._decoder.decoded(map(self._source.job, batches))
        self._ahead.extend(self._maker.submit(self._make) for _ in range(1 + self.feed.config.prefetch))
        while made := self._ahead.popleft().result():
            self._ahead.append(self._maker.submit(self._make))
            for future in made.under_way:
                future.result()
            with ranges.span("copy"):
                images = self._on_device(made).permute(0, 3, 1, 2)  # HWC in memory: a channels-last view
                labels = torch.from_numpy(np.concatenate([one.labels for one in made.planned]))
                labels = labels.to(self.device, non_blocking=True)
            begin = 0
            for planned, found in zip(made.planned, made.found, strict=True):
                self._bad.report(found)
                part = slice(begin, begin := begin + len(planned.sample_ids))
                ids = torch.from_numpy(planned.sample_ids)
                yield Batch(images[part], labels[part], ids, epoch, planned.span.end)
                if self._turn is not turn:
                    raise ValueError("this epoch has ended: the loader was closed, or began another epoch")

    def load(self) -> None:
        """Decode and store all images now instead of during the first epoch, so that it does not count in timings."""
        self._stop()
        self._bad.begin(0)
        everything = replace(self.feed, augment=None, rank=0, world_size=1, global_batch_size=0)
        assert self._source
        planned = read_ahead(everything.batches(0, 0, 1), everything, self._reader)
        for job, decoded in self._decoder.decoded(map(self._source.job, planned)):
            self._source.take(job, decoded)
        self._reader.end_epoch()

    def close(self) -> None:
        self._turn = object()
        self._stop()
        self._maker.shutdown()
        self._pool.shutdown()
        self._decoder.close()
        if self._finisher is not None:
            self._finisher.close()
        self._finisher = self.pixels = self._source = self._there = None
        self._reader.close()

    def _stop(self) -> None:
        """Cancel or finish all work that is under way."""
        for future in self._ahead:
            future.cancel()
        wait(self._ahead)
        self._ahead.clear()
        wait(self._read)
        self._jobs = iter(())

    @cached_property
    def _steps(self) -> tuple[Name, ...]:
        """The names of the arrays of a batch's augmentations beyond crops and flips."""
        span = next(iter(self.feed.spans(0)), None)
        params = self.feed.batch(0, span, self.feed.image_size).params if span else {}
        return tuple(name for name in params if isinstance(name, StepArray))

    @property
    def _on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def _make(self) -> Made | None:
        """The next batch, or as many small ones as a GPU makes at once. None at the end of the epoch."""
        assert self._source
        batches, found, regions = list[PlannedBatch](), list[list[BadSample]](), None
        wait(self._read)
        for job, decoded in islice(self._jobs, self._num_together):
            self._source.take(job, decoded)
            found.append([self._bad.met(job.planned, place, reason) for place, reason in sorted(job.bad.items())])
            bad = sorted([*job.left_out, *job.bad])
            batches.append(blank(job.planned, bad) if bad else job.planned)
            regions = None if self._there else self._source.regions(batches[-1], job, decoded)
        if not batches:
            self._reader.end_epoch()
            return None
        if not regions:
            return Made(batches, self._request(_joined(batches)), [], found)
        images, under_way = self._images(batches[0], regions)
        self._read = [] if self._source.keeps else under_way
        return Made(batches, images, under_way, found)

    @property
    def _num_together(self) -> int:
        """The number of batches made at once. Launching a kernel takes as long for one small image as for thousands."""
        if self._there is None:
            return 1
        return max(1, _AT_ONCE // (self.feed.batch_size * 3 * self.feed.image_size**2))

    def _images(self, planned: PlannedBatch, regions: Regions) -> tuple[torch.Tensor, list[Future[None]]]:
        """The `images` and `under_way` of `Made`."""
        if not self._on_gpu and not self._steps and self.dtype == torch.float32:
            return self._resized(planned, regions, torch.float32)
        levels, under_way = self._resized(planned, regions, torch.uint8)
        if self._on_gpu:
            return levels, under_way
        for future in under_way:
            future.result()
        return self._finished(levels, planned), []

    def _request(self, planned: PlannedBatch) -> Request:
        assert self.pixels
        regions = *self.pixels.regions(planned), planned.params["shape"]
        return Request(*regions, self._geometry(planned), self.feed.image_size, pin=_can_pin())

    def _geometry(self, planned: PlannedBatch) -> np.ndarray:
        from penstock.pipeline.resize import geometry

        config = self.feed.config
        return geometry(planned.params, interpolation=config.interpolation, antialias=config.antialias,
                        mean=config.mean, std=config.std)  # fmt: skip

    def _on_device(self, made: Made) -> torch.Tensor:
        """The images on the training device: (n, S, S, 3), normalised, of `dtype`."""
        if isinstance(made.images, Request):
            assert self._there
            self._there.put(np.concatenate([planned.sample_ids for planned in made.planned]))
            return self._there.batch(made.images, self.feed.image_size, self.dtype)
        if not self._on_gpu:
            return made.images
        if self._steps:
            return self._finished(made.images, made.planned[0])
        return self._normalised(made.images.to(self.device, non_blocking=True))

    def _normalised(self, levels: torch.Tensor) -> torch.Tensor:
        config = self.feed.config
        if self._levels is None:
            rows = [config.mean, config.std]
            self._levels = torch.tensor(rows, dtype=torch.float32, device=self.device)
        mean, std = self._levels
        return levels.float().sub_(mean).div_(std).to(self.dtype)

    def _finished(self, levels: torch.Tensor, planned: PlannedBatch) -> torch.Tensor:
        if self._finisher is None:
            gpu = (self.device.index or 0) if self._on_gpu else None
            self._finisher = Finisher(self.feed, self._steps, self.threads, gpu=gpu, half=self.dtype == torch.float16)
        return self._finisher.finished(levels, planned)

    def _resized(
        self, planned: PlannedBatch, regions: Regions, dtype: torch.dtype
    ) -> tuple[torch.Tensor, list[Future[None]]]:
        """Regions → (n, S, S, 3), uint8 or normalised float32; and the work that must end before they are complete."""
        from penstock.pipeline.resize_kernel import resize_images

        size, n = self.feed.image_size, len(planned.sample_ids)
        shape = n, size, size, 3
        if self._on_gpu:
            images = torch.empty(shape, dtype=dtype, pin_memory=_can_pin())
        else:
            images = self._buffers.empty(shape, dtype)
        out = images.numpy().reshape(-1)
        given = regions.addresses, regions.pitches, planned.params["shape"], self._geometry(planned), out, size

        def some(begin: int, end: int, held: object = regions.held) -> None:
            resize_images(*given, begin, end)  # type: ignore[no-untyped-call]

        num_parts = min(n, 4 * self.threads, 1 + n * size**2 // _LEAST)
        bounds = np.linspace(0, n, 1 + num_parts).astype(int).tolist()
        return images, [self._pool.submit(some, *ends) for ends in pairwise(bounds)]


def _joined(batches: list[PlannedBatch]) -> PlannedBatch:
    """Join batches into one."""
    first = batches[0]
    if len(batches) == 1:
        return first
    params = {name: np.concatenate([batch.params[name] for batch in batches]) for name in first.params}
    return replace(first, sample_ids=np.concatenate([batch.sample_ids for batch in batches]), params=params)


def _can_pin() -> bool:
    """Whether memory can be pinned. It cannot without a GPU, as in tests that run the GPU's code on a CPU."""
    return torch.cuda.is_available()
