"""Replace a quarantined sample in a batch by a gray image, and record why."""

import io
from dataclasses import dataclass, replace

import numpy as np

from penstock.pipeline.feed import PlannedBatch

NO_SAMPLE = -1  # sample id at the place of a quarantined sample
IGNORE_LABEL = -100  # its label: torch's `ignore_index`, so that it adds nothing to the loss


@dataclass(frozen=True)
class BadSample:
    """A quarantined sample: its row, when it was found, where it is stored (tar, offset, source name), and the
    decoder's message."""

    sample_id: int
    epoch: int
    position: int
    where: str
    reason: str


def blank(planned: PlannedBatch, places: list[int]) -> PlannedBatch:
    """Replace the samples at these places of a batch: no id, no label, and the whole gray image as the region."""
    sample_ids, labels = planned.sample_ids.copy(), planned.labels.copy()
    params = {name: values.copy() for name, values in planned.params.items()}
    sample_ids[places], labels[places] = NO_SAMPLE, IGNORE_LABEL
    params["anchor"][places], params["shape"][places] = 0, GRAY_SIDE
    if "roi_end" in params:
        params["roi_start"][places], params["roi_end"][places] = 0, GRAY_SIDE
    return replace(planned, sample_ids=sample_ids, labels=labels, params=params)


GRAY_SIDE = 16  # pixels


def _gray_jpeg() -> np.ndarray:
    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (GRAY_SIDE, GRAY_SIDE), (124, 116, 104)).save(stream, "JPEG")
    return np.frombuffer(stream.getvalue(), dtype=np.uint8)


GRAY = _gray_jpeg()
