"""What a run logs: the fields of the lines of `metrics.jsonl`, with their units. They are dicts, as JSON has them.

Where a line belongs is in three fields: `epoch` (from 0), `position` (samples of it that are done, over all ranks) and
`step` (optimizer steps of the whole run; in a step's own line its number, from 0).
"""

from typing import Literal, NotRequired, TypedDict

EndedBy = Literal["recipe", "max_steps", "max_minutes"]


class StepLine(TypedDict):
    """A training step; rates are those of its interval.

    loss: the mean over ranks; NaN and infinities stay. grad_norm: the gradient's 2-norm, where it is clipped.
    images_per_s: of all ranks. data_wait: the fraction of the interval, 0 … 1, that rank 0 waited for data.
    gpu_memory_gb: the most that torch had allocated on its GPU so far, in 10^9 bytes. samples: `sample_digest` of all
    ranks' samples, in hexadecimal: two steps that saw the same samples, on any number of ranks, have the same one.
    """

    step: int
    epoch: int
    position: int
    loss: float
    lr: float
    grad_norm: NotRequired[float]
    images_per_s: float
    data_wait: float
    gpu_memory_gb: NotRequired[float]
    samples: str


class EpochLine(TypedDict):
    """The end of an epoch. bad_samples: taken out in the whole run. image_size: pixels."""

    epoch: int
    step: int
    position: int
    bad_samples: int
    samples: str
    image_size: int
    global_batch_size: int


class Scores(TypedDict):
    """A validation's figures: of the network, and as ema_… of its averaged weights, if there are any.

    top1, top5: fractions. loss: mean cross-entropy. split_images: how many the split has, where num_images of them
    were chosen.
    """

    top1: float
    top5: float
    loss: float
    num_images: int
    ema_top1: NotRequired[float]
    ema_top5: NotRequired[float]
    ema_loss: NotRequired[float]
    split_images: NotRequired[int]


class Rates(TypedDict):
    """What a command did: its seconds, and over its training, if it made a step, images/s of all ranks and the
    fraction of the time that this rank waited for data."""

    seconds: float
    images_per_s: NotRequired[float]
    data_wait: NotRequired[float]


class Ending(TypedDict):
    """ended_by: "max_steps" before the end of the schedule's `epochs`; "max_minutes" where the schedule was gone
    through to its end on fewer images, `data_epochs` of them. total_steps: of the recipe."""

    ended_by: EndedBy
    total_steps: int
    epochs: int
    data_epochs: float
