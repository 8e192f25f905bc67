"""Progress on the terminal: a bar where there is one, else a line every few seconds. Silent on all ranks but 0."""

import time
from dataclasses import dataclass
from typing import Self

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

LINE_EVERY_S = 5.0


class Progress:
    """A context manager around the training loop. `update` is cheap: call it as often as there are new figures."""

    def __init__(
        self,
        enabled: bool,
        total_steps: int,
        *,
        num_epochs: int | None = None,
        console: Console | None = None,
        line_every_s: float = LINE_EVERY_S,
    ) -> None:
        self._console = (console or Console(highlight=False)) if enabled else None
        self._total_steps = total_steps
        self._num_epochs = num_epochs
        self._line_every_s = line_every_s
        self._last_line = float("-inf")
        self._first: tuple[int, float] | None = None  # step and time of the first update, for the remaining time
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self._console is not None and self._console.is_terminal:
            self._live = Live(Text(""), console=self._console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def update(self, *, step: int, epoch: int, loss: float, lr: float, images_per_s: float, data_wait: float) -> None:
        """Show the figures after `step` steps are done. `data_wait` is a fraction, 0 … 1."""
        if self._console is None:
            return
        now = time.monotonic()
        if self._live is None and now - self._last_line < self._line_every_s and step < self._total_steps:
            return
        self._first = self._first or (step, now)
        fields = [
            f"epoch {epoch + 1}" + (f"/{self._num_epochs}" if self._num_epochs else ""),
            f"step {step}/{self._total_steps}",
            f"{images_per_s:,.0f} img/s",
            f"loss {loss:.3f}",
            f"wait {data_wait:.0%}",
            f"eta {_duration(self._remaining_s(step, now))}",
            f"lr {lr:.3g}",
        ]
        if self._live is not None:
            self._live.update(_BarLine(step / self._total_steps, fields))
        else:
            self._last_line = now
            self._console.print(Text("  ".join(fields)), soft_wrap=True)

    def print(self, text: str) -> None:
        """A line that stays, above the bar."""
        if self._console is not None:
            self._console.print(Text(text), soft_wrap=True)

    def _remaining_s(self, step: int, now: float) -> float | None:
        """From the rate since the first update: a resumed run's earlier steps were not made in this run's time."""
        assert self._first is not None
        first_step, first_time = self._first
        if step <= first_step:
            return None
        return (now - first_time) / (step - first_step) * (self._total_steps - step)


@dataclass(frozen=True)
class _BarLine:
    """Laid out anew at each refresh: the terminal may have another width by then."""

    done: float
    fields: list[str]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield _bar_line(self.done, self.fields, options.max_width)


def _bar_line(done: float, fields: list[str], width: int) -> Text:
    """As many fields as fit in `width` columns, the first ones first, and a bar in what is left."""
    shown = list(fields)
    while len(shown) > 1 and len("  ".join(shown)) >= width:
        shown.pop()
    text = "  ".join(shown)[: max(width - 1, 1)]
    bar_width = min(width - len(text) - 2, 40)
    if bar_width < 5:
        return Text(text, no_wrap=True)
    filled = round(bar_width * min(done, 1.0))
    return Text.assemble(("━" * filled, "green"), ("━" * (bar_width - filled), "bright_black"), " ", text, no_wrap=True)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"
