"""Mixup and CutMix of a batch on its device, by torchvision's transforms, with draws that belong to the plan.

A batch is mixed with itself, turned by one place, so pairs depend on the batch size and the rank, as everywhere; how
much and where is a function of (seed, epoch, position, rank). Images before mixing keep the laws of the plan.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch

from penstock.pipeline.augment import AugmentConfig
from penstock.pipeline.batch import Batch
from penstock.pipeline.holes import IGNORE_LABEL
from penstock.pipeline.plan import EpochPlan


class Mixer:
    """Turns batches into mixed ones, or leaves them where neither mixup nor CutMix is on.

    Labels become (N, C) float32: what is in the image, by its share. The share of a sample that was taken out is left
    away, so such rows sum to less than 1, or 0.
    """

    def __init__(self, config: AugmentConfig, num_classes: int, *, seed: int = 0, rank: int = 0) -> None:
        self.num_classes, self.seed, self.rank = num_classes, seed, rank
        self._transform = _transform(config, num_classes + 1) if config.mixup or config.cutmix else None

    def mixed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        return map(self, batches)

    def __call__(self, batch: Batch) -> Batch:
        """The batch with mixed images and labels; a new tensor each. torch's random state is left as it was."""
        if self._transform is None:
            return batch
        plan = EpochPlan(num_samples=1, seed=self.seed, epoch=batch.epoch)
        draw = plan.uniforms(f"mix {self.rank}", batch.position, 1, 1)[0, 0]
        labels = torch.where(batch.labels == IGNORE_LABEL, self.num_classes, batch.labels)  # a class of its own
        with torch.random.fork_rng(devices=[]):  # the transforms draw from the CPU's generator, for any device
            torch.default_generator.manual_seed(int(draw * 2**53))
            images, shares = self._transform(batch.images, labels)
        images = images.contiguous(memory_format=torch.channels_last)  # on a GPU torch's roll gives NCHW
        return replace(batch, images=images, labels=shares[:, : self.num_classes])


def _transform(config: AugmentConfig, num_classes: int) -> torch.nn.Module:
    from torchvision.transforms import v2  # 2 s of imports, for those who mix

    transforms = []
    if config.mixup:
        transforms.append(v2.MixUp(alpha=config.mixup, num_classes=num_classes))
    if config.cutmix:
        transforms.append(v2.CutMix(alpha=config.cutmix, num_classes=num_classes))
    either: torch.nn.Module = v2.RandomChoice(transforms)
    return either
