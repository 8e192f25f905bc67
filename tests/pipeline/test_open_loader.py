"""`penstock.open_loader`: the batches equal a hand-made feed's, states resume exactly, errors take one line."""

import logging
import math
import multiprocessing
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import penstock
from penstock.pipeline import dali
from penstock.ranks import Ranks, current_ranks
from penstock.shards.format import ShardSet
from tests.common.feeds import JITTER, SIZE, make_loader

ROOT = Path(__file__).parents[2]
OPEN: dict[str, Any] = {"batch_size": 24, "image_size": SIZE, "seed": 3, "augment": JITTER, "threads": 1}
NUM_TRAIN, NUM_VAL = 90, 19


def rows(batches: Iterable[penstock.Batch]) -> dict[int, torch.Tensor]:
    """Sample id → its image."""
    return {
        int(sample_id): image
        for images, _, ids in batches
        for sample_id, image in zip(ids, images.clone(), strict=True)
    }


def same(a: dict[int, torch.Tensor], b: dict[int, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[sample_id], b[sample_id]) for sample_id in a)


def test_batches_are_those_of_a_feed_made_by_hand(dataset_dir: Path) -> None:
    ours = penstock.open_loader(dataset_dir, **OPEN)
    theirs = make_loader(ShardSet.open(dataset_dir), augment=JITTER, batch_size=24, threads=1)
    assert len(ours) == len(theirs) == 3
    for epoch in range(2):  # each `iter` is the next epoch
        for (images, labels, ids), batch in zip(ours, theirs.iter_epoch(epoch), strict=True):
            assert torch.equal(images, batch.images)
            assert torch.equal(labels, batch.labels)
            assert torch.equal(ids, batch.sample_ids)
    assert (ours.epoch, len(ours.dataset), ours.classes) == (2, NUM_TRAIN, ["class0", "class1", "class2"])


def test_evaluation_has_each_image_once_whatever_the_ranks(dataset_dir: Path) -> None:
    whole = penstock.open_loader(dataset_dir, "val", batch_size=5, image_size=SIZE)
    assert len(whole) == math.ceil(NUM_VAL / 5)
    expected = rows(whole)
    assert sorted(expected) == list(range(NUM_VAL))
    shared = [
        penstock.open_loader(dataset_dir, "val", batch_size=5, image_size=SIZE, rank=r, world_size=3) for r in range(3)
    ]
    found = [rows(loader) for loader in shared]
    assert sum(map(len, found)) == NUM_VAL
    assert same(found[0] | found[1] | found[2], expected)


@pytest.mark.parametrize(("steps", "ranks"), [(0, 2), (1, 1), (1, 2), (2, 3), (3, 2)])
def test_a_state_goes_on_exactly_on_another_number_of_ranks(dataset_dir: Path, steps: int, ranks: int) -> None:
    undisturbed = penstock.open_loader(dataset_dir, **OPEN)
    expected = [rows([batch]) for batch in [*undisturbed, *undisturbed]]
    stopped = penstock.open_loader(dataset_dir, **OPEN)
    under_way = list(islice(stopped, steps))
    assert len(under_way) == steps
    state = stopped.state_dict()
    found: list[dict[int, torch.Tensor]] = []
    for rank in range(ranks):
        options = OPEN | {"batch_size": 24 // ranks, "rank": rank, "world_size": ranks}
        loader = penstock.open_loader(dataset_dir, **options)
        loader.load_state_dict(state)
        loader.set_epoch(loader.epoch)  # as many loops do; what is left of the epoch stays
        rest = [rows([batch]) for batch in [*loader, *(loader if steps < 3 else ())]]
        found = found or [{} for _ in rest]
        for all_ranks, one in zip(found, rest, strict=True):
            all_ranks |= one
    assert len(found) == 6 - steps
    assert all(map(same, found, expected[steps:]))


def test_where_an_epoch_begins(dataset_dir: Path) -> None:
    loader = penstock.open_loader(dataset_dir, **OPEN)
    first = [next(iter(loader)).sample_ids.tolist() for _ in range(2)]  # left in the midst: on to the next epoch
    assert first[0] != first[1]
    assert loader.state_dict()["position"] == 24
    loader.set_epoch(0)
    assert next(iter(loader)).sample_ids.tolist() == first[0]
    loader.set_epoch(5)
    assert (loader.state_dict()["epoch"], loader.state_dict()["position"]) == (5, 0)
    batches = iter(loader)
    assert [next(batches).epoch for _ in range(3)] == [5, 5, 5]
    assert (loader.state_dict()["epoch"], loader.state_dict()["position"]) == (6, 0)  # before it says that it is over
    assert next(batches, None) is None
    with pytest.raises(ValueError, match="epoch: -1 must be an integer"):
        loader.set_epoch(-1)


def test_two_passes_at_once_are_refused(dataset_dir: Path) -> None:
    loader = penstock.open_loader(dataset_dir, **OPEN)
    first, second = iter(loader), iter(loader)
    next(first), next(second)
    with pytest.raises(ValueError, match="this pass over the loader has ended: another began"):
        next(first)


def test_ranks_that_start_after_it_was_opened(dataset_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning starts its processes in `fit`, when the loader is there already."""
    loader = penstock.open_loader(dataset_dir, **OPEN | {"batch_size": 12})
    assert len(loader) == NUM_TRAIN // 12
    monkeypatch.setattr("penstock.loader.current_ranks", lambda: Ranks(1, 2, 1, 2))
    assert len(loader) == NUM_TRAIN // 24
    second = penstock.open_loader(dataset_dir, **OPEN | {"batch_size": 12, "rank": 1, "world_size": 2})
    assert same(rows(loader), rows(second))


def test_the_environment_says_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": 5, "WORLD_SIZE": 8, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 4}.items():
        monkeypatch.setenv(name, str(value))
    assert current_ranks() == Ranks(5, 8, 1, 4)
    monkeypatch.delenv("RANK")  # another launcher's half
    assert current_ranks()[:2] == (0, 1)
    monkeypatch.setenv("RANK", "one")
    with pytest.raises(ValueError, match="RANK=one: not a number"):
        current_ranks()


def test_mixed_labels_are_shares(dataset_dir: Path) -> None:
    loader = penstock.open_loader(dataset_dir, **OPEN | {"augment": penstock.AugmentConfig(mixup=0.2)})
    images, labels, _ = next(iter(loader))
    assert labels.shape == (len(images), 3)
    assert torch.allclose(labels.sum(1), torch.ones(len(images)))


def test_a_batch_moves_and_keeps_its_ids(dataset_dir: Path) -> None:
    batch = next(iter(penstock.open_loader(dataset_dir, **OPEN | {"dtype": "float16"})))
    assert batch.images.dtype == torch.float16
    assert (len(batch), batch[1] is batch.labels) == (3, True)
    moved = batch.to("meta")
    assert [one.device.type for one in moved] == ["meta", "meta", "cpu"]
    assert (moved.epoch, moved.position) == (0, 24)


def test_a_bad_sample_is_one_line_and_stays_out(
    dataset_copy: Path, damage: Callable[[ShardSet, str, int, bytes], None], caplog: pytest.LogCaptureFixture
) -> None:
    damage(ShardSet.open(dataset_copy), "train", 7, b"no JPEG")
    options = OPEN | {"max_bad_fraction": 0.5, "batch_size": 30}
    with caplog.at_level(logging.WARNING, "penstock"):
        loader = penstock.open_loader(dataset_copy, **options)
        places = [(ids == -1).nonzero().tolist() for images, labels, ids in loader]
    assert [line.count("quarantined: ") for line in caplog.messages] == [1]
    assert "train-000000.tar at byte" in caplog.messages[0]
    state = loader.state_dict()
    assert (sum(map(len, places)), state["bad_samples"]) == (1, [7])
    resumed, seen = penstock.open_loader(dataset_copy, **options, on_bad=pytest.fail), []
    resumed.load_state_dict(state)
    seen = [int(sample_id) for _, _, ids in resumed for sample_id in ids]
    assert (seen.count(-1), 7 in seen, len(set(seen))) == (1, False, NUM_TRAIN)


@pytest.mark.parametrize("cache", ["none", "pixels"])
def test_a_pass_ends_where_the_loader_is_closed_or_sent_elsewhere(dataset_dir: Path, cache: str) -> None:
    loader = penstock.open_loader(dataset_dir, **OPEN, cache=cache)
    state = loader.state_dict()
    leaving: list[Callable[[], object]] = [
        loader.close, lambda: loader.set_epoch(7), lambda: loader.load_state_dict(state),
    ]  # fmt: skip
    for leave in leaving:
        batches = iter(loader)
        next(batches)
        leave()
        expected = loader.state_dict()
        with pytest.raises(ValueError, match="this pass over the loader has ended"):
            next(batches)
        assert loader.state_dict() == expected


def test_another_process_opens_it_anew(dataset_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = penstock.open_loader(dataset_dir, **OPEN)
    list(loader)
    copied = pickle.loads(pickle.dumps(loader))  # as another start method than fork sends it
    assert same(rows(copied), rows(loader))
    monkeypatch.setattr("penstock.loader.os.getpid", lambda: 1)
    with pytest.raises(ValueError, match="the loader was opened before this process was forked; open one here"):
        iter(loader)


def test_presets_with_changes(dataset_dir: Path) -> None:
    values = penstock.AugmentConfig.presets["strong"] | {"mixup": 0.0, "cutmix": 0.0}
    loader = penstock.open_loader(dataset_dir, **OPEN | {"augment": penstock.AugmentConfig(**values)})
    assert next(iter(loader)).labels.dtype == torch.int64
    assert next(iter(penstock.open_loader(dataset_dir, **OPEN | {"augment": "strong"}))).labels.dtype == torch.float32


def test_it_can_be_closed_and_used_again(dataset_dir: Path) -> None:
    with penstock.open_loader(dataset_dir, **OPEN) as loader:
        first = rows(islice(loader, 1))
    loader.set_epoch(0)
    assert same(rows(islice(loader, 1)), first)
    loader.close()
    loader.close()


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "split": ({"split": "vall"}, "no split 'vall'; it has train, val"),
    "size": ({"image_size": 0}, "image_size: 0 must be an integer of at least 1"),
    "size's type": ({"image_size": "big"}, "image_size: 'big' must be an integer of at least 1"),
    "resize": ({"resize_size": 10}, "resize_size: 10 must be at least image_size, 40"),
    "batch": ({"batch_size": 91}, "batch_size: 91 on 1 rank\\(s\\) is more than the 90 samples"),
    "batch's type": ({"batch_size": 2.0}, "batch_size: 2.0 must be an integer of at least 1"),
    "seed": ({"seed": -1}, "seed: -1 must be an integer of at least 0"),
    "dtype": ({"dtype": torch.int8}, "dtype: images are float32 or float16, not torch.int8"),
    "augment's type": ({"augment": {"mixup": 0.2}}, "augment: {'mixup': 0.2} is not a .* penstock.AugmentConfig"),
    "preset unfilled": (
        {"augment": penstock.AugmentConfig(preset="strong")},
        'augment: AugmentConfig\\(preset="strong"\\) has no effect; give augment="strong"',
    ),
    "preset unknown": ({"augment": penstock.AugmentConfig(preset="lite")}, "augment: 'lite' is not a preset;"),
    "callback": ({"on_bad": "log"}, "on_bad: 'log' is not callable"),
    "large seed": ({"seed": 1 << 64}, "seed: 18446744073709551616 must be below 2\\^64"),
    "time-out": ({"store_timeout_s": "3"}, "open_loader: store_timeout_s = '3': expected a number"),
    "preset": ({"augment": "lite"}, "augment: 'lite' is not a preset; give one of none, light, medium, strong"),
    "repeats": ({"augment": penstock.AugmentConfig(repeats=5)}, "augment.repeats: 5 does not divide 24"),
    "device": ({"device": "tpu"}, "device: 'tpu': give auto, cpu, cuda or cuda:N"),
    "other device": ({"device": "meta"}, "device: 'meta': images are made on the CPU or on CUDA"),
    "GPU": ({"device": "cuda:77"}, r"device: cuda:77: torch sees \d+ GPU\(s\)"),
    "rank alone": ({"rank": 1}, "rank and world_size: give both or neither"),
    "rank": ({"rank": 2, "world_size": 2}, "rank: 2 of world_size 2: ranks count from 0"),
    "setting": ({"chache": "pixels"}, "chache: open_loader has no such argument; did you mean cache?"),
    "setting of a run": ({"val_split": "val"}, "val_split: open_loader has no such argument"),
    "setting's value": ({"cache": "disk"}, "open_loader: cache = 'disk': expected one of 'none', 'encoded', 'pixels'"),
    "unit": ({"mean": (0.485, 0.456, 0.406)}, "mean: .* not in grey levels"),
    "order": ({"order": "shuffled"}, "open_loader: order = 'shuffled': expected one of"),
    "loader": ({"loader": "webdataset"}, "open_loader: loader = 'webdataset': expected one of"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_wrong_arguments_are_one_line(dataset_dir: Path, what: str) -> None:
    options, message = WRONG[what]
    with pytest.raises(ValueError, match=message) as caught:
        penstock.open_loader(dataset_dir, **OPEN | options)
    assert "\n" not in str(caught.value)


def test_numpys_integers_are_integers(dataset_dir: Path) -> None:
    given = {name: np.int64(value) for name, value in {"batch_size": 24, "image_size": SIZE, "seed": 3}.items()}
    mean = np.array([123.0, 116.0, 103.0])
    loader = penstock.open_loader(dataset_dir, **OPEN | given, rank=np.int32(0), world_size=np.int32(2), mean=mean)
    loader.set_epoch(np.int64(4))
    state = loader.state_dict()
    assert (state["epoch"], state["seed"]) == (4, 3)
    assert all(type(value) is not np.int64 for value in state.values())


def test_no_dataset_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no packed dataset here"):
        penstock.open_loader(tmp_path, batch_size=2)


def test_a_split_of_unknown_purpose_must_say_it(mixed_dir: Path, dataset_copy: Path) -> None:
    text = (dataset_copy / "dataset.json").read_text().replace('"val"', '"holdout"')
    for file in dataset_copy.glob("val*"):
        file.rename(file.with_name(file.name.replace("val", "holdout")))
    (dataset_copy / "dataset.json").write_text(text.replace("val-", "holdout-").replace("val.", "holdout."))
    with pytest.raises(ValueError, match=r"augment: .auto. does not support split 'holdout'"):
        penstock.open_loader(dataset_copy, "holdout", batch_size=2)
    assert len(penstock.open_loader(dataset_copy, "holdout", batch_size=2, augment=None)) == 10


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"dataset": "0" * 64},
            "state: from another dataset \\(000000000000…, .* open the dataset with which it was saved",
        ),
        ({"split": "val"}, "state: saved with split 'val', but this loader has 'train'"),
        ({"seed": 4}, "state: saved with seed 4, but this loader has 3"),
        ({"order": "sequential"}, "state: saved with order 'sequential', but this loader has 'global'"),
        ({"training": False}, "state: saved with training False, but this loader has True"),
        ({"epoch": -1}, "state: epoch: -1 must be an integer of at least 0"),
        ({"position": 91}, "state: position 91 is beyond the split's 90 samples"),
        ({"position": "all"}, "state: position: 'all' must be an integer"),
        ({"bad_samples": None}, "state: bad_samples None is not a list of samples, 0 to 89"),
        ({"bad_samples": [90]}, "state: bad_samples \\[90\\] is not a list of samples, 0 to 89"),
    ],
)
def test_a_state_of_something_else(dataset_dir: Path, changed: dict[str, Any], message: str) -> None:
    loader = penstock.open_loader(dataset_dir, **OPEN)
    state = loader.state_dict()
    with pytest.raises(ValueError, match=message):
        loader.load_state_dict(state | changed)
    for nothing in ({}, {"epoch": 1}, [1], None):
        with pytest.raises(ValueError, match="state: not a penstock loader's"):
            loader.load_state_dict(nothing)  # type: ignore[arg-type]
    loader.load_state_dict(state)


def test_a_state_is_plain_data(dataset_dir: Path, tmp_path: Path) -> None:
    state = penstock.open_loader(dataset_dir, **OPEN).state_dict()
    torch.save(state, tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True) == state


def test_repeats_need_the_same_batch(dataset_dir: Path) -> None:
    repeated = penstock.AugmentConfig(repeats=3)
    state = penstock.open_loader(dataset_dir, **OPEN | {"augment": repeated}).state_dict()
    other = penstock.open_loader(dataset_dir, **OPEN | {"augment": repeated, "batch_size": 12})
    with pytest.raises(ValueError, match="saved with 24 images in a batch of all ranks, here 12"):
        other.load_state_dict(state)


def test_without_dali_one_line_says_what_to_do(dataset_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dali, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^DALI is not installed: pip install 'penstock\[cuda13\]' or .*cuda12"):
        penstock.open_loader(dataset_dir, **OPEN)
    monkeypatch.setattr(dali.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(dali.platform, "machine", lambda: "arm64")
    with pytest.raises(ValueError, match="NVIDIA has no DALI for Darwin on arm64"):
        penstock.open_loader(dataset_dir, **OPEN)


LACKING = """
import os, signal, sys
import torch, torchvision.transforms.v2, psutil, PIL.Image, subprocess, multiprocessing.synchronize, tempfile
for module in ("fcntl", "resource", "nvidia", "numba"):
    sys.modules[module] = None
for name in ("sched_getaffinity", "uname", "posix_fadvise", "memfd_create", "getuid", "sysconf"):
    delattr(os, name)
for name in ("SIGBUS", "SIGHUP", "SIGQUIT", "pthread_sigmask"):
    delattr(signal, name)
import penstock
loader = penstock.open_loader(sys.argv[1], batch_size=24, image_size=32, loader="reference", threads=1)
print(sum(len(labels) for _, labels, _ in loader))
"""


@pytest.mark.skipif(multiprocessing.get_start_method() != "fork", reason="the simulation reaches forked workers only")
def test_the_reference_loader_runs_where_windows_and_macos_lack_modules(dataset_dir: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LACKING, dataset_dir], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("72\n", 0), done.stderr
