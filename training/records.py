"""The fields of the lines in `metrics.jsonl`, with their units, as dicts.

Three fields locate a line: `epoch` (from 0), `position` (samples of the epoch that are done, over all ranks) and `step`
(optimizer steps of the whole run; in a step's own line its number, from 0).
"""

from typing import Literal, NotRequired, TypedDict

EndedBy = Literal["recipe", "max_steps", "max_minutes"]


class StepLine(TypedDict):
    """A training step. Rates are those of its log interval.

    loss: the mean over ranks, possibly NaN or infinite. grad_norm: the gradient's 2-norm, if gradients are clipped.
    images_per_s: over all ranks. data_wait: the fraction of the interval, 0 … 1, in which rank 0 waited for data.
    gpu_memory_gb: the most that torch has allocated on rank 0's GPU so far, in 10^9 bytes. samples: `sample_digest` of
    all ranks' samples, in hexadecimal. Steps with the same samples, on any number of ranks, have the same digest.
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
    """The end of an epoch. bad_samples: quarantined in the whole run so far. image_size: pixels."""

    epoch: int
    step: int
    position: int
    bad_samples: int
    samples: str
    image_size: int
    global_batch_size: int


class Scores(TypedDict):
    """A validation's scores: of the network, and with the prefix ema_ of its averaged weights, if there are any.

    top1, top5: fractions. loss: mean cross-entropy. split_images: the size of the split, if only num_images of them
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
    """The rates of a command. seconds: its duration. If it did a step: images_per_s of all ranks in training, and
    data_wait, the fraction of the training time in which this rank waited for data."""

    seconds: float
    images_per_s: NotRequired[float]
    data_wait: NotRequired[float]


class Ending(TypedDict):
    """How a run ended. ended_by: "max_steps" if it stopped before the end of the schedule's `epochs`, "max_minutes" if
    it went through the whole schedule on only `data_epochs` of images. total_steps: of the recipe."""

    ended_by: EndedBy
    total_steps: int
    epochs: int
    data_epochs: float
