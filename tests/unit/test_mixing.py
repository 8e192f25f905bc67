"""The mixer compared with torchvision's transforms with the same generator, and its random draws."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torchvision.transforms import v2

from penstock.pipeline.augment import AugmentConfig
from penstock.pipeline.batch import Batch
from penstock.pipeline.holes import IGNORE_LABEL
from penstock.pipeline.mixing import Mixer

CLASSES = 5


def make_batch(n: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(n, 3, 16, 16, generator=generator).to(memory_format=torch.channels_last)
    return Batch(images, torch.arange(n) % CLASSES, torch.arange(n))


def mix(config: AugmentConfig, batch: Batch, epoch: int = 0, position: int = 8, **owner: int) -> Batch:
    return Mixer(config, CLASSES, **owner)(replace(batch, epoch=epoch, position=position))


MIXUP, CUTMIX = AugmentConfig(mixup=0.4), AugmentConfig(cutmix=1.0)
BOTH = AugmentConfig(mixup=0.4, cutmix=1.0)


def test_off_means_untouched() -> None:
    batch = make_batch()
    assert Mixer(AugmentConfig(), CLASSES)(batch) is batch


@pytest.mark.parametrize("position", range(0, 80, 8))
@pytest.mark.parametrize("config", [MIXUP, CUTMIX], ids=["mixup", "cutmix"])
def test_images_and_labels_are_mixed_by_the_same_share(config: AugmentConfig, position: int) -> None:
    batch = make_batch()
    mixed = mix(config, batch, position=position)
    own = mixed.labels[torch.arange(8), batch.labels]  # the share of the sample itself: the same for all
    assert torch.all(own == own[0])
    assert mixed.labels.shape == (8, CLASSES)
    torch.testing.assert_close(mixed.labels.sum(1), torch.ones(8))
    one_hot = F.one_hot(batch.labels, CLASSES).float()
    torch.testing.assert_close(mixed.labels, own[0] * one_hot + (1 - own[0]) * one_hot.roll(1, 0))
    partner = batch.images.roll(1, 0)
    if config is MIXUP:
        torch.testing.assert_close(mixed.images, own[0] * batch.images + (1 - own[0]) * partner)
    else:
        from_self, from_partner = mixed.images == batch.images, mixed.images == partner
        assert (from_self | from_partner).all()
        torch.testing.assert_close(from_self.float().mean(), own[0])
    assert mixed.images.is_contiguous(memory_format=torch.channels_last)


def test_a_sample_that_was_quarantined_has_no_share() -> None:
    batch = make_batch()
    batch.labels[3] = IGNORE_LABEL
    mixed = mix(MIXUP, batch)
    share = mixed.labels[0, 0]
    torch.testing.assert_close(mixed.labels[3].sum(), 1 - share)  # what is left is its partner
    torch.testing.assert_close(mixed.labels[4].sum(), share)  # whose partner it is
    torch.testing.assert_close(mixed.labels.sum(), torch.tensor(7.0))


def test_the_draws_belong_to_the_position_and_leave_torchs_state_alone() -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first = mix(BOTH, make_batch())
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12)
    assert torch.equal(mix(BOTH, make_batch()).images, first.images)
    others: list[dict[str, Any]] = [{"epoch": 1}, {"position": 16}, {"seed": 1}, {"rank": 1}]
    for other in others:
        assert not torch.equal(mix(BOTH, make_batch(), **other).images, first.images), other


def test_shares_are_drawn_as_torchvision_draws_them_and_both_ways_are_taken() -> None:
    def shares(mixer: Any) -> tuple[torch.Tensor, float]:
        drawn, cut = [], 0
        for position in range(0, 8 * 400, 8):
            batch = make_batch(4)
            images, labels, *_ = mixer(batch, position)
            drawn.append(float(labels[0, 0]))
            cut += bool((images == batch.images).any() and drawn[-1] < 1)
        return torch.tensor(drawn).sort().values, cut / 400

    ours, cut = shares(lambda batch, position: Mixer(BOTH, CLASSES)(replace(batch, position=position)))
    torch.manual_seed(0)
    transform = v2.RandomChoice([v2.MixUp(alpha=0.4, num_classes=CLASSES), v2.CutMix(alpha=1.0, num_classes=CLASSES)])
    theirs, their_cut = shares(lambda batch, position: transform(batch.images, batch.labels))
    assert (torch.searchsorted(theirs, ours) - torch.arange(400)).abs().max() / 400 < 2.23 * (2 / 400) ** 0.5
    assert abs(cut - their_cut) < 4 * (0.5 / 400) ** 0.5


def test_the_stream_of_batches_is_mixed_by_where_each_stands() -> None:
    batches = (replace(make_batch(), epoch=2, position=position) for position in (8, 16))
    mixed = list(Mixer(BOTH, CLASSES).mixed(batches))
    for batch, position in zip(mixed, (8, 16), strict=True):
        assert torch.equal(batch.images, mix(BOTH, make_batch(), epoch=2, position=position).images)
