"""Show progress: a bar on a terminal, otherwise a line every few seconds. Silent on all ranks except 0."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from penstock.training.figures import duration, rate
from penstock.training.records import StepLine

T = TypeVar("T")
LINE_EVERY_S = 5.0


class Feed(Protocol):
    """The data to go through: `num_samples` in batches of `batch_size` on each of `world_size` ranks."""

    @property
    def num_samples(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def world_size(self) -> int: ...


class Progress:
    """A context manager around the work. `update` is cheap: call it whenever there are new figures."""

    def __init__(
        self,
        enabled: bool,
        *,
        num_epochs: int | None = None,
        console: Console | None = None,
        line_every_s: float = LINE_EVERY_S,
    ) -> None:
        self._console = (console or Console(highlight=False)) if enabled else None
        self._num_epochs = num_epochs
        self._line_every_s = line_every_s
        self._last_line = float("-inf")
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

    def update(
        self, line: StepLine, *, total_steps: int, remaining_s: float | None = None, schedule: float | None = None,
        decoded: float | None = None,
    ) -> None:  # fmt: skip
        """Show the figures of a step, as `StepLog.take` returns them. `remaining_s`: until the end of the command.
        `schedule`: with a time limit, the fraction of the schedule that is done. `total_steps` is then an estimate, and
        the run does not end after the recipe's epochs. `decoded`: the fraction of the images in memory, if images are
        decoded once and some are still missing."""
        step = line["step"] + 1
        of_epochs = f"/{self._num_epochs}" if self._num_epochs and schedule is None else ""
        fields = [
            f"epoch {line['epoch'] + 1}{of_epochs}",
            f"step {step}/{'' if schedule is None else '~'}{total_steps}",
            f"{rate(line['images_per_s'])} img/s",
            f"loss {line['loss']:.3f}",
            f"data wait {line['data_wait']:.0%}",
            f"eta {duration(remaining_s)}",
            *([] if decoded is None else [f"decoded {decoded:.0%}"]),
            *([] if schedule is None else [f"schedule {schedule:.0%}"]),
            f"lr {line['lr']:.3g}",
        ]
        self._show(step / max(total_steps, 1), fields)

    def each(self, batches: Iterable[T], stage: str, feed: Feed) -> Iterator[T]:
        """Pass on the batches, and show how many of the feed's images are done in `stage`, over all ranks. Without a
        terminal a short stage prints nothing."""
        images, total_images = feed.batch_size * feed.world_size, feed.num_samples
        began = self._last_line = time.monotonic()
        for number, batch in enumerate(batches):
            if number:
                done, seconds = min(number * images, total_images), max(time.monotonic() - began, 1e-9)
                left_s = (total_images - done) * seconds / done
                fields = [f"{stage} {done:,}/{total_images:,}", f"{rate(done / seconds)} img/s"]
                self._show(done / total_images, [*fields, f"eta {duration(left_s)}"], keep=False)
            yield batch

    def _show(self, done: float, fields: list[str], *, keep: bool = True) -> None:
        """`keep`: always show the last line, at which everything is done, even if it comes early."""
        if self._console is None:
            return
        now = time.monotonic()
        if self._live is not None:
            self._live.update(_BarLine(done, fields))
        elif now - self._last_line >= self._line_every_s or (keep and done >= 1):
            self._last_line = now
            self._console.print(Text("  ".join(fields)), soft_wrap=True)

    def print(self, text: str) -> None:
        """Print a permanent line above the bar; nothing for ""."""
        if self._console is not None and text:
            self._console.print(Text(text), soft_wrap=True)


@dataclass(frozen=True)
class _BarLine:
    """A line that is laid out again at each refresh, since the width of the terminal can change."""

    done: float
    fields: list[str]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield _bar_line(self.done, self.fields, options.max_width)


def _bar_line(done: float, fields: list[str], width: int) -> Text:
    """As many of the first fields as fit in `width` columns, and a bar in the remaining space."""
    shown = list(fields)
    while len(shown) > 1 and len("  ".join(shown)) >= width:
        shown.pop()
    text = "  ".join(shown)[: max(width - 1, 1)]
    bar_width = min(width - len(text) - 2, 40)
    if bar_width < 5:
        return Text(text, no_wrap=True)
    filled = round(bar_width * min(done, 1.0))
    return Text.assemble(("━" * filled, "green"), ("━" * (bar_width - filled), "bright_black"), " ", text, no_wrap=True)
