"""`bench.py peers`: the output that its checks accept and refuse, its table, and its files."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torchvision.transforms.v2 import RandomResizedCrop

from penstock.benchmarks import peers, record
from penstock.benchmarks.measure import Ratio
from penstock.benchmarks.peers import check, command, environments, images, process
from penstock.benchmarks.peers.registry import OURS, PEERS

SIDE = 32
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
SOURCES = [Image.fromarray(check.marked_image(label)) for label in range(check.NUM_MARKED)]

# --- what a crop is, seen from its colours


def cut(label: int, left: float, top: float, width: float, height: float, flip: bool = False) -> np.ndarray:
    """(3, SIDE, SIDE) float32, normalised: a region in pixels of a marked image, resized by PIL."""
    box = (left, top, left + width, top + height)
    pixels = np.asarray(SOURCES[label].resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=box), dtype=np.float32)
    pixels = pixels[:, ::-1] if flip else pixels
    return ((pixels - MEAN) / STD).transpose(2, 0, 1).astype(np.float32)


def seen(images: np.ndarray, labels: np.ndarray | None = None) -> check.Seen:
    """One batch, described."""
    job = SimpleNamespace(batch_size=len(images), image_size=images.shape[-1], mean=MEAN, std=STD)
    labels = np.zeros(len(images), np.int64) if labels is None else labels
    return check.describe([(images, labels)], len(images), job)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    "box", [(0, 0, 320, 240), (10, 20, 200, 100), (250, 0, 70, 240), (3, 200, 60, 40), (100.0, 50.0, 20.0, 30.0)]
)
def test_a_crop_is_found_from_its_colours(box: tuple[float, ...], flip: bool) -> None:
    found = seen(cut(5, *box, flip=flip)[None])
    left, top, width, height = np.array(box) / [320, 240, 320, 240]
    assert found["centre from the left"][0] == pytest.approx(left + width / 2, abs=0.01)  # 2.5 grey levels
    assert found["centre from the top"][0] == pytest.approx(top + height / 2, abs=0.01)
    assert found["area"][0] == pytest.approx(width * height, abs=0.01 * (width + height))
    assert found["aspect ratio"][0] == pytest.approx(box[2] / box[3], rel=0.03)
    assert (found["flipped"].tolist(), found["upside down"].tolist()) == ([flip], [False])
    assert found["blue"][0] == pytest.approx(check.blue_of(5), abs=0.5)
    assert found["bent"][0] < 0.03


# --- the checks


def law(num: int, seed: int, scale: tuple[float, float] = (0.08, 1.0), ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flipped: float = 0.5, centred: bool = False) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """(num, 3, SIDE, SIDE) crops drawn by torchvision, each image as often as another, and their labels."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    draw, crops, labels = RandomResizedCrop(SIDE, scale, ratio), [], np.arange(num) % check.NUM_MARKED
    whole = torch.empty(3, check.HEIGHT, check.WIDTH)
    for label in labels:
        box = draw.make_params([whole])
        left, top, width, height = (box[name] for name in ("left", "top", "width", "height"))
        if centred:
            left, top = (check.WIDTH - width) / 2, (check.HEIGHT - height) / 2
        crops.append(cut(int(label), left, top, width, height, rng.random() < flipped))
    return np.stack(crops), labels


NUM = 1000


@pytest.fixture(scope="module")
def expected() -> check.Seen:
    return seen(*law(NUM, seed=1))


def test_the_same_law_passes(expected: check.Seen) -> None:
    assert check.marked_faults(seen(*law(NUM, seed=2)), expected) == []


@pytest.mark.parametrize(
    ("what", "wrong"),
    [
        ("area", {"scale": (0.25, 1.0)}),
        ("aspect ratio", {"ratio": (1 / 2, 2.0)}),
        ("flipped", {"flipped": 0.0}),
        ("centre", {"centred": True}),
    ],
)
def test_another_crop_law_is_refused(what: str, wrong: dict[str, Any], expected: check.Seen) -> None:
    faults = check.marked_faults(seen(*law(NUM, seed=2, **wrong)), expected)
    assert any(what in fault for fault in faults)
    if what != "aspect ratio" and "scale" not in wrong:  # other shapes and larger crops also lie nearer the centre
        assert all(what in fault for fault in faults)


@pytest.mark.parametrize(
    ("what", "spoil"),
    [
        ("blue", lambda images, labels: (images[:, ::-1], labels)),
        ("blue", lambda images, labels: (images / 255, labels)),
        ("blue", lambda images, labels: (images + 0.2, labels)),
        ("wrong label", lambda images, labels: (images, labels[::-1])),
        ("wrong label", lambda images, labels: (images, labels + 1)),
        ("upside down", lambda images, labels: (images[:, :, ::-1], labels)),
        ("colours are", lambda images, labels: (np.roll(images, SIDE // 2, axis=3), labels)),
        ("image 7 appears 0 times", lambda images, labels: (images[labels != 7], labels[labels != 7])),
        ("image 3 appears 7", lambda images, labels: (np.concatenate([images, *[images[labels == 3][:20]] * 2]),
                                                    np.concatenate([labels, [3] * 40]))),
    ],
)  # fmt: skip
def test_other_images_labels_and_epochs_are_refused(what: str, spoil: Callable[..., Any], expected: check.Seen) -> None:
    assert what in check.marked_faults(seen(*spoil(*law(NUM, seed=2))), expected)[0]


def test_a_small_sample_of_the_right_law_passes(expected: check.Seen) -> None:
    """The limits are those of chance, however few crops there are."""
    for seed in range(10):
        assert check.marked_faults(seen(*law(20, seed=10 + seed)), expected) == []


def photographs(num: int, seed: int) -> np.ndarray:
    """(num, 3, 8, 8) normalised images, each with a brightness and a contrast of its own; more red than blue."""
    rng = np.random.default_rng(seed)
    level, contrast = rng.uniform(60, 160, (num, 1, 1, 1)), rng.uniform(20, 60, (num, 1, 1, 1))
    pixels = level + contrast * rng.normal(size=(num, 3, 8, 8)) + np.array([40, 10, -20])[:, None, None]
    normalised = (pixels - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    return np.asarray(normalised, np.float32)


@pytest.mark.parametrize(
    ("what", "spoil"),
    [
        ("red's mean", lambda images: images[:, ::-1]),
        ("mean square", lambda images: images * (np.reshape(STD, (3, 1, 1)) / 127.5)),
        ("mean square", lambda images: images / 255),
        ("mean", lambda images: images + 0.3),
        ("mean square", lambda images: images.clip(-0.5, 0.5)),
    ],
)
def test_other_colours_are_refused(what: str, spoil: Callable[..., Any]) -> None:
    right = seen(photographs(2000, 1))
    assert check.pixel_faults(seen(photographs(2000, 2)), right) == []
    spoilt = np.asarray(spoil(photographs(2000, 2)), np.float32)
    assert any(what in fault for fault in check.pixel_faults(seen(spoilt), right))


GOOD_IMAGES, GOOD_LABELS = np.zeros((4, 3, SIDE, SIDE), np.float32), np.zeros(4, np.int64)


@pytest.mark.parametrize(
    ("what", "images", "labels"),
    [
        ("uint8, not", np.zeros((4, 3, SIDE, SIDE), np.uint8), GOOD_LABELS),
        ("images are", np.zeros((4, SIDE, SIDE, 3), np.float32), GOOD_LABELS),
        ("images are", np.zeros((3, 3, SIDE, SIDE), np.float32), np.zeros(3, np.int64)),  # a last batch that is smaller
        ("NaN or infinite", np.full((4, 3, SIDE, SIDE), np.nan, np.float32), GOOD_LABELS),
        ("labels are", GOOD_IMAGES, np.zeros((4, 10), np.int64)),
        ("labels are", GOOD_IMAGES, np.zeros(4)),
    ],
)
def test_another_form_is_refused(what: str, images: np.ndarray, labels: np.ndarray) -> None:
    """Also of one bad batch among good ones."""
    job = SimpleNamespace(batch_size=4, image_size=SIDE, mean=MEAN, std=STD)
    good = (GOOD_IMAGES, GOOD_LABELS)
    assert len(check.describe([good, good, good, good], 12, job)["label"]) == 12
    with pytest.raises(ValueError, match=what):
        check.describe([good, (images, labels), good], 12, job)


# --- images


def test_an_interrupted_copy_is_made_again_and_a_complete_one_kept(tmp_path: Path) -> None:
    calls = []

    def make(target: Path) -> None:
        assert list(target.iterdir()) == []
        (target / "part").touch()
        calls.append(target)
        if len(calls) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        images.make_once(tmp_path / "copy", make)
    for _ in range(2):
        images.make_once(tmp_path / "copy", make)
    assert len(calls) == 2
    assert (tmp_path / "copy" / "part").exists()


# --- the command


def test_the_table_tells_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record.environment, "describe", dict)  # which starts programs
    monkeypatch.setattr("penstock.benchmarks.text.MAX_COLUMNS", 200)
    monkeypatch.setenv("COLUMNS", "200")
    slow_figures = record.Figures([400, 500, 600], version="1.2", workers=3, memory_mb=1234.5, first_batch_s=2.25,
                                  size_bytes=5_600_000)  # fmt: skip
    result = replace(
        record.build("peers", {}, {}, {}, []),
        programs={"slow": slow_figures, OURS: replace(slow_figures, images_per_s=[1000, 1100, 1200])},
        ratios={f"{OURS} / slow": Ratio(2.2, 2.0, 2.5, 2.0, 2.5)},
        more={
            "skipped": {"ffcv": "its environment does not exist yet. Install it with: …"},
            "failed": {"timm": "its output is wrong: dtype is uint8, not float32"},
        },
    )
    head, ours, slow, *rest = peers.table(result).splitlines()
    assert head.split("  ")[1] == "program"
    assert ours.split() == [OURS, "1.2", "3", "1,100", "[1,000–1,200]", "1", "1,234", "2.2", "5.6"]
    assert slow.split() == ["slow", "1.2", "3", "500", "[400–600]", "2.20", "[2.00–2.50]", "1,234", "2.2", "5.6"]
    assert rest == [
        "  ffcv: skipped: its environment does not exist yet. Install it with: …",
        "  timm: FAILED: its output is wrong: dtype is uint8, not float32",
    ]


def test_every_peer_has_its_files() -> None:
    folder = environments.REQUIREMENTS
    own = {PEERS[name].adapter for name in PEERS if environments.requirements(name)}
    assert {path.stem for path in folder.iterdir()} == own
    used = {peer.adapter for peer in PEERS.values()}
    assert {path.stem for path in process.CHILD.parent.glob("adapters/*.py")} == used | {"shared"}
    for path in folder.iterdir():
        lines = path.read_text().splitlines()
        assert all(">=" in line and "://" not in line and not line.startswith("-") for line in lines), path


@pytest.mark.parametrize(("threads", "tried"), [(1, (1, 2, 3, 4)), (2, (1, 2, 3, 4)), (4, (1, 2, 3, 4)),
                                                (16, (8, 16, 24, 32)), (5, (2, 5, 7, 10))])  # fmt: skip
def test_workers_go_with_the_threads(threads: int, tried: tuple[int, ...]) -> None:
    assert peers.worker_counts(threads) == tried


@pytest.mark.parametrize("value", ["", "0,1", "two", "-1", "1,,2"])
def test_wrong_workers_are_refused(value: str) -> None:
    result = CliRunner().invoke(command, ["--workers", value])
    assert result.exit_code == 2
    assert "is not a list of positive integers" in result.output


def test_setup_without_uv_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="uv is not installed"):
        environments.set_up(["ffcv"], tmp_path, print)
