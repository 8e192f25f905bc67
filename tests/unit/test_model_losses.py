"""The loss against a formula written out, and against torch's own mean; accuracy against sorting."""

import pytest
import torch
import torch.nn.functional as F

from model.losses import build_loss
from model.metrics import topk_correct


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_the_formula(smoothing: float) -> None:
    logits, labels = torch.randn(16, 7, dtype=torch.float64), torch.randint(7, (16,))
    targets = (1 - smoothing) * F.one_hot(labels, 7) + smoothing / 7
    expected = -(targets * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(build_loss(smoothing)(logits, labels).double(), expected, rtol=1e-5, atol=1e-6)


def test_taken_out_samples_do_not_count() -> None:
    logits, labels = torch.randn(8, 5, requires_grad=True), torch.randint(5, (8,))
    labels[2] = labels[5] = -100
    kept = labels != -100
    loss = build_loss(0.1)(logits, labels)
    torch.testing.assert_close(loss, F.cross_entropy(logits[kept], labels[kept], label_smoothing=0.1))
    loss.backward()
    assert logits.grad is not None
    assert not logits.grad[~kept].any()
    assert logits.grad[kept].any(dim=1).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_shares_of_classes_are_torchs_probabilities(smoothing: float) -> None:
    logits, shares = torch.randn(16, 7), torch.randn(16, 7).softmax(1)
    expected = F.cross_entropy(logits, shares, label_smoothing=smoothing)
    torch.testing.assert_close(build_loss(smoothing)(logits, shares), expected)
    labels = torch.randint(7, (16,))
    hard = build_loss(smoothing)(logits, F.one_hot(labels, 7).float())
    torch.testing.assert_close(hard, build_loss(smoothing)(logits, labels))


def test_shares_that_are_missing_do_not_count() -> None:
    """Half of sample 0 and all of sample 1 were taken out: 0 counts half, 1 not at all."""
    logits = torch.randn(3, 5, requires_grad=True)
    shares = torch.zeros(3, 5)
    shares[0, 2], shares[2, 4] = 0.5, 1.0
    loss = build_loss(0.1)(logits, shares)
    each = F.cross_entropy(logits, torch.tensor([2, 0, 4]), label_smoothing=0.1, reduction="none")
    torch.testing.assert_close(loss, (0.5 * each[0] + each[2]) / 1.5)
    loss.backward()
    assert logits.grad is not None
    assert not logits.grad[1].any()
    empty = build_loss(0.1)(logits, torch.zeros(3, 5))
    assert empty.item() == 0.0


def test_a_batch_of_taken_out_samples_has_no_loss_and_no_gradient() -> None:
    logits = torch.randn(4, 5, requires_grad=True)
    loss = build_loss(0.1)(logits, torch.full((4,), -100))
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_loss_is_computed_in_float32() -> None:
    logits, labels = torch.randn(64, 1000, dtype=torch.bfloat16), torch.randint(1000, (64,))
    loss = build_loss(0.1)(logits, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, F.cross_entropy(logits.float(), labels, label_smoothing=0.1))


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_bad_smoothing_is_an_error(smoothing: float) -> None:
    with pytest.raises(ValueError, match="label_smoothing"):
        build_loss(smoothing)


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


def test_topk_never_counts_a_taken_out_sample() -> None:
    logits = F.one_hot(torch.arange(4), 4).float()
    labels = torch.tensor([0, 1, -100, 3])
    assert topk_correct(logits, labels).tolist() == [3, 3]
