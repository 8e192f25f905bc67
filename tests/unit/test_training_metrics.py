"""Metrics, progress, report and environment: what is written, and what is not."""

import io
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console

from training import environment, report
from training.metrics import MetricsLog, StepLog, read_metrics
from training.progress import Progress, _bar_line


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
        file.write('{"kind": "st')
    with MetricsLog(tmp_path) as log:
        log.write("epoch", epoch=1)
    lines = read_metrics(tmp_path)
    assert [line["epoch"] for line in lines] == [0, 1]
    assert math.isnan(lines[0]["loss"])


def test_reading_metrics_of_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"metrics.jsonl: no such file"):
        read_metrics(tmp_path)


def _slow_batches(num: int, wait_s: float) -> Iterator[int]:
    for i in range(num):
        time.sleep(wait_s)
        yield i


def test_step_log() -> None:
    log = StepLog(4, global_batch_size=32, device=torch.device("cpu"))
    flushed: list[dict] = []
    for i in log.timed(_slow_batches(6, 0.02)):
        time.sleep(0.02)  # the step
        log.add(step=i, epoch=1, position=32 * i, loss=torch.tensor(float(i), requires_grad=True), lr=0.1 * i)
        if log.is_full:
            flushed += log.flush()
    flushed += log.flush()
    assert [(f["step"], f["loss"], f["position"]) for f in flushed] == [(i, float(i), 32 * i) for i in range(6)]
    assert [f["lr"] for f in flushed] == [0.1 * i for i in range(6)]
    for f in flushed:
        assert 0.35 < f["data_wait"] < 0.65
        # 32 images in 40 ms, as far as a busy machine lets it sleep exactly.
        assert 32 / 0.08 < f["images_per_s"] <= 32 / 0.04
    assert log.flush() == []
    assert log.total_wait_s / log.total_s == pytest.approx(0.5, abs=0.15)


def test_step_log_means_over_ranks_and_leaves_time_out_after_a_restart() -> None:
    log = StepLog(2, global_batch_size=1, device=torch.device("cpu"), world_size=2, sum_over_ranks=lambda t: t.add_(5))
    time.sleep(0.05)
    log.restart()
    for step, loss in enumerate((1.0, 2.0)):
        log.add(step=step, epoch=0, position=0, loss=torch.tensor(loss), lr=0.0)
    flushed = log.flush()
    assert [f["loss"] for f in flushed] == [3.0, 3.5]
    assert flushed[0]["images_per_s"] > 2 / 0.05


def test_step_log_tells_the_samples_on_any_number_of_ranks() -> None:
    def samples(*ranks: list[list[int]]) -> str:
        """The digest of one step; each rank's list has one entry for each of its batches."""
        total = torch.zeros(1, dtype=torch.int64)
        for batches in ranks:
            log = StepLog(1, global_batch_size=1, device=torch.device("cpu"), sum_over_ranks=_adder(total))
            ids = [torch.tensor(batch) for batch in batches]
            log.add(step=0, epoch=0, position=0, loss=torch.tensor(0.0), lr=0.0, sample_ids=ids)
            digest = log.flush()[0]["samples"]
        return digest

    whole = samples([[0, 5, 9, 1281166]])
    assert whole == samples([[9, 0], [1281166, 5]]) == samples([[9, 0]], [[1281166, 5]])
    assert len({whole, samples([[0, 5, 9]]), samples([[0, 5, 9, 1281165]]), samples([[0, 5, 9, 9]])}) == 4


def _adder(total: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """A reduction that adds the integer tensors it is given, one call a rank, to `total`."""
    return lambda tensor: tensor if tensor.is_floating_point() else total.add_(tensor)


def _progress(width: int, terminal: bool, **options: float) -> tuple[Progress, io.StringIO]:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=terminal, highlight=False, color_system=None)
    return Progress(True, 10, num_epochs=2, console=console, **options), out


def _update(progress: Progress, step: int) -> None:
    progress.update(step=step, epoch=step // 5, loss=1.25, lr=0.1, images_per_s=1234.0, data_wait=0.03)


def test_plain_lines_are_few_and_the_last_step_is_shown() -> None:
    progress, out = _progress(200, terminal=False)
    with progress:
        for step in range(1, 11):
            _update(progress, step)
        progress.print("top-1 0.5")
    lines = out.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("epoch 1/2  step 1/10  1,234 img/s  loss 1.250  wait 3%")
    assert "step 10/10" in lines[1]
    assert "eta 0:00" in lines[1]
    assert lines[2] == "top-1 0.5"


@pytest.mark.parametrize("width", [1, 8, 20, 40, 80, 200])
def test_the_bar_fits_any_terminal(width: int) -> None:
    progress, out = _progress(width, terminal=True)
    with progress:
        for step in range(1, 11):
            _update(progress, step)
        progress.print("kept")
    lines = re.split(r"\n|\r|\x1b\[[^a-zA-Z]*[a-zA-Z]", out.getvalue())
    assert max(len(line) for line in lines) <= width
    assert ("loss 1.250" in out.getvalue()) == (width >= 80)
    assert ("epoch" in out.getvalue()) == (width >= 8)


@pytest.mark.parametrize("width", range(1, 60))
def test_a_narrow_terminal_loses_whole_fields(width: int) -> None:
    fields = ["epoch 1/2", "step 1/10", "loss 1.250", "eta 0:10"]
    line = str(_bar_line(0.5, fields, width))
    assert len(line) <= width
    if width > len(fields[0]):
        shown = line.replace("━", "").split("  ")
        assert [field.strip() for field in shown] == fields[: len(shown)]


def test_disabled_progress_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(False, 10) as progress:
        _update(progress, 1)
        progress.print("text")
    assert capsys.readouterr() == ("", "")


def _write_run(run_dir: Path) -> None:
    with MetricsLog(run_dir) as log:
        for step in (0, 1, 2, 3, 2, 3, 4):  # resumed at 2
            log.write("step", step=step, loss=float(step), lr=0.1, images_per_s=100.0 + step, data_wait=0.1)
        log.write("eval", step=4, top1=0.25, loss=math.nan, num_images=4)


def test_report_is_a_picture(tmp_path: Path) -> None:
    _write_run(tmp_path)
    path = report.write_report(tmp_path)
    assert path == tmp_path / "report.png"
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG")
    assert len(data) > 20_000
    assert not list(tmp_path.glob(".*"))


def test_report_takes_a_redone_step_as_logged_last(tmp_path: Path) -> None:
    lines = [{"kind": "step", "step": s, "loss": loss} for s, loss in ((0, 1.0), (1, 9.0), (1, 2.0), (2, 3.0))]
    assert [line["loss"] for line in report._by_step(lines, "step")] == [1.0, 2.0, 3.0]


def test_report_title(tmp_path: Path) -> None:
    _write_run(tmp_path)
    lines = read_metrics(tmp_path)
    steps, evals = report._by_step(lines, "step"), report._by_step(lines, "eval")
    assert report._title(tmp_path, steps, evals).startswith(tmp_path.name)
    (tmp_path / "config.toml").write_text('name = "tiny"\n')
    assert report._title(tmp_path, steps, evals) == "tiny   ·   top-1 0.2500 at step 4   ·   102 images/s (median)"


def test_report_without_steps_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"kind": "end"}\n')
    with pytest.raises(ValueError, match="nothing to draw"):
        report.write_report(tmp_path)


def test_smoothing_keeps_a_constant_and_passes_over_nan() -> None:
    import numpy as np

    values = np.full(500, 2.0)
    values[100] = np.nan
    np.testing.assert_allclose(report._smooth(values), 2.0)


def test_environment_is_json_and_never_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    described = environment.describe()
    assert json.loads(json.dumps(described))["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert described["cpu_cores"] == len(os.sched_getaffinity(0))
    monkeypatch.setenv("PATH", "")  # no git, no nvidia-smi
    assert environment.describe()["git_commit"] is None


@pytest.mark.parametrize(("text", "cores"), [("max 100000", None), ("150000 100000", 1.5), ("odd", None)])
def test_cgroup_quota(tmp_path: Path, text: str, cores: float | None) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert environment._quota_cores(tmp_path) == cores
