"""Score a network with ImageNet-ReaL, the reassessed labels of ImageNet's validation images.

Beyer et al. 2020, "Are we done with ImageNet?". `real.json` (google-research/reassessed-imagenet; timm has a copy) is a
list of 50,000 lists of class numbers. Entry i belongs to ILSVRC2012_val_{i + 1:08d}.JPEG. A prediction is correct if it
is one of the image's labels. An image without labels does not count. Images are identified by their original names.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np
import torch
from torch import Tensor, nn

from penstock.commands.class_map import ClassMap, map_classes
from penstock.commands.options import REAL
from penstock.model.metrics import topk_correct
from penstock.pipeline.batch import Batch, Loader
from penstock.shard_tools.sources.imagenet import imagenet_classes
from penstock.shards.format import ClassInfo, Split
from penstock.training import distributed
from penstock.training.evaluate import predict_logits
from penstock.training.figures import count

NUM_IMAGES, NUM_CLASSES = 50_000, 1_000
NAME = re.compile(r"ILSVRC2012_val_([0-9]{8})(?![0-9])")
TIMMS_COPY = "data/_info/imagenet_real_labels.json"


class RealScores(TypedDict):
    """top1, top5: fractions of num_images, the images with labels. top5 counts an image if one of the five highest
    outputs is a label, as in timm. unlabelled_images: images without labels. split_images: the size of the split, if
    only some of its images were chosen."""

    top1: float
    top5: float
    num_images: int
    unlabelled_images: int
    split_images: NotRequired[int]


@dataclass(frozen=True)
class RealLabels:
    """labels: (num_samples + 1, L) int64, the correct outputs of the network for each sample, padded with −1. The last
    row belongs to no sample: the id −1 (`NO_SAMPLE`) selects it. counts: (num_samples,) bool, whether the image has
    labels, including labels that the network does not have."""

    labels: Tensor
    counts: np.ndarray


def real_labels(source: str, split: Split, outputs: np.ndarray) -> RealLabels:
    """The labels of a split's samples. source: "real" or a file. outputs: the result of `outputs_of`.

    Raises ValueError if the labels cannot be read, or a sample's name is not that of an ImageNet validation image.
    """
    listed = read_real_labels(_timms_copy() if source == REAL else Path(source))
    rows = [listed[number - 1] for number in image_numbers(split)]
    labels = np.full((len(rows) + 1, max(map(len, rows)) or 1), -1, np.int64)
    for place, row in enumerate(rows):
        labels[place, : len(row)] = outputs[row]
    return RealLabels(torch.from_numpy(labels), np.array([len(row) > 0 for row in rows]))


def read_real_labels(path: Path) -> list[list[int]]:
    """The class numbers of each validation image. Raises ValueError if the file is not a `real.json`."""
    try:
        listed = json.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is not JSON ({error})") from None
    if not isinstance(listed, list) or len(listed) != NUM_IMAGES:
        what = f"a list of {len(listed):,}" if isinstance(listed, list) else f"a {type(listed).__name__}"
        raise ValueError(
            f"{path}: contains {what}. real.json is a list of {NUM_IMAGES:,} entries, one for each validation image"
        )
    for line, row in enumerate(listed):
        if not isinstance(row, list) or not all(type(label) is int and 0 <= label < NUM_CLASSES for label in row):
            raise ValueError(f"{path}: entry {line} is {str(row)[:60]}, not a list of numbers from 0 to 999")
    return listed


def _timms_copy() -> Path:
    package = find_spec("timm")
    for folder in package.submodule_search_locations or () if package else ():
        if (path := Path(folder, TIMMS_COPY)).is_file():
            return path
    raise ValueError(f"--labels {REAL}: the installed timm has no copy of ReaL's labels. Give the path of real.json")


def image_numbers(split: Split) -> list[int]:
    """The number, 1 … 50,000, in each sample's original name. Raises ValueError if a name has none."""
    names = split.source_names()
    if len(names) != len(split):
        raise ValueError(
            f"{split.root}: --labels needs the original file names of {split.name}, but this dataset does not have them"
        )
    numbers = []
    for name in names:
        match = NAME.search(name)
        if not match or not 1 <= int(match[1]) <= NUM_IMAGES:
            raise ValueError(
                f"{split.root}: an image of {split.name} was called {name!r}. --labels needs the original names, "
                "ILSVRC2012_val_00000001.JPEG to …_00050000.JPEG. Pack ImageNet's validation images with these names"
            )
        numbers.append(int(match[1]))
    return numbers


def outputs_of(network: Sequence[ClassInfo], dataset: Sequence[ClassInfo], found: ClassMap) -> np.ndarray:
    """(1000,) int64: the network's output for each of ImageNet's class numbers, −1 for none. found: how the dataset's
    classes map to the network's, possibly by a file."""
    imagenet = [ClassInfo(wnid, name) for wnid, name in imagenet_classes().items()]
    outputs, numbers = map_classes(network, imagenet).labels.copy(), map_classes(imagenet, dataset).labels
    given = (numbers >= 0) & (found.labels >= 0)
    outputs[numbers[given]] = found.labels[given]
    return outputs


def real_lines(real: RealLabels) -> Iterator[str]:
    """Lines to print about images that cannot be predicted correctly."""
    known = (real.labels[:-1] >= 0).any(1).numpy()
    if lost := int((real.counts & ~known).sum()):
        yield f"{lost:,} images have only labels for which the network has no output; they count as wrong"


@torch.inference_mode()
def score_real(
    net: nn.Module,
    loader: Loader,
    real: RealLabels,
    device: torch.device,
    autocast: AbstractContextManager[object],
    *,
    flip: bool = False,
    watched: Callable[[Iterator[Batch]], Iterator[Batch]] = iter,
) -> RealScores:
    """Score a network on its loader's split, over all ranks. The arguments are those of `training.evaluate.evaluate`.

    Raises RuntimeError if not every image was seen once.
    """
    net.eval()
    feed = loader.feed
    counts = real.counts if feed.chosen is None else real.counts[feed.chosen]
    sums = torch.zeros(3, dtype=torch.int64, device=device)  # correct, correct among the first 5, images
    for images, places, sample_ids in watched(loader.iter_epoch(0)):
        with autocast:
            logits = predict_logits(net, images, flip)
        labels = real.labels[sample_ids].to(device, non_blocking=True)
        sums += torch.stack([*topk_correct(logits, labels), torch.ones_like(places).sum()])
    top1, top5, num_seen = distributed.sum_tensor(sums).tolist()
    if num_seen != feed.num_samples:
        raise RuntimeError(f"evaluation saw {num_seen} of {feed.num_samples} images")
    num_images = int(counts.sum())
    if not num_images:
        raise ValueError(f"{feed.split.root}: none of the {len(counts):,} images of {feed.split.name} has a label")
    scores: RealScores = {
        "top1": top1 / num_images,
        "top5": top5 / num_images,
        "num_images": num_images,
        "unlabelled_images": len(counts) - num_images,
    }
    if feed.num_samples < len(feed.split):
        scores["split_images"] = len(feed.split)
    return scores


def real_in_words(scores: RealScores) -> str:
    num_scored = scores["num_images"] + scores["unlabelled_images"]
    scored = count(num_scored, scores.get("split_images", num_scored))
    return (
        f"ReaL top-1 {scores['top1']:.4f}  top-5 {scores['top5']:.4f}  on {scores['num_images']:,} images with labels; "
        f"{scores['unlabelled_images']:,} of the {scored} images have no label and do not count"
    )
