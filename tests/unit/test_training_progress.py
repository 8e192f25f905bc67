"""The bar on terminals of any width, and plain lines where there is none."""

import io
import re

import pytest
from rich.console import Console

from training.progress import Progress, _bar_line


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


def test_disabled_progress_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(False, 10) as progress:
        _update(progress, 1)
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
    progress = Progress(True, 10, num_epochs=2, console=console)
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
