"""The progress bar on terminals of any width, and plain lines without a terminal."""

import io
import re
import time
from typing import Any, NamedTuple

import pytest
from rich.console import Console

from penstock.training.progress import Progress, _bar_line


def _progress(width: int, terminal: bool, **options: float) -> tuple[Progress, io.StringIO]:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=terminal, highlight=False, color_system=None)
    return Progress(True, num_epochs=2, console=console, **options), out


def _update(progress: Progress, step: int, images_per_s: float = 1234.0, **more: Any) -> None:
    line = {"step": step - 1, "epoch": step // 5, "loss": 1.25, "lr": 0.1, "images_per_s": images_per_s}
    progress.update(line | {"data_wait": 0.03}, total_steps=10, **more)


class Feed(NamedTuple):
    num_samples: int
    batch_size: int
    world_size: int


def test_plain_lines_are_few_and_the_last_step_is_shown() -> None:
    progress, out = _progress(200, terminal=False)
    with progress:
        for step in range(1, 11):
            _update(progress, step, remaining_s=75.4)
        progress.print("top-1 0.5")
    lines = out.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("epoch 1/2  step 1/10  1,234 img/s  loss 1.250  data wait 3%")
    assert "step 10/10" in lines[1]
    assert "eta 1:15" in lines[1]
    assert lines[2] == "top-1 0.5"


def test_what_is_decoded_is_told_while_some_is_missing() -> None:
    progress, out = _progress(200, terminal=False)
    with progress:
        _update(progress, 1, decoded=0.347)
        _update(progress, 10)
    first, last = out.getvalue().splitlines()
    assert "  decoded 35%  " in first
    assert "decoded" not in last


@pytest.mark.parametrize("width", [1, 8, 20, 33, 40, 60, 80, 120, 200])
def test_the_bar_fits_any_terminal(width: int) -> None:
    progress, out = _progress(width, terminal=True)
    with progress:
        for step in range(1, 11):
            _update(progress, step)
        progress.print("+")  # the terminal itself wraps what is longer
    lines = re.split(r"\n|\r|\x1b\[[^a-zA-Z]*[a-zA-Z]", out.getvalue())
    assert max(len(line) for line in lines) <= width
    assert ("loss 1.250" in out.getvalue()) == (width >= 60)
    assert ("epoch" in out.getvalue()) == (width >= 8)


@pytest.mark.parametrize("width", range(1, 60))
def test_a_narrow_terminal_loses_whole_fields(width: int) -> None:
    fields = ["epoch 1/2", "step 1/10", "loss 1.250", "eta 0:10"]
    line = str(_bar_line(0.5, fields, width))
    assert len(line) <= width
    if width > len(fields[0]):
        shown = line.replace("━", "").split("  ")
        assert [field.strip() for field in shown] == fields[: len(shown)]


def test_slow_rates_have_a_decimal_and_what_is_fitted_to_a_time_is_an_estimate() -> None:
    progress, out = _progress(200, terminal=False, line_every_s=0.0)
    with progress:
        _update(progress, 1, images_per_s=0.4567)
        _update(progress, 2, images_per_s=9.96, remaining_s=7325, schedule=0.345)
    lines = out.getvalue().splitlines()
    assert "step 1/10  0.5 img/s" in lines[0]
    assert "eta –" in lines[0]
    assert lines[1].startswith("epoch 1  step 2/~10  10 img/s")
    assert "eta 2:02:05  schedule 34%" in lines[1]


@pytest.mark.parametrize("terminal", [False, True])
def test_validation_shows_how_far_it_is_over_all_ranks(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    progress, out = _progress(200, terminal=terminal)
    seen = []
    with progress:
        for batch in progress.each(range(5), "validation", Feed(1000, 120, 2)):  # the fifth round is short
            seen.append(batch)
            now += 3.0
            if terminal:
                assert progress._live is not None
                progress._live.refresh()
    assert seen == list(range(5))
    lines = out.getvalue().splitlines() if not terminal else _shown(out)
    shown = [line for line in lines if "validation" in line]
    expected = "validation 480/1,000  80 img/s  eta 0:06"
    assert any(expected in line for line in shown)
    if not terminal:
        assert shown == [expected, "validation 960/1,000  80 img/s  eta 0:00"], "every 5 s"


def test_a_short_validation_has_no_line() -> None:
    progress, out = _progress(200, terminal=False)
    with progress:
        assert len(list(progress.each(range(5), "validation", Feed(10, 2, 1)))) == 5
    assert out.getvalue() == ""


def test_disabled_progress_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(False) as progress:
        _update(progress, 1)
        assert list(progress.each(range(5), "validation", Feed(10, 2, 1))) == list(range(5))
        progress.print("text")
    assert capsys.readouterr() == ("", "")


def _shown(out: io.StringIO) -> list[str]:
    """What each line of the terminal was given, without the control sequences, and empty the buffer."""
    lines = re.split(r"\n|\r|\x1b\[[^a-zA-Z]*[a-zA-Z]", out.getvalue())
    out.seek(0)
    out.truncate()
    return [line for line in lines if line]


@pytest.mark.parametrize(("before", "after"), [(200, 20), (40, 200), (80, 33)])
def test_the_bar_follows_a_resize_before_the_next_figures(before: int, after: int) -> None:
    out = io.StringIO()
    console = Console(file=out, width=before, force_terminal=True, highlight=False, color_system=None)
    progress = Progress(True, num_epochs=2, console=console)
    with progress:
        _update(progress, 3)
        assert progress._live is not None
        progress._live.refresh()
        assert max(map(len, _shown(out))) <= before
        console.width = after
        progress._live.refresh()
        lines = _shown(out)
        assert max(map(len, lines)) <= after
        # It also uses the width that it got.
        assert max(map(len, lines)) > min(after, before if after > before else 0)


def test_nothing_but_text_goes_where_no_terminal_is() -> None:
    progress, out = _progress(20, terminal=False, line_every_s=0.0)
    with progress:
        for step in range(1, 11):
            _update(progress, step)
    text = out.getvalue()
    assert "\x1b" not in text
    assert "\r" not in text
    assert "━" not in text
    # Whole lines whatever the width is said to be: a log is searched, not looked at.
    assert [line.partition("step ")[2].partition("/")[0] for line in text.splitlines()] == list(map(str, range(1, 11)))
