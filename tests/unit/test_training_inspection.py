"""The per-image and per-class findings of a validation, compared with a count by hand; its pictures."""

import io
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from penstock.training import inspection
from penstock.training.inspection import (
    ClassAccuracy,
    ConfusedPair,
    Confusion,
    EvalInspection,
    Inspection,
    WorstImage,
    write_worst,
)

CPU = torch.device("cpu")


def _scores(num: int, num_classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits (num, num_classes), labels with some −100 among them, and sample ids in no order."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, num)
    logits = rng.normal(size=(num, num_classes))
    logits[np.arange(num), labels] += 1.5
    labels[rng.random(num) < 0.1] = -100
    return logits.astype(np.float32), labels, rng.permutation(num) + 1000


def _fill(found: EvalInspection, logits: np.ndarray, labels: np.ndarray, ids: np.ndarray, batch: int = 7) -> None:
    for start in range(0, len(labels), batch):
        part = slice(start, start + batch)
        found.add(torch.from_numpy(logits[part]), torch.from_numpy(labels[part]), torch.from_numpy(ids[part]))


def _by_hand(logits: np.ndarray, labels: np.ndarray, ids: np.ndarray, worst: int) -> dict:
    kept = labels >= 0
    x, y, ids = logits[kept].astype(np.float64), labels[kept], ids[kept]
    p = np.exp(x) / np.exp(x).sum(1, keepdims=True)
    losses, predictions = -np.log(p[np.arange(len(y)), y]), x.argmax(1)
    order = np.argsort(-losses)[:worst]
    pairs = Counter(zip(y.tolist(), predictions.tolist(), strict=True))
    totals = Counter(y.tolist())
    confused = sorted((-n, a, b) for (a, b), n in pairs.items() if a != b)[:20]
    accuracy = sorted((pairs[(c, c)] / totals[c], c) for c in totals)[:20]
    return {
        "worst": [(int(ids[i]), losses[i], int(y[i]), int(predictions[i]), p[i].max()) for i in order],
        "confused": [(a, b, -n, -n / totals[a]) for n, a, b in confused],
        "lowest": [(c, a, totals[c]) for a, c in accuracy],
        "pairs": pairs,
    }


def _same(found: Inspection, expected: dict) -> None:
    for name in ("worst", "confused", "lowest"):
        rows = getattr(found, name)
        assert len(rows) == len(expected[name])
        for row, values in zip(rows, expected[name], strict=True):
            assert astuple(row) == pytest.approx(values, rel=1e-5)
    labels = found.confusion.labels
    first_16 = list(dict.fromkeys(c for a, b, *_ in expected["confused"] for c in (a, b)))[:16]
    assert labels == first_16
    assert found.confusion.counts == [[expected["pairs"][(a, b)] for b in labels] for a in labels]


@pytest.mark.parametrize(("num", "num_classes", "worst"), [(1000, 10, 16), (60, 40, 5), (9, 3, 16), (2000, 100, 1)])
def test_it_agrees_with_a_count_by_hand(num: int, num_classes: int, worst: int) -> None:
    scores = _scores(num, num_classes)
    found = EvalInspection(num_classes, CPU, worst)
    _fill(found, *scores)
    result = found.reduced()
    _same(result, _by_hand(*scores, worst))
    found.reduced(lambda tensor: tensor if tensor.numel() == 1 else tensor.zero_())
    assert found.reduced() == result  # asking changes nothing, and a reduction may do what it likes to its tensors


def test_ranks_together_find_what_one_finds() -> None:
    scores, num_classes, ranks = _scores(500, 12), 12, 3
    filled = []
    for rank in range(ranks):
        filled.append(EvalInspection(num_classes, CPU, 8))
        _fill(filled[-1], *(part[rank::ranks] for part in scores))
    # A reduction as all ranks see it: the sum of what each rank gives in the same place of the call.
    given: list[list[Tensor]] = []
    for rank, found in enumerate(filled):
        given.append([])
        found.reduced(_noting(given[-1], ranks), rank=rank, world_size=ranks)
    sums = [torch.stack(tensors).sum(0) for tensors in zip(*given, strict=True)]
    results = []
    for rank, found in enumerate(filled):
        calls = iter(sums)
        results.append(
            found.reduced(lambda tensor, calls=calls: tensor.copy_(next(calls)), rank=rank, world_size=ranks)
        )
    assert results[0] == results[1] == results[2]
    _same(results[0], _by_hand(*scores, 8))


def _noting(given: list[Tensor], ranks: int) -> Callable[[Tensor], Tensor]:
    def note(tensor: Tensor) -> Tensor:
        given.append(tensor.clone())
        return tensor.fill_(ranks) if len(given) == 1 else tensor

    return note


def test_a_wrong_number_of_ranks_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="world_size is 1"):
        EvalInspection(3, CPU).reduced(lambda tensor: tensor.mul_(2))


def test_it_works_under_inference_mode_and_is_asked_outside() -> None:
    scores = _scores(50, 4)
    with torch.inference_mode():
        found = EvalInspection(4, CPU, 3)
        _fill(found, *scores)
    _same(found.reduced(), _by_hand(*scores, 3))


def test_a_loss_that_is_no_number_is_the_worst_and_nothing_seen_gives_nothing() -> None:
    found = EvalInspection(3, CPU, 2)
    assert found.reduced() == Inspection([], [], [], Confusion([], []))
    logits = torch.tensor([[9.0, 0.0, 0.0], [torch.nan, 0.0, 0.0], [0.0, 2.0, 0.0]])
    found.add(logits, torch.tensor([1, 2, 1]), torch.tensor([5, 6, 7]))
    worst = found.reduced().worst
    assert [(row.sample_id, row.loss) for row in worst] == [(6, np.inf), (5, pytest.approx(9.0, abs=1e-3))]
    assert all(np.isfinite(row.probability) for row in worst)


def test_too_many_classes_have_accuracies_but_no_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "MAX_CONFUSION_CLASSES", 9)
    scores = _scores(200, 10)
    found = EvalInspection(10, CPU, 4)
    _fill(found, *scores)
    result, expected = found.reduced(), _by_hand(*scores, 4)
    assert result.confused == []
    assert result.confusion == Confusion([], [])
    assert [astuple(row) for row in result.lowest] == expected["lowest"]


def _jpeg(width: int, height: int, mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    Image.new(mode, (width, height), 90 if mode == "L" else None).save(out, "JPEG" if mode != "RGBA" else "PNG")
    return out.getvalue()


def test_the_worst_images_are_small_pictures_with_names(tmp_path: Path) -> None:
    files = {0: _jpeg(1000, 400), 1: b"no image", 2: _jpeg(40, 30, "L"), 3: _jpeg(30, 500, "RGBA"), 4: _jpeg(9, 9)[:60]}

    def image_bytes(sample_id: int) -> bytes:
        if sample_id == 5:
            raise OSError("the shard is gone")
        return files[sample_id]

    rows = [WorstImage(i, np.inf if i == 0 else 9.0 - i, 0, i % 2, probability=0.5) for i in range(6)]
    confused = ConfusedPair(label=1, prediction=0, count=3, share=0.25)
    found = Inspection(rows, [confused], [ClassAccuracy(label=1, accuracy=0.5, num_images=12)], Confusion([], []))
    (tmp_path / "worst").mkdir()
    (tmp_path / "worst" / "of-before.jpg").write_bytes(b"")
    paths = write_worst(tmp_path, found, image_bytes, ["cat", "dög"], lambda i: f"val/{i}.JPEG")

    assert [path is not None for path in paths] == [True, False, True, True, False, False]
    assert {path.name for path in (tmp_path / "worst").iterdir()} == {path.name for path in paths if path}
    sizes = [Image.open(path).size for path in paths if path]
    assert sizes == [(256, 102), (40, 30), (15, 256)]
    assert all(Image.open(path).mode == "RGB" for path in paths if path)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    written = json.loads((tmp_path / "worst.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert [row["file"] for row in written["worst"]] == [f"worst/{p.name}" if p else None for p in paths]
    assert [row["loss"] for row in written["worst"]] == [None, 8.0, 7.0, 6.0, 5.0, 4.0]
    assert written["worst"][1]["label_name"] == "cat"
    assert written["worst"][1]["prediction_name"] == "dög"
    assert written["worst"][1]["source"] == "val/1.JPEG"
    names = [
        "sample_id",
        "loss",
        "label",
        "prediction",
        "probability",
        "label_name",
        "prediction_name",
        "file",
        "source",
    ]
    assert [list(row) for row in written["worst"]] == [names] * len(rows)
    pair = {"label": 1, "prediction": 0, "count": 3, "share": 0.25, "label_name": "dög", "prediction_name": "cat"}
    assert written["confused"] == [pair]
    assert written["lowest"] == [{"label": 1, "accuracy": 0.5, "num_images": 12, "label_name": "dög"}]
