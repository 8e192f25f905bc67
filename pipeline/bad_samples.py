"""Quarantine bad samples of a loader, and stop the run if there are too many."""

from collections.abc import Callable, Mapping

import numpy as np

from penstock.pipeline.feed import Feed, PlannedBatch
from penstock.pipeline.holes import BadSample
from penstock.shards.program import SHARD_TOOLS


class BadSamples:
    """The bad samples of a loader: those that it was given, and those that it finds.

    Args:
        feed: the split and its limit.
        quarantine: rows of samples known to be bad. New ones are added, and skipped from the next `begin` on.
        on_bad: called with each newly quarantined sample.
    """

    def __init__(self, feed: Feed, quarantine: set[int] | None, on_bad: Callable[[BadSample], None]) -> None:
        self.quarantine = quarantine if quarantine is not None else set()
        self._feed, self._on_bad = feed, on_bad
        self._epoch = 0
        self._out: frozenset[int] = frozenset()  # the quarantine at the start of the current epoch

    def begin(self, epoch: int) -> None:
        """Begin an epoch. All samples that are known to be bad by now are skipped in the whole epoch."""
        self._epoch, self._out = epoch, frozenset(self.quarantine)

    def places(self, planned: PlannedBatch) -> list[int]:
        """The places of a batch with samples that are skipped."""
        if not self._out:
            return []
        return [place for place, sample_id in enumerate(planned.sample_ids.tolist()) if sample_id in self._out]

    def met(self, planned: PlannedBatch, place: int, reason: str) -> BadSample:
        """The record of a bad sample found at a place of a batch."""
        sample_id = int(planned.sample_ids[place])
        where = self._feed.split.where(sample_id)
        return BadSample(sample_id, self._epoch, planned.span.start + place, where, reason)

    def report(self, found: list[BadSample]) -> None:
        """Quarantine samples. Raises ValueError if the run cannot continue without them."""
        if not found:
            return
        if not self._feed.augment:
            names = "; ".join(f"{bad.where}: {bad.reason}" for bad in found)
            raise ValueError(f"validation needs every image, and this one cannot be decoded: {names}") from None
        for bad in found:
            self.quarantine.add(bad.sample_id)
            self._on_bad(bad)
        limit = max(1, int(self._feed.config.max_bad_fraction * len(self._feed.split)))
        if len(self.quarantine) > limit:
            root, fraction = self._feed.split.root, self._feed.config.max_bad_fraction
            raise ValueError(
                f"{root}: {len(self.quarantine)} of {len(self._feed.split)} samples cannot be decoded, more than "
                f"data.max_bad_fraction = {fraction} allows; the last is {found[-1].where}; "
                f"find all with: {SHARD_TOOLS} verify --decode {root}"
            )


def bad_headers(
    feed: Feed, planned: PlannedBatch, places: np.ndarray, views: Mapping[int, np.ndarray]
) -> dict[int, str]:
    """The places of a batch with encoded bytes that DALI must not get, and why. `places`: (m,) int64, those to check.
    `views`: the bytes, by place."""
    from penstock.pipeline.probe import bad_header

    rows = feed.split.rows(planned.sample_ids[places])
    reasons = {
        place: bad_header(views[place], height, width)
        for place, height, width in zip(places.tolist(), rows["height"].tolist(), rows["width"].tolist(), strict=True)
    }
    return {place: reason for place, reason in reasons.items() if reason}
