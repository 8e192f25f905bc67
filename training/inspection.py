"""Inspect a validation: find the images with the worst losses, and the classes that are confused.

`EvalInspection` collects on the device, batch by batch, without waiting for it. `reduced` joins the ranks and returns
an `Inspection`. `write_worst` writes that, with class names and small pictures, into the run's directory:

    RUN/worst.json     the rows with names, for `report.html`
    RUN/worst/*.jpg    the images with the largest losses, the worst first
"""

import io
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from penstock.pipeline.holes import IGNORE_LABEL
from penstock.training.metrics import WORST_FILE

MAX_CONFUSION_CLASSES = 4096  # 134 MB of counts
TOP_PAIRS = TOP_CLASSES = 20
CONFUSION_CLASSES = 16
WORST_FOLDER = "worst"
THUMBNAIL_SIDE = 256


@dataclass(frozen=True)
class WorstImage:
    """loss: the cross-entropy. probability: of the prediction."""

    sample_id: int
    loss: float
    label: int
    prediction: int
    probability: float


@dataclass(frozen=True)
class ConfusedPair:
    """Images of `label` that were predicted as another class. share: as a fraction of the label's images, 0 … 1."""

    label: int
    prediction: int
    count: int
    share: float


@dataclass(frozen=True)
class ClassAccuracy:
    """The top-1 accuracy, as a fraction, of a class that has images."""

    label: int
    accuracy: float
    num_images: int


@dataclass(frozen=True)
class Confusion:
    """labels: the classes in the most confused pairs, with confused classes next to each other. counts: a row for each
    label, a column for each prediction."""

    labels: list[int]
    counts: list[list[int]]


@dataclass(frozen=True)
class Inspection:
    """The result for a whole validation. Each list has the worst first."""

    worst: list[WorstImage]
    confused: list[ConfusedPair]
    lowest: list[ClassAccuracy]
    confusion: Confusion


class EvalInspection:
    """Collects one validation's worst images and counts of (label, prediction), on `device`.

    With more than `MAX_CONFUSION_CLASSES` classes it counts only the accuracy of each class, not the pairs.
    """

    def __init__(self, num_classes: int, device: torch.device, worst: int = 16) -> None:
        self.num_classes, self._worst = num_classes, worst
        self._totals = torch.zeros(2, num_classes, dtype=torch.int64, device=device)  # images, correct ones
        pairs = num_classes**2 if num_classes <= MAX_CONFUSION_CLASSES else 0
        self._confusion = torch.zeros(pairs, dtype=torch.int64, device=device)
        self._values = torch.full((2, worst), -torch.inf, dtype=torch.float32, device=device)  # loss, probability
        self._ids = torch.full((3, worst), -1, dtype=torch.int64, device=device)  # sample, label, prediction

    @torch.no_grad()
    def add(self, logits: Tensor, labels: Tensor, sample_ids: Tensor) -> None:
        """Count a batch: logits (N, C) float32, labels (N,) int64, sample_ids (N,) int64, all on the device.

        Images with label −100 do not count. The loss is the cross-entropy; NaN counts as infinite.
        """
        valid = labels != IGNORE_LABEL
        counted, labels = valid.long(), labels.clamp(min=0)
        log_probabilities = F.log_softmax(logits, dim=1)
        largest, predictions = log_probabilities.max(dim=1)
        self._totals[0].index_add_(0, labels, counted)
        self._totals[1].index_add_(0, labels, counted * (predictions == labels))
        if len(self._confusion):
            self._confusion.index_add_(0, labels * self.num_classes + predictions, counted)

        losses = F.nll_loss(log_probabilities, labels, reduction="none").nan_to_num(nan=torch.inf)
        losses = losses.masked_fill(~valid, -torch.inf)
        values = torch.cat([self._values, torch.stack([losses, largest.exp().nan_to_num()])], dim=1)
        ids = torch.cat([self._ids, torch.stack([sample_ids, labels, predictions])], dim=1)
        kept = values[0].topk(self._worst).indices
        self._values, self._ids = values[:, kept], ids[:, kept]

    @torch.no_grad()
    def reduced(
        self, sum_over_ranks: Callable[[Tensor], Tensor] = lambda tensor: tensor, *, rank: int = 0, world_size: int = 1
    ) -> Inspection:
        """The result for the whole validation, the same on every rank. All ranks call it. It waits for the device.

        `sum_over_ranks` adds up a tensor in place.
        """
        if sum_over_ranks(torch.ones(1, dtype=torch.int64)).item() != world_size:
            raise RuntimeError(f"world_size is {world_size}, but sum_over_ranks adds up another number of ranks")
        # Each rank's rows get a separate place, so that a sum over ranks joins them.
        values = self._values.new_zeros(2, world_size, self._worst)
        ids = self._ids.new_zeros(3, world_size, self._worst)
        values[:, rank], ids[:, rank] = self._values, self._ids
        totals, confusion = self._totals.clone(), self._confusion.clone()
        for tensor in (values, ids, totals, confusion):
            sum_over_ranks(tensor)
        num_images, correct = totals.cpu().numpy()
        pairs = confusion.cpu().numpy().reshape(-1, self.num_classes)
        confused = _most_confused(pairs, num_images)
        return Inspection(
            worst=_worst_images(values.flatten(1).cpu().numpy(), ids.flatten(1).cpu().numpy(), self._worst),
            confused=confused,
            lowest=_lowest(num_images, correct),
            confusion=_confusion_of(confused, pairs),
        )


def _worst_images(values: np.ndarray, ids: np.ndarray, worst: int) -> list[WorstImage]:
    order = np.lexsort((ids[0], -values[0]))[:worst]
    columns = zip(ids[:, order].T.tolist(), values[:, order].T.tolist(), strict=True)
    return [
        WorstImage(sample_id, loss, label, prediction, probability)
        for (sample_id, label, prediction), (loss, probability) in columns
        if loss > -np.inf
    ]


def _most_confused(pairs: np.ndarray, num_images: np.ndarray) -> list[ConfusedPair]:
    labels, predictions = np.nonzero(pairs)
    counts = pairs[labels, predictions]
    order = np.lexsort((predictions, labels, -counts, labels == predictions))[:TOP_PAIRS]
    return [
        ConfusedPair(int(y), int(p), int(n), int(n) / int(num_images[y]))
        for y, p, n in zip(labels[order], predictions[order], counts[order], strict=True)
        if y != p
    ]


def _lowest(num_images: np.ndarray, correct: np.ndarray) -> list[ClassAccuracy]:
    (labels,) = np.nonzero(num_images)
    accuracy = correct[labels] / num_images[labels]
    order = np.lexsort((labels, accuracy))[:TOP_CLASSES]
    return [ClassAccuracy(int(labels[i]), float(accuracy[i]), int(num_images[labels[i]])) for i in order]


def _confusion_of(confused: list[ConfusedPair], pairs: np.ndarray) -> Confusion:
    named = dict.fromkeys(label for pair in confused for label in (pair.label, pair.prediction))
    labels = list(named)[:CONFUSION_CLASSES]
    return Confusion(labels, pairs[np.ix_(labels, labels)].tolist() if labels else [])


def write_worst(
    run_dir: Path,
    found: Inspection,
    image_bytes: Callable[[int], bytes],
    class_names: Sequence[str],
    sources: Callable[[int], str] = str,
) -> list[Path | None]:
    """Write `RUN/worst.json` and `RUN/worst/*.jpg`, and replace earlier ones.

    Args:
        image_bytes: sample id → the file as it is in the shard, called only for the worst images. If it raises
            ValueError or OSError, or the bytes cannot be decoded, the entry has no picture.
        class_names: label → name for people.
        sources: sample id → where the image came from, for people.

    Returns:
        the path of a picture for each of `found.worst`, at most `THUMBNAIL_SIDE` pixels long, or None.
    """
    shutil.rmtree(run_dir / WORST_FOLDER, ignore_errors=True)
    (run_dir / WORST_FOLDER).mkdir(parents=True)
    paths, worst = [], []
    for number, row in enumerate(found.worst):
        path = run_dir / WORST_FOLDER / f"{number:02}-{row.sample_id}.jpg"
        drawn = _thumbnail(image_bytes, row.sample_id, path)
        paths.append(path if drawn else None)
        worst.append({
            **asdict(row),
            "loss": row.loss if np.isfinite(row.loss) else None,  # JSON has no infinity
            "label_name": class_names[row.label],
            "prediction_name": class_names[row.prediction],
            "file": f"{WORST_FOLDER}/{path.name}" if drawn else None,
            "source": sources(row.sample_id),
        })  # fmt: skip
    confused = [
        {**asdict(pair), "label_name": class_names[pair.label], "prediction_name": class_names[pair.prediction]}
        for pair in found.confused
    ]
    lowest = [{**asdict(row), "label_name": class_names[row.label]} for row in found.lowest]
    tables = {"worst": worst, "confused": confused, "lowest": lowest}
    temporary = run_dir / f".{WORST_FILE}.tmp"
    temporary.write_text(json.dumps(tables, indent=1, allow_nan=False), encoding="utf-8")
    temporary.replace(run_dir / WORST_FILE)
    return paths


def _thumbnail(image_bytes: Callable[[int], bytes], sample_id: int, path: Path) -> bool:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(image_bytes(sample_id))) as image:
            image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
            image.convert("RGB").save(path, quality=85)
    except (OSError, ValueError, Image.DecompressionBombError):
        path.unlink(missing_ok=True)
        return False
    return True
