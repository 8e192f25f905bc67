"""The sources of a batch's pixels: a store, or the shards and DALI's decoder.

`Stored` is for `data.cache = "pixels"`: it reads each whole image once and keeps it. `Passing` keeps nothing: it uses
the planned regions of members that are pixels (`shards/ppm.py`) directly in the mapped shard, and decodes those of all
other members.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from penstock.pipeline.bad_samples import BadSamples, bad_headers
from penstock.pipeline.config import DataConfig
from penstock.pipeline.feed import Feed, PlannedBatch
from penstock.pipeline.holes import GRAY, GRAY_SIDE
from penstock.pipeline.pixels import PixelStore
from penstock.pipeline.probe import Decoder
from penstock.pipeline.reader import ShardReader
from penstock.pipeline.window_reader import WindowReader
from penstock.shards.ppm import header_sizes, is_ppm


@dataclass
class Job:
    """A batch, and the data that has to be read for it.

    bad: place → reason, of newly found bad samples. left_out: the places of known bad samples.
    encoded: place → the bytes for DALI to decode, (size,) uint8. anchors, shapes: (n, 2) int32, the regions to decode.
    stored: place → a whole image that is stored as pixels: its address, and the number of values in a row.
    views: the arrays that hold this memory.
    """

    planned: PlannedBatch
    left_out: list[int]
    anchors: np.ndarray
    shapes: np.ndarray
    bad: dict[int, str] = field(default_factory=dict)
    encoded: dict[int, np.ndarray] = field(default_factory=dict)
    stored: dict[int, tuple[int, int]] = field(default_factory=dict)
    views: list[np.ndarray] = field(default_factory=list)


class Decoded(NamedTuple):
    """The regions of a job that DALI has decoded. places, addresses: (m,) int64, of regions (H, W, 3) uint8. They are
    valid as long as `held` lives, and until the next job is requested."""

    places: np.ndarray
    addresses: np.ndarray
    held: object


class Regions(NamedTuple):
    """The planned regions of a batch in memory. addresses: (n,) int64, of the first value. pitches: (n,) int64, values
    from one row to the next. The memory lives as long as `held`."""

    addresses: np.ndarray
    pitches: np.ndarray
    held: object


class Members:
    """Reads the bytes of samples, and finds out which are pixels. Each good header is checked only once."""

    def __init__(self, feed: Feed, reader: ShardReader | WindowReader) -> None:
        self._feed, self._reader = feed, reader
        self._known, self._are_pixels = (np.zeros(len(feed.split), bool) for _ in range(2))

    def read(self, job: Job, places: np.ndarray) -> None:
        """Fill in the data that a job needs at these places, (m,) int64."""
        ids = job.planned.sample_ids[places]
        rows = self._feed.split.rows(ids)
        views = dict(zip(places.tolist(), self._reader.views(ids), strict=True))
        self._look_at(job, places, rows, views)
        for place, row, stored in zip(places.tolist(), rows, self._are_pixels[ids].tolist(), strict=True):
            if stored:
                view, pitch = views[place], 3 * int(row["width"])
                address = view.__array_interface__["data"][0] + len(view) - pitch * int(row["height"])
                job.stored[place] = address, pitch
                job.views.append(view)
            elif place not in job.bad:
                job.encoded[place] = views[place]

    def _look_at(self, job: Job, places: np.ndarray, rows: np.ndarray, views: Mapping[int, np.ndarray]) -> None:
        ids = job.planned.sample_ids[places]
        new = ~self._known[ids]
        if not new.any():  # from the second epoch on
            return
        for i in np.flatnonzero(new & (header_sizes(rows) > 0)).tolist():
            row = rows[i]
            self._are_pixels[ids[i]] = is_ppm(views[int(places[i])], int(row["height"]), int(row["width"]))
        encoded = places[new & ~self._are_pixels[ids]]
        job.bad |= bad_headers(self._feed, job.planned, encoded, views)
        self._known[ids] = True
        self._known[job.planned.sample_ids[[*job.bad]]] = False


class Stored:
    """Pixels from a store, which is filled as images are read."""

    keeps = True  # decoded images are copied, so DALI may overwrite them

    def __init__(self, feed: Feed, members: Members, bad: BadSamples, store: PixelStore) -> None:
        self._feed, self._members, self._bad, self._store = feed, members, bad, store
        if not store.gray.any():
            store.gray[:] = gray(feed.config)

    def job(self, planned: PlannedBatch) -> Job:
        """The job for a batch: its images that are not stored yet."""
        missing, left_out = np.flatnonzero(self._store.missing(planned.sample_ids)), self._bad.places(planned)
        if not len(missing):  # from the second epoch on
            return Job(planned, left_out, missing, missing)
        rows = self._feed.split.rows(planned.sample_ids)
        shapes = np.stack([rows["height"], rows["width"]], 1).astype(np.int32)
        job = Job(planned, left_out, np.zeros_like(shapes), shapes)
        self._members.read(job, np.setdiff1d(missing, left_out))
        return job

    def take(self, job: Job, decoded: Decoded) -> None:
        """Store the images that a job has read."""
        if len(decoded.places):
            self._store.put(job.planned.sample_ids[decoded.places], decoded.addresses)
        if job.stored:
            addresses = np.array([address for address, _ in job.stored.values()])
            self._store.put(job.planned.sample_ids[[*job.stored]], addresses)

    def regions(self, planned: PlannedBatch, job: Job, decoded: Decoded) -> Regions:
        """The regions of a batch after quarantine."""
        starts, pitches = self._store.regions(planned)
        return Regions(self._store.pixels.ctypes.data + starts, pitches, self._store)


class Passing:
    """Pixels directly from the shards, or decoded by DALI."""

    keeps = False

    def __init__(self, feed: Feed, members: Members, bad: BadSamples) -> None:
        self._members, self._bad, self._gray = members, bad, gray(feed.config)

    def job(self, planned: PlannedBatch) -> Job:
        """The job for a batch: all of its images."""
        left_out = self._bad.places(planned)
        job = Job(planned, left_out, planned.params["anchor"], planned.params["shape"])
        self._members.read(job, np.setdiff1d(np.arange(len(planned.sample_ids)), left_out))
        return job

    def take(self, job: Job, decoded: Decoded) -> None:
        """Nothing is kept."""

    def regions(self, planned: PlannedBatch, job: Job, decoded: Decoded) -> Regions:
        """The regions of a batch after quarantine."""
        n, anchors = len(planned.sample_ids), planned.params["anchor"].astype(np.int64)
        addresses, pitches = np.full(n, self._gray.ctypes.data), np.full(n, self._gray.strides[0])
        addresses[decoded.places], pitches[decoded.places] = decoded.addresses, 3 * job.shapes[decoded.places, 1]
        if job.stored:
            places = [*job.stored]
            starts, rows = np.array([*job.stored.values()]).T
            addresses[places] = starts + anchors[places, 0] * rows + 3 * anchors[places, 1]
            pitches[places] = rows
        return Regions(addresses, pitches, (decoded.held, job.views, self._gray))


def gray(config: DataConfig) -> np.ndarray:
    """The gray image that replaces a quarantined sample: (GRAY_SIDE, GRAY_SIDE, 3) uint8."""
    return Decoder(config).pixels(GRAY, GRAY_SIDE, GRAY_SIDE)


Source = Stored | Passing


def source_of(feed: Feed, reader: ShardReader | WindowReader, bad: BadSamples, store: PixelStore | None) -> Source:
    """The source of pixels for a loader with a store, or without."""
    members = Members(feed, reader)
    return Stored(feed, members, bad, store) if store else Passing(feed, members, bad)
