"""The parts of DALI's graph that `PixelLoader` runs: the decoder before it has pixels, and what follows the resize."""

from dataclasses import replace

import numpy as np
import torch

from pipeline.augment.params import Name
from pipeline.dali import Inputs, Pipeline
from pipeline.feed import Feed, PlannedBatch
from pipeline.graph import decode, encoded, inputs, new_pipeline, normalise
from pipeline.probe import find_bad, raised_by_dali


class PixelDecoder:
    """Whole images, by DALI's CPU decoder, as the graph decodes regions of them.

    Args:
        feed: for how it decodes, and the largest batch. threads: of DALI.
    """

    def __init__(self, feed: Feed, threads: int) -> None:
        self._config, self._batch_size, self._threads = replace(feed.config, prefetch=1), feed.batch_size, threads
        self._pipe: Pipeline = None
        self._given: Inputs = ()

    def decoded(self, views: list[np.ndarray], sizes: np.ndarray) -> list[np.ndarray | str]:
        """Encoded images, (size,) uint8 each, of `sizes` (n, 2) int32, height and width → of each (H, W, 3) uint8 or
        what is wrong with it. An array is valid until the next call. Raises ValueError where DALI fails otherwise."""
        if not views:
            return []
        if self._pipe is None:
            self._pipe = self._build()
        anchors = np.zeros_like(sizes)
        self._given = encoded(views), anchors, sizes
        try:
            (output,) = self._pipe.run()
        except RuntimeError as error:
            if not raised_by_dali(error):
                raise
            self._pipe = None
            bad = find_bad(views, {"anchor": anchors, "shape": sizes}, self._config, None)
            if not bad:
                raise ValueError(f"DALI failed, though every sample decodes alone: {error}") from error
            good = [place for place in range(len(views)) if place not in bad]
            images = iter(self.decoded([views[place] for place in good], sizes[good]))
            return [bad[place] if place in bad else next(images) for place in range(len(views))]
        return [np.asarray(output[place]) for place in range(len(views))]

    def close(self) -> None:
        """Let go of DALI's pipeline now: it refers to this object, and would live until the next collection."""
        self._pipe = None

    def _build(self) -> Pipeline:
        pipe = new_pipeline(self._config, batch_size=self._batch_size, threads=self._threads, gpu=None)
        with pipe:
            jpegs, region = inputs(lambda: self._given, ("anchor", "shape"))
            pipe.set_outputs(decode(jpegs, region, self._config, on_gpu=False))
        pipe.build()
        return pipe


class Finisher:
    """Resized images → augmented, normalised, by DALI's nodes.

    Args:
        names: of the steps' arrays, in the order of a batch's. gpu: where it is done, or None for the CPU.
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
        """(n, S, S, 3) uint8 on the CPU → (n, S, S, 3), normalised; on a GPU in order of its current stream."""
        self._given = images.numpy(), *(planned.params[name] for name in self._names)
        (output,) = self._pipe.run() if self._gpu is None else self._pipe.run(torch.cuda.current_stream(self._gpu))
        return torch.from_dlpack(output.as_tensor())

    def close(self) -> None:
        """As `PixelDecoder.close`."""
        self._pipe = None
