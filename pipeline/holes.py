"""What stands for a sample that was taken out: a gray image at its place, and the record of why."""

import io
from dataclasses import dataclass, replace

import numpy as np

from penstock.pipeline.feed import PlannedBatch

NO_SAMPLE = -1  # sample id of a place whose sample was taken out
IGNORE_LABEL = -100  # its label: torch's `ignore_index`, so that it adds nothing to the loss


@dataclass(frozen=True)
class BadSample:
    """A sample that was taken out: its row, when it was met, where it lies (tar, offset, source name), and what the
    decoder said."""

    sample_id: int
    epoch: int
    position: int
    where: str
    reason: str


def blank(planned: PlannedBatch, places: list[int]) -> PlannedBatch:
    """The batch with the samples at these places taken out: no id, no label, the whole gray image as the region."""
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
