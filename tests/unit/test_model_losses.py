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
