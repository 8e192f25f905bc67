"""`DaliLoader`: feed + reader + graph → batches on the training device.

A sample that cannot be decoded is reported in one line. DALI stops at it and its pipeline is lost. So the loader tries
each sample of that batch (`probe.py`), quarantines the bad ones, builds a new pipeline and continues at the same
position.

A quarantined sample keeps its place in the batch, with a gray image, the label IGNORE_LABEL and the id NO_SAMPLE. Thus
no other sample moves, and ranks need not communicate during an epoch. From the next epoch on the sample is skipped
everywhere (`quarantine`). Ranks agree on the quarantine between epochs, so an epoch is the same on any number of ranks.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch

from penstock.pipeline import ranges
from penstock.pipeline.augment import AugmentParams
from penstock.pipeline.augment.params import Name
from penstock.pipeline.bad_samples import BadSamples, bad_headers
from penstock.pipeline.batch import Batch
from penstock.pipeline.dali import Inputs, Pipeline
from penstock.pipeline.feed import Feed, PlannedBatch
from penstock.pipeline.graph import build_graph, decodes_on_gpu, encoded, graph_inputs
from penstock.pipeline.gray import with_unit_factor
from penstock.pipeline.holes import GRAY, NO_SAMPLE, BadSample, blank
from penstock.pipeline.probe import find_bad, raised_by_dali
from penstock.pipeline.read_ahead import read_ahead
from penstock.pipeline.reader import open_reader


class DaliLoader:
    """One rank's batches of a split. See `pipeline.batch.Loader` for the contract.

    Args:
        feed: the split, the settings and this rank's share.
        device: where images and labels go.
        threads: decode threads.
        dtype: of the images, float32 or float16; on the CPU float16 costs more than it saves.
        quarantine: rows of samples known to be bad. New ones are added, and skipped from the next `iter_epoch` on.
        on_bad: called with each newly quarantined sample.

    Raises:
        ValueError: on construction, if a shard is missing or has another size; while iterating, if a validation image
            or too many training images cannot be decoded.
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
        self._holes: set[int] = set()  # positions of bad samples found in this epoch
        self._at = (0, 0)  # epoch, and position after the last batch that was yielded
        self._pipe: Pipeline = None
        self._planned: Iterator[PlannedBatch] = iter(())
        self._in_flight: deque[tuple[PlannedBatch, Inputs, list[BadSample]]] = deque()
        self._parsed = np.zeros(len(feed.split), bool)  # samples with good headers; only touched pages use memory
        self._scaled = np.zeros(len(feed.split), bool)  # samples a GPU's decoder would scramble: `pipeline/gray.py`
        self._used: deque[tuple[torch.cuda.Event, Inputs]] = (
            deque()
        )  # uncopied inputs that the GPU may still be reading
        self._turn = object()  # identifies the current epoch: a loader runs only one at a time

    def __len__(self) -> int:
        return len(self.feed)

    def iter_epoch(self, epoch: int, position: int = 0) -> Iterator[Batch]:
        self._at = (epoch, position)
        self._bad.begin(epoch)
        self._holes.clear()
        turn = self._turn = object()
        if self._in_flight:
            self._drop_pipe()  # the last epoch was abandoned: its batches must not come out here
        while True:
            done = self._at[1]  # after a bad sample it may be inside a global batch; the spans do not change
            self._reader.follow(self.feed.windows(epoch, position, done))
            self._planned = read_ahead(
                self.feed.batches(epoch, position, self.feed.image_size, done), self.feed, self._reader
            )
            try:
                yield from self._run(epoch, turn)
                return
            except RuntimeError as error:
                if not raised_by_dali(error):
                    raise
                self._take_out_bad(error)
                self._drop_pipe()

    def close(self) -> None:
        self._turn = object()
        self._drop_pipe()
        for made, _ in self._used:
            made.synchronize()
        self._used.clear()
        self._reader.close()

    def _run(self, epoch: int, turn: object) -> Iterator[Batch]:
        first = next(self._planned, None)
        if first is None:
            return
        self._planned = _chain(first, self._planned)
        if self._pipe is None:
            self._pipe = self._build_pipe(tuple(self._arrays(first)))
        while True:
            # On a stream the batch is handed over without waiting for the GPU, and its memory is freed in stream order.
            stream = torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None
            try:
                (output,) = self._pipe.run(stream)
            except StopIteration:
                self._pipe.reset()
                return
            planned, inputs, found = self._in_flight[0]
            if stream:
                self._hold(inputs, stream.record_event())
            self._bad.report(found)
            with ranges.span("copy"):
                images = torch.from_dlpack(output.as_tensor()).permute(0, 3, 1, 2)  # HWC in memory: channels-last
                labels = torch.from_numpy(planned.labels).to(self.device, non_blocking=True)
            self._at = (epoch, planned.span.end)
            yield Batch(images, labels, torch.from_numpy(planned.sample_ids), epoch, planned.span.end)
            if self._turn is not turn:
                raise ValueError("this epoch has ended: the loader was closed, or began another epoch")
            self._in_flight.popleft()

    def _hold(self, inputs: Inputs, made: torch.cuda.Event) -> None:
        """Keep inputs that were not copied until the GPU has made their batch. The CPU may be many steps ahead."""
        self._used.append((made, inputs))
        while self._used and self._used[0][0].query():
            self._used.popleft()

    def _build_pipe(self, names: tuple[Name, ...]) -> Pipeline:
        config = self.feed.config
        if config.hw_decoder_load and torch.are_deterministic_algorithms_enabled():
            # Between 0 and 1 chance decides which of the GPU's decoders gets an image, and they round differently.
            config = replace(config, hw_decoder_load=1.0)
        return build_graph(
            self._next_inputs,
            names,
            config,
            image_size=self.feed.image_size,
            batch_size=self.feed.batch_size,
            threads=self.threads,
            gpu=self._gpu,
            half=self.dtype == torch.float16,
        )

    @property
    def _gpu(self) -> int | None:
        return (self.device.index or 0) if self.device.type == "cuda" else None

    @property
    def _decoding_gpu(self) -> int | None:
        """The GPU's index if it decodes, otherwise None."""
        return self._gpu if decodes_on_gpu(self.feed.config, self._gpu is not None) else None

    def _next_inputs(self) -> Inputs:
        """DALI's source. It is called when the graph has room for one more batch."""
        planned = next(self._planned, None)
        if planned is None:
            self._reader.end_epoch()  # now, since a caller that counts steps never requests the batch after the last
            raise StopIteration
        views = self._reader.views(planned.sample_ids)
        known = self._known_bad(planned)
        found = self._bad_headers(planned, views, known)
        for place in np.flatnonzero(self._scaled[planned.sample_ids]).tolist():
            views[place] = with_unit_factor(views[place])  # a copy that lives as long as the result of `encoded`
        bad = known + [sample.position - planned.span.start for sample in found]
        if bad:
            planned = blank(planned, bad)
            for place in bad:
                views[place] = GRAY
        inputs = (encoded(views), *self._arrays(planned).values())
        self._in_flight.append((planned, inputs, found))
        return inputs

    def _known_bad(self, planned: PlannedBatch) -> list[int]:
        """The places of a batch with samples that are skipped."""
        if not self._holes:
            return self._bad.places(planned)
        holes = {place - planned.span.start for place in self._holes} & set(range(len(planned.sample_ids)))
        return sorted(holes.union(self._bad.places(planned)))

    def _bad_headers(self, planned: PlannedBatch, views: list[np.ndarray], known: list[int]) -> list[BadSample]:
        """The samples of a batch with headers that DALI must not get, except those at `known` places. Each good header
        is checked once in a run."""
        places = np.flatnonzero(~self._parsed[planned.sample_ids])
        if not len(places):  # from the second epoch on
            return []
        places = np.setdiff1d(places, known)
        reasons = bad_headers(self.feed, planned, places, dict(enumerate(views)))
        good = np.setdiff1d(places, [*reasons])
        self._parsed[planned.sample_ids[good]] = True
        if self._decoding_gpu is not None:
            for place in good.tolist():
                self._scaled[planned.sample_ids[place]] |= with_unit_factor(views[place]) is not views[place]
        return [self._bad.met(planned, place, reason) for place, reason in reasons.items()]

    def _arrays(self, planned: PlannedBatch) -> AugmentParams:
        return graph_inputs(planned.params, self.feed.config, on_gpu=self._gpu is not None)

    def _take_out_bad(self, error: RuntimeError) -> None:
        """Find the samples in flight that cannot be decoded, and quarantine them."""
        found = []
        for planned, _, _ in self._in_flight:
            live = np.flatnonzero(planned.sample_ids != NO_SAMPLE)
            params = {name: values[live] for name, values in planned.params.items()}
            views = self._reader.views(planned.sample_ids[live])
            for i, reason in find_bad(views, params, self.feed.config, self._decoding_gpu).items():
                found.append(self._bad.met(planned, int(live[i]), reason))
            if found:
                break
        if not found:
            when = "although every sample decodes alone" if self._in_flight else "before it got a sample"
            raise ValueError(f"DALI failed, {when}: {_one_line(error)}") from error
        self._bad.report(found)
        self._holes |= {bad.position for bad in found}

    def _drop_pipe(self) -> None:
        self._pipe = None
        self._in_flight.clear()


def _one_line(error: RuntimeError) -> str:
    """The relevant line of DALI's message, which is a page with stack traces."""
    lines = [line.strip() for line in str(error).splitlines()] or ["unknown error"]
    return next((line for line in lines if "rror" in line), lines[0])[:300]


def _chain(first: PlannedBatch, rest: Iterator[PlannedBatch]) -> Iterator[PlannedBatch]:
    yield first
    yield from rest
