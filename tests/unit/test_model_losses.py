"""The losses compared with formulas, torch's means and timm's class; accuracy compared with sorting."""

import pytest
import torch
import torch.nn.functional as F
from timm.data.mixup import mixup_target
from timm.loss import BinaryCrossEntropy
from torch import Tensor

from penstock.model.config import LossConfig
from penstock.model.losses import LOSSES, Loss, build_loss
from penstock.model.metrics import topk_correct


def _loss(name: str = "cross_entropy", smoothing: float = 0.1, threshold: float | None = None) -> Loss:
    config = LossConfig(name=name, label_smoothing=smoothing, bce_target_threshold=threshold)  # type: ignore[arg-type]
    return build_loss(config)


# name → the loss of logits (N, C) and target shares (N, C), each sample's (N,), from its definition
FORMULAS = {
    "cross_entropy": lambda z, t: -(t * z.log_softmax(1)).sum(1),
    "bce": lambda z, t: -(t * z.sigmoid().log() + (1 - t) * (1 - z.sigmoid()).log()).mean(1),
    "mse": lambda z, t: (z - t).pow(2).mean(1),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_the_formula(name: str, smoothing: float) -> None:
    logits, labels = torch.randn(16, 7, dtype=torch.float64), torch.randint(7, (16,))
    targets = (1 - smoothing) * F.one_hot(labels, 7) + smoothing / 7
    expected = FORMULAS[name](logits, targets).mean()
    torch.testing.assert_close(_loss(name, smoothing)(logits, labels).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_quarantined_samples_do_not_count(name: str) -> None:
    logits, labels = torch.randn(8, 5, requires_grad=True), torch.randint(5, (8,))
    labels[2] = labels[5] = -100
    kept = labels != -100
    targets = 0.9 * F.one_hot(labels[kept], 5) + 0.1 / 5
    loss = _loss(name)(logits, labels)
    torch.testing.assert_close(loss, FORMULAS[name](logits[kept], targets).mean())
    loss.backward()
    assert logits.grad is not None
    assert not logits.grad[~kept].any()
    assert logits.grad[kept].any(dim=1).all()


@pytest.mark.parametrize("name", LOSSES)
def test_one_sample_that_counts_is_the_mean(name: str) -> None:
    logits, labels = torch.randn(3, 5), torch.tensor([-100, 3, -100])
    alone = _loss(name)(logits[1:2], labels[1:2])
    torch.testing.assert_close(_loss(name)(logits, labels), alone)
    shares = torch.zeros(3, 5)
    shares[1, 3] = 0.25
    torch.testing.assert_close(_loss(name)(logits, shares), alone)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_shares_of_classes_are_torchs_probabilities(smoothing: float) -> None:
    logits, shares = torch.randn(16, 7), torch.randn(16, 7).softmax(1)
    expected = F.cross_entropy(logits, shares, label_smoothing=smoothing)
    torch.testing.assert_close(_loss(smoothing=smoothing)(logits, shares), expected)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_whole_shares_are_labels(name: str, smoothing: float) -> None:
    logits, labels = torch.randn(16, 7), torch.randint(7, (16,))
    shares = F.one_hot(labels, 7).float()
    torch.testing.assert_close(_loss(name, smoothing)(logits, shares), _loss(name, smoothing)(logits, labels))


@pytest.mark.parametrize("name", LOSSES)
def test_shares_that_are_missing_do_not_count(name: str) -> None:
    """Half of sample 0 and all of sample 1 are excluded: 0 counts half, 1 does not count."""
    logits = torch.randn(3, 5, requires_grad=True)
    shares = torch.zeros(3, 5)
    shares[0, 2], shares[2, 4] = 0.5, 1.0
    loss = _loss(name)(logits, shares)
    each = FORMULAS[name](logits, 0.9 * F.one_hot(torch.tensor([2, 0, 4]), 5) + 0.1 / 5)
    torch.testing.assert_close(loss, (0.5 * each[0] + each[2]) / 1.5)
    loss.backward()
    assert logits.grad is not None
    assert not logits.grad[1].any()
    assert _loss(name)(logits, torch.zeros(3, 5)).item() == 0.0


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("labels", [torch.full((4,), -100), torch.zeros(4, 5)], ids=["labels", "shares"])
def test_a_batch_of_quarantined_samples_has_no_loss_and_no_gradient(name: str, labels: Tensor) -> None:
    logits = torch.randn(4, 5, requires_grad=True)
    loss = _loss(name)(logits, labels)
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("name", LOSSES)
def test_loss_is_computed_in_float32(name: str) -> None:
    logits, labels = torch.randn(64, 1000, dtype=torch.bfloat16), torch.randint(1000, (64,))
    loss = _loss(name)(logits, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, _loss(name)(logits.float(), labels))
    shares = F.one_hot(labels, 1000).bfloat16()
    torch.testing.assert_close(_loss(name)(logits, shares), loss)


@pytest.mark.parametrize("threshold", [None, 0.2])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_bce_of_labels_is_timms(smoothing: float, threshold: float | None) -> None:
    logits, labels = torch.randn(16, 9), torch.randint(9, (16,))
    theirs = BinaryCrossEntropy(smoothing=smoothing, target_threshold=threshold)
    torch.testing.assert_close(_loss("bce", smoothing, threshold)(logits, labels), theirs(logits, labels))


@pytest.mark.parametrize("threshold", [None, 0.2])
def test_bce_of_mixed_images_is_timms(threshold: float | None) -> None:
    """timm smooths where it mixes, and its loss takes what comes."""
    logits, labels = torch.randn(16, 9), torch.randint(9, (16,))
    for share in (0.1, 0.24, 0.5, 0.85):
        targets = mixup_target(labels, 9, lam=share, smoothing=0.1)
        ours = mixup_target(labels, 9, lam=share, smoothing=0.0)
        expected = BinaryCrossEntropy(target_threshold=threshold)(logits, targets)
        torch.testing.assert_close(_loss("bce", 0.1, threshold)(logits, ours), expected)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("weight", [0.4, 0.3, 0.0])
def test_auxiliary_heads_are_added_with_their_weight(name: str, weight: float) -> None:
    main, first, second = torch.randn(3, 6, 5, requires_grad=True).unbind()
    labels = torch.tensor([0, 4, -100, 2, 1, 1])
    loss, alone = build_loss(LossConfig(name=name, aux_weight=weight)), _loss(name)  # type: ignore[arg-type]
    both = alone(first, labels) + alone(second, labels)
    torch.testing.assert_close(loss((main, first, second), labels), alone(main, labels) + weight * both)
    torch.testing.assert_close(loss((main, None, second), labels), alone(main, labels) + weight * alone(second, labels))
    torch.testing.assert_close(loss((main, None), labels), alone(main, labels))


def test_torchvisions_outputs_are_understood() -> None:
    from torchvision.models.googlenet import GoogLeNetOutputs
    from torchvision.models.inception import InceptionOutputs

    main, aux2, aux1, labels = *torch.randn(3, 6, 5).unbind(), torch.randint(5, (6,))
    loss = _loss()
    expected = loss(main, labels) + 0.4 * loss(aux2, labels)
    torch.testing.assert_close(loss(InceptionOutputs(main, aux2), labels), expected)
    torch.testing.assert_close(loss(GoogLeNetOutputs(main, aux2, aux1), labels), expected + 0.4 * loss(aux1, labels))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing": -0.1}, "label_smoothing"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"aux_weight": -1.0}, "aux_weight"),
        ({"aux_weight": float("nan")}, "aux_weight"),
        ({"bce_target_threshold": 0.2}, 'has no effect unless name = "bce"'),
        ({"name": "bce", "bce_target_threshold": 1.0}, "bce_target_threshold: 1.0 must be in"),
    ],
)
def test_bad_settings_are_errors(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LossConfig(**options)


def test_an_unknown_loss_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown loss 'hinge'; known are cross_entropy, bce, mse"):
        LossConfig(name="hinge")  # type: ignore[arg-type]


def test_topk_counts() -> None:
    logits, labels = torch.randn(200, 20), torch.randint(20, (200,))
    expected = [0, 0, 0]
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        rank = sorted(range(20), key=lambda i: -row[i]).index(label)
        for i, k in enumerate((1, 5, 3)):
            expected[i] += rank < k
    counts = topk_correct(logits, labels, ks=(1, 5, 3))
    assert counts.dtype == torch.int64
    assert counts.tolist() == expected


def test_topk_with_fewer_classes_than_k() -> None:
    labels = torch.randint(3, (10,))
    assert topk_correct(torch.randn(10, 3), labels).tolist()[1] == 10


def test_topk_never_counts_a_quarantined_sample() -> None:
    logits = F.one_hot(torch.arange(4), 4).float()
    labels = torch.tensor([0, 1, -100, 3])
    assert topk_correct(logits, labels).tolist() == [3, 3]
