"""Mixup and CutMix of a batch on its device, by torchvision's transforms, with the plan's random draws.

Each image of a batch is mixed with its neighbour, so the pairs depend on the batch size and the rank. The amount and
the region are a function of (seed, epoch, position, rank). The images before mixing follow the plan as always.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch

from penstock.pipeline.augment import AugmentConfig
from penstock.pipeline.batch import Batch
from penstock.pipeline.holes import IGNORE_LABEL
from penstock.pipeline.plan import EpochPlan


class Mixer:
    """Mixes batches, or returns them unchanged if neither mixup nor CutMix is on.

    Labels become (N, C) float32, the share of each class in the image. The share of a quarantined sample is omitted, so
    such a row sums to less than 1, or to 0.
    """

    def __init__(self, config: AugmentConfig, num_classes: int, *, seed: int = 0, rank: int = 0) -> None:
        self.num_classes, self.seed, self.rank = num_classes, seed, rank
        self._transform = _transform(config, num_classes + 1) if config.mixup or config.cutmix else None

    def mixed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        return map(self, batches)

    def __call__(self, batch: Batch) -> Batch:
        """The batch with mixed images and labels, in new tensors. torch's random state does not change."""
        if self._transform is None:
            return batch
        plan = EpochPlan(num_samples=1, seed=self.seed, epoch=batch.epoch)
        draw = plan.uniforms(f"mix {self.rank}", batch.position, 1, 1)[0, 0]
        labels = torch.where(batch.labels == IGNORE_LABEL, self.num_classes, batch.labels)  # an extra class
        with torch.random.fork_rng(devices=[]):  # the transforms draw from the CPU's generator, for any device
            torch.default_generator.manual_seed(int(draw * 2**53))
            images, shares = self._transform(batch.images, labels)
        images = images.contiguous(memory_format=torch.channels_last)  # on a GPU torch's roll gives NCHW
        return replace(batch, images=images, labels=shares[:, : self.num_classes])


def _transform(config: AugmentConfig, num_classes: int) -> torch.nn.Module:
    from torchvision.transforms import v2  # the import takes 2 s, so only for mixing

    transforms = []
    if config.mixup:
        transforms.append(v2.MixUp(alpha=config.mixup, num_classes=num_classes))
    if config.cutmix:
        transforms.append(v2.CutMix(alpha=config.cutmix, num_classes=num_classes))
    either: torch.nn.Module = v2.RandomChoice(transforms)
    return either
