"""`ReferenceLoader`: the same plan executed by PIL and torchvision. Tests compare `DaliLoader` with it."""

import io
import multiprocessing
from collections.abc import Iterator
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from penstock.pipeline import ranges
from penstock.pipeline.augment import AugmentParams
from penstock.pipeline.augment.reference import reference_augment
from penstock.pipeline.batch import Batch
from penstock.pipeline.feed import Feed
from penstock.pipeline.plan import Span
from penstock.pipeline.reader import open_reader

Pixels = TypeVar("Pixels", Image.Image, torch.Tensor)
Item = tuple[torch.Tensor, torch.Tensor, torch.Tensor] | str  # images, labels, sample ids
FILTERS = {
    "nearest": InterpolationMode.NEAREST_EXACT,  # torch's plain NEAREST is half a pixel off
    "linear": InterpolationMode.BILINEAR,
    "cubic": InterpolationMode.BICUBIC,
    "lanczos": InterpolationMode.LANCZOS,
}


class ReferenceLoader:
    """One rank's batches, decoded by PIL in worker processes. See `pipeline.batch.Loader` for the contract.

    docs/augmentations.md lists the differences from `DaliLoader`'s pixels for each augmentation.

    Without antialias, only the filters "nearest" and "linear" are supported.

    A sample that cannot be decoded raises ValueError with its name. This loader does not quarantine samples.

    Args:
        workers: worker processes; 0 decodes in this one.
    """

    def __init__(self, feed: Feed, *, device: torch.device, workers: int, dtype: torch.dtype = torch.float32) -> None:
        self.feed, self.device, self.workers, self.dtype = feed, device, workers, dtype
        if not feed.config.antialias and feed.config.interpolation not in ("nearest", "linear"):
            raise ValueError(
                f'data.interpolation: the reference loader supports "{feed.config.interpolation}" only with '
                "data.antialias = true"
            )
        self.quarantine: set[int] = set()

    def __len__(self) -> int:
        return len(self.feed)

    def iter_epoch(self, epoch: int, position: int = 0) -> Iterator[Batch]:
        if self.workers:
            _check_shared_memory()
        spans = list(self.feed.spans(position))
        loader = DataLoader(
            _PlannedBatches(self.feed, epoch, spans),
            batch_size=None,
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
        )
        for span, item in zip(spans, loader, strict=True):
            if isinstance(item, str):
                raise ValueError(item)
            images, labels, sample_ids = item
            with ranges.span("copy"):
                images = images.to(self.device, self.dtype, memory_format=torch.channels_last, non_blocking=True)
                labels = labels.to(self.device, non_blocking=True)
            yield Batch(images, labels, sample_ids, epoch, span.end)

    def close(self) -> None:
        """Do nothing: there is nothing to release between epochs."""


def _check_shared_memory() -> None:
    try:
        multiprocessing.Lock()
    except OSError as error:
        raise ValueError(
            f"/dev/shm: the reference loader's processes need it ({error.strerror}); make it writable, or use "
            "another loader"
        ) from None


class _PlannedBatches(Dataset[Item]):
    """Item i is the batch at span i on the CPU, or an error message if a sample cannot be decoded."""

    def __init__(self, feed: Feed, epoch: int, spans: list[Span]) -> None:
        self.feed, self.epoch, self.spans = feed, epoch, spans
        self.reader = open_reader(replace(feed, config=replace(feed.config, cache="none")))

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, i: int) -> Item:
        planned = self.feed.batch(self.epoch, self.spans[i], self.feed.image_size)
        images = []
        for row, view in enumerate(self.reader.views(planned.sample_ids)):
            try:
                images.append(self._image(view, {name: values[row] for name, values in planned.params.items()}))
            except (OSError, UnidentifiedImageError) as error:
                where = self.feed.split.where(int(planned.sample_ids[row]))
                return f"{where}: cannot be decoded by the reference loader ({error})"
        return torch.stack(images), torch.from_numpy(planned.labels), torch.from_numpy(planned.sample_ids)

    def _image(self, view: np.ndarray, params: AugmentParams) -> torch.Tensor:
        """(size,) uint8 JPEG → (3, S, S) float32, normalised."""
        config, augment = self.feed.config, self.feed.augment
        image: Image.Image = Image.open(io.BytesIO(view.data)).convert("RGB")
        if config.antialias:
            image = self._cropped(image, params)
        else:  # Pillow always antialiases
            image = F.to_pil_image(self._cropped(F.pil_to_tensor(image), params))
        if augment:
            image = reference_augment(image, params, augment, config)
        levels = F.pil_to_tensor(image).to(torch.float32)
        normalised: torch.Tensor = F.normalize(levels, list(config.mean), list(config.std))
        return normalised

    def _cropped(self, image: Pixels, params: AugmentParams) -> Pixels:
        """The image's crop, resized, and moved if it has a shift."""
        config, size, augment = self.feed.config, self.feed.image_size, self.feed.augment
        resampling = {"interpolation": FILTERS[config.interpolation], "antialias": config.antialias}
        if not augment or augment.crop == "centre":
            resize_size = round(size / augment.crop_fraction) if augment else self.feed.resize_size(size)
            image = F.resize(image, [resize_size], **resampling)
            image = F.center_crop(image, [size, size])
            return image
        (top, left), (height, width) = params["anchor"].tolist(), params["shape"].tolist()
        image = F.resized_crop(image, top, left, height, width, [size, size], **resampling)
        if "shift" in params:
            top, left = params["shift"].tolist()
            image = F.crop(image, top, left, size, size)
        return image
