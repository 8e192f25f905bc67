"""Metrics, their trackers and sheets: the values that are written, and those that are not."""

import io
import json
import math
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from penstock.recipes import hardware
from penstock.training.digest import sample_digest
from penstock.training.metrics import MetricsLog, read_metrics
from penstock.training.sheet import draw_confusion, draw_sheet
from penstock.training.step_log import StepLog


def _lines(run_dir: Path) -> list[dict]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    text = (run_dir / "metrics.jsonl").read_text()
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def test_metrics_are_json_lines_with_kind_first(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        log.write("epoch", epoch=0, loss=math.nan, best=-math.inf)
        log.step(step=1, epoch=0, position=8, loss=2.5, lr=0.1, images_per_s=10.0, data_wait=0.0)
        # Flushed at each write: a killed run keeps its lines.
        lines = _lines(tmp_path)
    assert lines[0] == {"kind": "epoch", "epoch": 0, "loss": None, "best": None}
    assert next(iter(lines[1])) == "kind"
    assert lines[1]["kind"] == "step"
    assert lines[1]["loss"] == 2.5
    with MetricsLog(tmp_path) as log:
        log.eval(step=2, epoch=0, position=16, top1=0.5, top5=0.9, loss=1.0, num_images=10)
    assert [line["kind"] for line in _lines(tmp_path)] == ["epoch", "step", "eval"]


def test_tensorboard_has_the_scalars(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with MetricsLog(tmp_path) as log:
        for step in range(3):
            log.step(step=step, epoch=0, position=0, loss=2.0 - step, lr=0.1, images_per_s=1.0, data_wait=0.0)
        log.eval(step=2, epoch=0, position=0, top1=0.5, top5=0.9, loss=1.0, num_images=10)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(0, 2.0), (1, 1.0), (2, 0.0)]
    assert {"train/lr", "train/images_per_s", "train/data_wait", "val/top1"} <= set(events.Tags()["scalars"])
    assert "train/step" not in events.Tags()["scalars"]


def test_disabled_metrics_leave_no_trace(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "run", enabled=False) as log:
        log.step(step=1, loss=1.0)
    assert not (tmp_path / "run").exists()


def test_a_line_that_a_kill_cut_off_spoils_no_other(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        log.write("epoch", epoch=0, loss=math.nan)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": ["step"]}\n{"epoch": 7}\n{"kind": "st')
    with MetricsLog(tmp_path) as log:
        log.write("epoch", epoch=1)
    lines = read_metrics(tmp_path)
    assert [line["epoch"] for line in lines] == [0, 1]
    assert math.isnan(lines[0]["loss"])


def test_reading_metrics_of_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"metrics.jsonl: no such file"):
        read_metrics(tmp_path)


def flushed_from(log: StepLog) -> list[dict]:
    log.close()
    return log.take()


def _slow_batches(num: int, wait_s: float) -> Iterator[int]:
    for i in range(num):
        time.sleep(wait_s)
        yield i


def test_step_log() -> None:
    log = StepLog(4, device=torch.device("cpu"))
    log.restart(global_batch_size=32, epoch_digest=0)
    flushed: list[dict] = []
    for i in log.timed(_slow_batches(6, 0.02)):
        time.sleep(0.02)  # the step
        log.add(step=i, epoch=1, position=32 * i, loss=torch.tensor(float(i), requires_grad=True), lr=0.1 * i)
        if log.is_full:
            flushed += flushed_from(log)
    flushed += flushed_from(log)
    assert [(f["step"], f["loss"], f["position"]) for f in flushed] == [(i, float(i), 32 * i) for i in range(6)]
    assert [f["lr"] for f in flushed] == [0.1 * i for i in range(6)]
    for f in flushed:
        assert 0.35 < f["data_wait"] < 0.65
        # 32 images in 40 ms, as far as a busy machine lets it sleep exactly.
        assert 32 / 0.08 < f["images_per_s"] <= 32 / 0.04
    assert flushed_from(log) == []
    assert log.total_wait_s / log.total_s == pytest.approx(0.5, abs=0.15)


def test_step_log_tells_of_an_interval_while_the_next_one_runs() -> None:
    """On a GPU an interval is taken when the next one has been made: what `add` writes then must not change it."""
    log = StepLog(2, device=torch.device("cpu"))
    log.restart(global_batch_size=4, epoch_digest=0)
    told = []
    for step in range(6):
        log.add(step=step, epoch=0, position=0, loss=torch.tensor(float(step)), lr=0.1)
        if log.is_full:
            told.append(log.take())
            log.close()
            assert log.num_steps == 0
    told += [log.take(), log.take()]
    assert [[line["loss"] for line in lines] for lines in told] == [[], [0, 1], [2, 3], [4, 5], []]


def test_step_log_means_over_ranks_and_leaves_time_out_after_a_restart() -> None:
    log = StepLog(2, device=torch.device("cpu"), world_size=2, sum_over_ranks=lambda t: t.add_(5))
    log.restart(global_batch_size=100, epoch_digest=0)
    time.sleep(0.05)
    log.restart(global_batch_size=1, epoch_digest=0)
    for step, loss in enumerate((1.0, 2.0)):
        log.add(step=step, epoch=0, position=0, loss=torch.tensor(loss), lr=0.0)
    flushed = flushed_from(log)
    assert [f["loss"] for f in flushed] == [3.0, 3.5]
    assert flushed[0]["images_per_s"] > 2 / 0.05


def test_step_log_tells_the_samples_on_any_number_of_ranks() -> None:
    def samples(*ranks: list[list[int]]) -> str:
        """The digest of one step; each rank's list has one entry for each of its batches."""
        total = torch.zeros(1, dtype=torch.int64)
        for batches in ranks:
            log = StepLog(1, device=torch.device("cpu"), sum_over_ranks=_adder(total))
            log.restart(global_batch_size=1, epoch_digest=0)
            ids = [torch.tensor(batch) for batch in batches]
            log.add(step=0, epoch=0, position=0, loss=torch.tensor(0.0), lr=0.0, sample_ids=ids)
            digest = flushed_from(log)[0]["samples"]
        return digest

    whole = samples([[0, 5, 9, 1281166]])
    assert whole == samples([[9, 0], [1281166, 5]]) == samples([[9, 0]], [[1281166, 5]])
    assert len({whole, samples([[0, 5, 9]]), samples([[0, 5, 9, 1281165]]), samples([[0, 5, 9, 9]])}) == 4


def _adder(total: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """A reduction that adds the integer tensors it is given, one call a rank, to `total`."""
    return lambda tensor: tensor if tensor.is_floating_point() else total.add_(tensor)


def test_the_epochs_digest_goes_on_after_a_resume_and_tells_the_set_of_samples() -> None:
    def digest(batches: list[list[int]], before: int = 0, capacity: int = 2) -> int:
        log = StepLog(capacity, device=torch.device("cpu"))
        log.restart(global_batch_size=1, epoch_digest=before)
        for step, ids in enumerate(batches):
            tensors = [torch.tensor(ids)]
            log.add(step=step, epoch=3, position=step, loss=torch.tensor(0.0), lr=0.0, sample_ids=tensors)
            if log.is_full:
                flushed_from(log)
        flushed_from(log)
        return log.epoch_digest

    epoch = [[4, 9], [0, 7], [1281166, 3], [5, 6], [2, 8]]
    whole = digest(epoch)
    assert 0 <= whole < 2**63
    assert whole == digest(epoch[2:], before=digest(epoch[:2])) == digest(epoch[::-1], capacity=3)
    assert whole == sample_digest(np.array([i for ids in epoch for i in ids]))
    assert whole != digest(epoch[1:])
    assert digest([*epoch, [4]]) != whole


def test_step_log_keeps_what_is_no_number_and_the_gradients_norm() -> None:
    log = StepLog(4, device=torch.device("cpu"))
    log.restart(global_batch_size=1, epoch_digest=0)
    losses, norms = (1.0, math.nan, math.inf), (0.5, math.inf, 2.0)
    for step, (loss, norm) in enumerate(zip(losses, norms, strict=True)):
        fields = {"loss": torch.tensor(loss), "grad_norm": torch.tensor(norm)}
        log.add(step=step, epoch=0, position=0, lr=0.0, **fields)
    flushed = flushed_from(log)
    np.testing.assert_array_equal([line["loss"] for line in flushed], losses)
    assert [line["grad_norm"] for line in flushed] == list(norms)
    log.add(step=3, epoch=0, position=0, lr=0.0, loss=torch.tensor(1.0))
    assert not {"grad_norm", "gpu_memory_gb"} & set(flushed_from(log)[0])


def _write_validation(log: MetricsLog) -> None:
    ema = {"ema_top1": 0.6, "ema_top5": 0.95, "ema_loss": 0.9}
    log.eval(step=7, epoch=1, position=0, top1=0.5, top5=0.9, loss=1.0, num_images=10, **ema)
    log.eval(kind="test", step=8, epoch=1, position=0, top1=0.25, top5=0.5, loss=math.nan, num_images=4)


def test_validation_and_test_have_groups_of_their_own(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with MetricsLog(tmp_path) as log:
        _write_validation(log)
        log.images("val/worst", np.zeros((3, 20, 30, 3), dtype=np.uint8), ["a", "b", "c"], step=7)
        log.images("val/none", [], [], step=7)
    lines = _lines(tmp_path)
    assert [line["kind"] for line in lines] == ["eval", "test"]
    assert lines[0]["ema_top1"] == 0.6
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("test/top1")] == [(8, 0.25)]
    assert [(e.step, pytest.approx(0.95)) for e in events.Scalars("val/ema_top5")] == [(7, pytest.approx(0.95))]
    assert events.Tags()["images"] == ["val/worst"]
    (event,) = events.Images("val/worst")
    assert event.step == 7
    assert Image.open(io.BytesIO(event.encoded_image_string)).size == (event.width, event.height) == (504, 204)


class _Wandb(types.ModuleType):
    """A stand-in for the used part of the package. It records its arguments."""

    class Error(Exception):
        pass

    def __init__(self, problem: str = "") -> None:
        super().__init__("wandb")
        self.problem, self.inits, self.logged, self.finished = problem, [], [], []
        self.metrics: list[tuple] = []

    def init(self, **arguments: Any) -> "_Wandb":
        if self.problem:
            raise self.Error(self.problem)
        self.inits.append(arguments)
        return self

    def define_metric(self, name: str, step_metric: str) -> None:
        self.metrics.append((name, step_metric))

    def log(self, values: dict) -> None:
        self.logged.append(values)

    def finish(self, exit_code: int) -> None:
        self.finished.append(exit_code)

    @staticmethod
    def Image(data: np.ndarray) -> tuple:
        return data.shape, data.dtype


def test_wandb_gets_the_same_scalars_and_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = _Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    run_dir = tmp_path / "tiny-1"
    run_dir.mkdir()
    (run_dir / "config.toml").write_text("[train]\nseed = 3\n")
    with MetricsLog(run_dir, wandb="pets") as log:
        log.step(step=4, epoch=0, position=8, loss=2.5, lr=0.1, samples="ab")
        _write_validation(log)
        log.images("val/worst", [np.zeros((20, 30, 3), dtype=np.uint8)], ["a"], step=7)
    (start,) = wandb.inits
    assert start["project"] == "pets"
    assert start["name"] == "tiny-1"
    assert start["dir"] == run_dir
    assert start["config"] == {"train": {"seed": 3}}
    assert wandb.metrics == [("*", "step")]
    assert wandb.logged[0] == {"train/loss": 2.5, "train/lr": 0.1, "step": 4}
    assert wandb.logged[1]["val/ema_top1"] == 0.6
    assert wandb.logged[2]["test/top1"] == 0.25
    assert wandb.logged[3] == {"val/worst": ((204, 172, 3), np.dtype(np.uint8)), "step": 7}
    assert wandb.finished == [0]

    with pytest.raises(KeyboardInterrupt), MetricsLog(run_dir, wandb="pets"):  # resumed, and stopped
        raise KeyboardInterrupt
    assert wandb.inits[1]["id"] == start["id"]
    assert wandb.inits[1]["resume"] == "allow"
    assert wandb.finished == [0, 1]


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (None, "train.wandb: the package wandb is not installed. Install it: uv pip install wandb"),
        (_Wandb("no API key\nconfigured"), "train.wandb = 'pets': no API key configured. Run `wandb login` or set"),
    ],
)
def test_wandb_that_cannot_be_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: types.ModuleType | None, message: str
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", module)
    with pytest.raises(ValueError, match=r"train\.wandb") as error:
        MetricsLog(tmp_path, wandb="pets")
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_who_logs_nothing_starts_no_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with MetricsLog(tmp_path / "run", enabled=False, wandb="pets") as log:
        _write_validation(log)
        log.images("val/worst", [np.zeros((2, 2, 3), dtype=np.uint8)], ["a"], step=7)
    assert not (tmp_path / "run").exists()


def test_a_sheet_has_every_image_in_its_cell() -> None:
    colours = np.random.default_rng(0).integers(0, 256, (11, 3), dtype=np.uint8)
    images = [np.broadcast_to(colour, (30 + 9 * i, 90, 3)) for i, colour in enumerate(colours)]
    sheet = draw_sheet(images, [""] * 11, columns=4, cell=50)
    assert sheet.dtype == np.uint8
    assert sheet.shape == (3 * 88 + 6, 4 * 56 + 6, 3)
    for i, colour in enumerate(colours):
        y, x = 6 + i // 4 * 88, 6 + i % 4 * 56
        cell = sheet[y : y + 50, x : x + 50]
        assert (cell[25, 25] == colour).all()
        drawn = (cell == colour).all(2)
        width, height = drawn.any(0).sum(), drawn.any(1).sum()
        assert max(width, height) == 50
        assert width / height == pytest.approx(90 / (30 + 9 * i), rel=0.04)
    assert (sheet[-6:] == 255).all()


def test_a_sheet_takes_arrays_and_files(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    files = [tmp_path / f"{i}.png" for i in range(4)]
    for image, file in zip(images, files, strict=True):
        Image.fromarray(image).save(file)
    expected = draw_sheet(images, list("abcd"))
    for other in (list(images), files):
        np.testing.assert_array_equal(draw_sheet(other, list("abcd")), expected)


def test_captions_are_drawn_below_and_stay_in_their_cell() -> None:
    images = np.zeros((2, 8, 8, 3), dtype=np.uint8)
    bare, long = draw_sheet(images, ["", ""], cell=60), draw_sheet(images, ["w" * 99 + "\n" + "m" * 99, ""], cell=60)
    rows, columns = np.nonzero((bare != long).any(2))
    assert 66 <= rows.min() < 82 <= rows.max() < 98  # two lines
    assert 6 <= columns.min() < columns.max() < 66


@pytest.mark.parametrize(
    ("images", "captions"), [(np.zeros((2, 8, 8, 3), np.uint8), ["a"]), (np.zeros((1, 8, 8, 3), np.float32), ["a"])]
)
def test_a_sheet_of_what_it_cannot_show_is_an_error(images: np.ndarray, captions: list[str]) -> None:
    with pytest.raises(ValueError, match="expected"):
        draw_sheet(images, captions)


def test_the_confusion_is_a_picture_with_colour_off_the_diagonal() -> None:
    sheet = draw_confusion([[50, 0], [9, 40]], [r"$\nothing$", "c"])
    without = draw_confusion([[50, 0], [0, 40]], [r"$\nothing$", "c"])
    assert sheet.dtype == np.uint8

    def coloured(picture: np.ndarray) -> float:
        return float(((picture[..., 0] > 90) & (picture[..., 2] < 60)).mean())

    assert coloured(sheet) > 0.01
    assert coloured(without) == 0


@pytest.mark.parametrize(("text", "cores"), [("max 100000", None), ("150000 100000", 1.5), ("odd", None)])
def test_cgroup_quota(tmp_path: Path, text: str, cores: float | None) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert hardware._quota_cores(tmp_path) == cores
