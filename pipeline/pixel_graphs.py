"""The parts of DALI's graph that `PixelLoader` runs: the decoder, for samples that are not pixels yet, and the steps
after the resize."""

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import numpy as np
import torch

from penstock.pipeline.augment import AugmentParams
from penstock.pipeline.augment.params import Name
from penstock.pipeline.dali import Inputs, Pipeline
from penstock.pipeline.feed import Feed, PlannedBatch
from penstock.pipeline.graph import decode, encoded, inputs, new_pipeline, normalise
from penstock.pipeline.pixel_sources import Decoded, Job
from penstock.pipeline.probe import find_bad, raised_by_dali

_NONE = np.zeros(0, np.int64)


class PixelDecoder:
    """Decodes regions of images like the graph, by DALI's CPU decoder. It decodes the next batches while one is used.

    Args:
        feed: has the decoder's settings and the largest batch. threads: DALI's.
    """

    def __init__(self, feed: Feed, threads: int) -> None:
        self._config, self._batch_size, self._threads = replace(feed.config, prefetch=2), feed.batch_size, threads
        self._pipe: Pipeline = None
        self._jobs: Iterator[Job] = iter(())
        self._waiting: deque[Job] = deque()
        self._inputs: deque[Inputs] = deque()  # of the jobs given to DALI, which reads them uncopied
        self._num_given = 0  # how many of the waiting jobs were given to DALI, if they have something to decode

    def decoded(self, jobs: Iterator[Job]) -> Iterator[tuple[Job, Decoded]]:
        """Yield each job with the decoded regions of its encoded samples. A sample that DALI cannot decode is added to
        the job's bad ones. Raises ValueError if DALI fails for another reason."""
        self._begin()
        self._jobs = jobs
        try:
            while self._waiting or self._wait_for_one():
                job = self._waiting[0]
                decoded = self._run(job)
                self._waiting.popleft()
                self._num_given = max(0, self._num_given - 1)
                yield job, decoded
                del decoded
        finally:
            if self._waiting:  # abandoned before the end
                self._pipe = None
            elif self._pipe is not None:
                self._pipe.reset()
            self._begin()

    def close(self) -> None:
        """Release DALI's pipeline now. It refers to this object, and would live until the next garbage collection."""
        self._pipe = None

    def _begin(self) -> None:
        self._jobs = iter(())
        self._waiting.clear()
        self._inputs.clear()
        self._num_given = 0

    def _wait_for_one(self) -> bool:
        self._waiting.extend(islice(self._jobs, 1))
        return bool(self._waiting)

    def _run(self, job: Job) -> Decoded:
        while job.encoded:
            if self._pipe is None:
                self._pipe = self._build()
            try:
                (output,) = self._pipe.run()
            except RuntimeError as error:
                if not raised_by_dali(error):
                    raise
                self._take_out_bad(error)
                continue
            self._inputs.popleft()
            return Decoded(np.array([*job.encoded]), np.array([region.data_ptr() for region in output]), output)
        return Decoded(_NONE, _NONE, None)

    def _take_out_bad(self, error: RuntimeError) -> None:
        """Find the samples at which DALI stopped, and start again with the waiting jobs."""
        self._pipe, given, self._num_given = None, self._num_given, 0
        self._inputs.clear()
        for job in list(self._waiting)[:given]:
            places = [*job.encoded]
            params: AugmentParams = {"anchor": job.anchors[places], "shape": job.shapes[places]}
            bad = find_bad([*job.encoded.values()], params, self._config, None)
            for i, reason in bad.items():
                job.bad[places[i]] = reason
                del job.encoded[places[i]]
            if bad:
                return
        raise ValueError(f"DALI failed, although every sample decodes alone: {error}") from error

    def _next(self) -> Inputs:
        """DALI's source: the encoded samples of the next job that has any."""
        while True:
            if self._num_given == len(self._waiting):
                self._waiting.extend(islice(self._jobs, 1))
            if self._num_given == len(self._waiting):
                raise StopIteration
            job = self._waiting[self._num_given]
            self._num_given += 1
            if job.encoded:
                places = [*job.encoded]
                self._inputs.append((encoded([*job.encoded.values()]), job.anchors[places], job.shapes[places]))
                return self._inputs[-1]

    def _build(self) -> Pipeline:
        pipe = new_pipeline(self._config, batch_size=self._batch_size, threads=self._threads, gpu=None)
        with pipe:
            jpegs, region = inputs(self._next, ("anchor", "shape"))
            pipe.set_outputs(decode(jpegs, region, self._config, on_gpu=False))
        pipe.build()
        return pipe


class Finisher:
    """Augments and normalises resized images by DALI's nodes.

    Args:
        names: of the steps' arrays, in the order of a batch. gpu: device index, or None for the CPU.
        half: images in float16.
    """

    def __init__(self, feed: Feed, names: tuple[Name, ...], threads: int, *, gpu: int | None, half: bool) -> None:
        config = replace(feed.config, prefetch=1)
        self._names, self._given, self._gpu = names, Inputs(), gpu
        self._pipe = new_pipeline(config, batch_size=feed.batch_size, threads=threads, gpu=gpu)
        with self._pipe:
            images, params = inputs(lambda: self._given, names, copy=gpu is not None)
            images = images if gpu is None else images.gpu()
            self._pipe.set_outputs(normalise(images, params, config, half=half))
        self._pipe.build()

    def finished(self, images: torch.Tensor, planned: PlannedBatch) -> torch.Tensor:
        """(n, S, S, 3) uint8 on the CPU → (n, S, S, 3), normalised; on a GPU in the order of its current stream."""
        self._given = images.numpy(), *(planned.params[name] for name in self._names)
        (output,) = self._pipe.run() if self._gpu is None else self._pipe.run(torch.cuda.current_stream(self._gpu))
        return torch.from_dlpack(output.as_tensor())

    def close(self) -> None:
        """Release DALI's pipeline, like `PixelDecoder.close`."""
        self._pipe = None
