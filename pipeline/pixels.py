"""`PixelStore`: the decoded images of a split in memory, a single copy for all ranks of a machine."""

import hashlib
from weakref import WeakValueDictionary

import numpy as np

from penstock.pipeline.feed import Feed, PlannedBatch
from penstock.pipeline.holes import GRAY_SIDE, NO_SAMPLE
from penstock.pipeline.memory import available_bytes
from penstock.pipeline.shared_memory import shared_memory
from penstock.shards.format import Split

_GRAY_BYTES = 3 * GRAY_SIDE**2
_SHARE = 0.9  # of the free memory, if `data.cache_bytes` is 0


class PixelStore:
    """The images of a feed's split as (H, W, 3) uint8, one after the other, filled as they are decoded.

    The stored pixels depend only on the bytes of an image, so any rank may decode it, or several. Rows of the table
    with the same bytes share an image.

    pixels: (768 + num_bytes,) uint8, `gray` first.
    gray: (GRAY_SIDE, GRAY_SIDE, 3), the replacement of a quarantined sample; zeros until it is set.
    there: (m,) uint8, 1 for each image that is stored.

    Raises:
        ValueError: the images do not fit into `data.cache_bytes`, or into nine tenths of the free memory.
    """

    def __init__(self, feed: Feed, name: str) -> None:
        samples, chosen = feed.split.samples, feed.chosen
        place = samples["shard"].astype(np.int64) << 44 | samples["offset"].astype(np.int64)
        first, slot = np.unique(place, return_index=True, return_inverse=True)[1:]
        sizes = 3 * samples["height"][first].astype(np.int64) * samples["width"][first]
        if chosen is not None:
            used = np.zeros(len(first), bool)
            used[slot[chosen]] = True
            sizes[~used] = 0
        ends = np.cumsum(sizes)
        self._slot = slot.astype(np.uint32).reshape(-1)
        self._starts, self._pitches = ends - sizes, 3 * samples["width"][first].astype(np.int64)
        self.num_images, self.num_bytes = int((sizes > 0).sum()), int(ends[-1])
        self._check_room(feed)
        header = -(-(len(first) + _GRAY_BYTES) // 64) * 64
        ranks = feed.local_world_size or feed.world_size
        memory = np.frombuffer(shared_memory(name, header + self.num_bytes, ranks > 1), np.uint8)
        self.there = memory[: len(first)]
        self.pixels = memory[header - _GRAY_BYTES :]
        self._starts, self._ends = self._starts + _GRAY_BYTES, ends + _GRAY_BYTES
        self.gray = self.pixels[:_GRAY_BYTES].reshape(GRAY_SIDE, GRAY_SIDE, 3)
        _open[name] = self
        self.name = name

    @classmethod
    def of(cls, feed: Feed) -> "PixelStore":
        """The store of a feed's images: an existing one that another loader of this process uses, or a new one."""
        name = _name(feed.split, feed.at_most if feed.chosen is not None else 0)
        return _open.get(name) or cls(feed, name)

    def _check_room(self, feed: Feed) -> None:
        bound = feed.config.cache_bytes
        room = (bound or int(_SHARE * available_bytes())) - sum(store.num_bytes for store in _open.values())
        if self.num_bytes <= room:
            return
        of = f"data.cache_bytes = {bound} leaves" if bound else "the free memory leaves"
        raise ValueError(
            f'{feed.split.root}: data.cache = "pixels" needs {self.num_bytes} bytes ({self.num_bytes / 1e9:.1f} GB) '
            f"for the {self.num_images:,} images of split {feed.split.name!r}, and {of} {max(0, room) / 1e9:.1f} GB; "
            'pack smaller images (--max-side, --short-side), or set data.cache = "none"'
        )

    @property
    def num_missing(self) -> int:
        """The number of images that are not stored yet, including bad ones."""
        return self.num_images - int(np.count_nonzero(self.there))

    @property
    def share(self) -> float:
        """The stored share of the images. Bad images are never stored, others perhaps in a later epoch."""
        return 1 - self.num_missing / max(1, self.num_images)

    def missing(self, sample_ids: np.ndarray) -> np.ndarray:
        """Whether each of these samples, (n,) ids, is not stored yet: (n,) bool; always False for `NO_SAMPLE`."""
        missing: np.ndarray = (self.there[self._slot[sample_ids]] == 0) & (sample_ids != NO_SAMPLE)
        return missing

    def put(self, sample_ids: np.ndarray, addresses: np.ndarray) -> None:
        """Store samples, (m,) ids, from their (H, W, 3) uint8 pixels at these addresses, (m,) int64."""
        from penstock.pipeline.resize_kernel import copy_values

        slots = self._slot[sample_ids]
        copy_values(addresses, self._starts[slots], self._ends[slots], self.pixels)  # type: ignore[no-untyped-call]
        self.there[slots] = 1  # only now: another rank may read them

    def slots(self, sample_ids: np.ndarray) -> np.ndarray:
        """(n,) ids → the places of their images in `there`, (n,); not for `NO_SAMPLE`."""
        slots: np.ndarray = self._slot[sample_ids]
        return slots

    def span(self, slot: int) -> slice:
        """The place of an image in `pixels`."""
        return slice(int(self._starts[slot]), int(self._ends[slot]))

    def regions(self, planned: PlannedBatch) -> tuple[np.ndarray, np.ndarray]:
        """The start in `pixels` of the region of each sample of a batch, and the number of values from row to row."""
        starts, pitches = self.where(planned.sample_ids)
        anchors = planned.params["anchor"].astype(np.int64)
        return starts + anchors[:, 0] * pitches + 3 * anchors[:, 1], pitches

    def where(self, sample_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n,) ids → the start of each image in `pixels`, and the number of values from row to row: (n,) int64 both.
        For `NO_SAMPLE` they are those of `gray`."""
        slot, none = self._slot[sample_ids], sample_ids == NO_SAMPLE
        return np.where(none, 0, self._starts[slot]), np.where(none, 3 * GRAY_SIDE, self._pitches[slot])


_open: WeakValueDictionary[str, PixelStore] = WeakValueDictionary()


def _name(split: Split, at_most: int) -> str:
    """A name that identifies the images of one split."""
    text = " ".join([str(split.root), split.name, str(len(split)), str(at_most), *(one.sha256 for one in split.shards)])
    return hashlib.sha256(text.encode()).hexdigest()[:24]
