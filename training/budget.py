"""What is left of a run in seconds; with `--max-minutes`, how fast the schedule must go for the run to end in time.

The schedule is a function of the recipe's epochs, 0 to E. A run that is to end early goes through all of it on fewer
samples: each step moves it on by `pace` times its share of an epoch. The time is that of the whole command: importing
and building, training in every phase, all validations still to come, and the report.

Pure arithmetic on times that the caller passes: seconds since the command began, over its restarts. All ranks must pass
the same ones, and all then answer the same.
"""

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

# Drawing the report and leaving the process take about as long as getting there, within these bounds.
CLOSING_S = 4.0, 8.0
SHOWING_S = 1.5  # a validation's pictures and checkpoint
# Speeds are measured so often in a budget, and forgotten over so much of it.
LOOKS, FORGET = 60, 0.1
# So much of a budget may be left at the end; a validation may make the schedule so much faster: else it is left out.
UNUSED, SLACK = 0.02, 1.1
MOST_LEFT_OUT = 10


class Place(Protocol):
    """Where a run stands (`training.learner.RunState`)."""

    epoch: int
    position: int
    step: int
    schedule_epoch: float
    phase_epoch: int
    pace: float


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a run has to do.

    image_sizes, batch_sizes: of each epoch of the schedule, in pixels a side and in samples over all ranks.
    num_val: images of a validation, 0 for none; num_test: of the test split. val_cost: what one of them is thought to
    cost where none was timed, in training images of `val_image_size`. compiles: each new size costs what the first
    one did before its first step.
    """

    image_sizes: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    num_train: int
    last_step: int
    eval_every: int
    num_val: int = 0
    num_test: int = 0
    val_image_size: int = 1
    val_cost: float = 0.5
    compiles: bool = False

    @property
    def epochs(self) -> int:
        return len(self.image_sizes)

    def size(self, epoch: float) -> tuple[int, int]:
        """Image size and global batch in force where the schedule is in `epoch`."""
        index = min(int(epoch), self.epochs - 1)
        return self.image_sizes[index], self.batch_sizes[index]


class Remaining(NamedTuple):
    """What is left: seconds to the end of the command, optimizer steps, validations before the last one."""

    seconds: float
    steps: int
    validations: int


@dataclass
class _Speed:
    """What training on one size took, later times counting more. first: it has but its first interval, in which
    pipelines start and kernels are made."""

    images: float
    seconds: float
    first: bool = True

    @property
    def image_s(self) -> float:
        return self.seconds / self.images


class Budget:
    """A run's clock. `total_s`: the time it has, over its restarts; infinite where nothing limits it. `started_s`: how
    long it took this process to get here."""

    def __init__(self, work: Work, total_s: float = math.inf, *, started_s: float = 0.0) -> None:
        self.work, self.total_s = work, total_s
        self.closing_s = min(max(started_s, CLOSING_S[0]), CLOSING_S[1])
        self._validation_s: float | None = None  # of all its images, with its pictures and checkpoint
        self._speeds: dict[tuple[int, int], _Speed] = {}
        self._last: tuple[int, int] | None = None  # the size measured last, beyond its first interval if any is
        self._start_s = 0.0  # what the first interval took longer than its steps
        self._since = 0.0
        self._next_look = 0
        self._asked_for = 0  # steps that a GPU has still to make

    @property
    def is_limited(self) -> bool:
        return math.isfinite(self.total_s)

    def trained(self, at: Place, steps: int, now: float, *, asked_for: int = 0) -> None:
        """`steps` more are done since the last call of `trained` or `validated`; of those that `at` counts,
        so many are `asked_for` and not yet done."""
        size, seconds, self._since = self.work.size(at.phase_epoch), max(now - self._since, 1e-9), now
        images, self._asked_for = steps * size[1], asked_for
        known = self._speeds.get(size)
        if known is None:
            self._speeds[size] = _Speed(images, seconds)
            self._last = self._last or size
            return
        self._last = size
        if known.first:
            self._start_s = max(known.seconds - known.images * seconds / images, 0.0)
            self._speeds[size] = _Speed(images, seconds, first=False)
        else:
            kept = math.exp(-seconds / (FORGET * self.total_s if self.is_limited else 60.0))
            known.images, known.seconds = kept * known.images + images, kept * known.seconds + seconds

    def validated(self, seconds: float, now: float) -> None:
        """A validation has taken `seconds`, and training goes on from here."""
        self._validation_s, self._since, self._asked_for = seconds, now, 0

    def expect(self, val_image_s: float, now: float) -> str:
        """A validation will take so long an image, as timed on a few. Returns what to say where the scoring at the end
        leaves little of the time for training, else ""."""
        self._validation_s = val_image_s * self.work.num_val + SHOWING_S
        ends_s, left_s = self._scoring_s(self.work.num_val + self.work.num_test), self.total_s - now - self.closing_s
        if ends_s <= left_s / 2:
            return ""
        return (
            f"--max-minutes {self.total_s / 60:g}: scoring at the end takes about {ends_s:.0f} s of the {left_s:.0f} s "
            "that are left; give more, or --max-val-images N"
        )

    def is_due(self, step: int) -> bool:
        """Whether to measure after `step` steps: in a budget more often than the log is written."""
        return self.is_limited and step >= self._next_look

    def remaining(self, at: Place, now: float) -> Remaining:
        """What is left at the run's pace, once a step was timed: to the budget's end, as far as validations that can be
        left out make that possible."""
        remaining = self._remaining(at, at.pace)
        least_s = remaining.seconds - remaining.validations * self._scoring_s(self.work.num_val)
        if self._is_unmeasured:  # the pace will be what the budget allows
            least_s = 0.0
        return remaining._replace(seconds=min(max(self.total_s - now, least_s), remaining.seconds))

    def pace(self, at: Place, now: float) -> float:
        """How many times faster than the data the schedule must go: 1 where the whole recipe fits, else more. Before
        the second measurement it stays as it is."""
        if not self.is_limited:
            return 1.0
        here = self._speeds.get(self.work.size(at.phase_epoch))
        self._next_look = at.step + (1 if here is None or here.first else self._steps_between_looks())
        return at.pace if self._is_unmeasured and now < self.total_s else self._pace(at, self.total_s - now)

    @property
    def _is_unmeasured(self) -> bool:
        """Whether nothing but a first step was timed, which is slower than others."""
        return self._last is None or self._speeds[self._last].first

    def affords_validation(self, at: Place, now: float) -> bool:
        """Whether one can be made here, before the end: not where only a much faster schedule makes room for it."""
        if not self.is_limited or self._last is None:
            return True
        left_s = self.total_s - now
        without = max(at.pace, self._pace(at, left_s))
        return self._pace(at, left_s - self._scoring_s(self.work.num_val)) <= SLACK * without

    def _pace(self, at: Place, left_s: float) -> float:
        """The slowest pace, from 1 up, at which what is left takes no longer than `left_s`. The seconds jump where an
        epoch ends with a validation: as many of those are left out as it takes to use the time."""
        highest = max((self.work.epochs - at.schedule_epoch) * self._steps_per_epoch(at), 1.0)
        if self._last is None:
            return highest  # the next step is the last
        pace = highest
        for left_out in range(min(self._remaining(at, 1.0).validations, MOST_LEFT_OUT) + 1):
            pace = self._slowest(at, left_s, highest, left_out)
            unused_s = left_s - self._remaining(at, pace, left_out).seconds
            if pace == 1 or 0 <= unused_s <= max(UNUSED * self.total_s, self._step_s()):
                break
        return pace

    def _slowest(self, at: Place, left_s: float, high: float, left_out: int) -> float:
        """By bisection, from `high` down to 1; `high` where that is too slow as well."""
        low = 1.0
        if self._remaining(at, low, left_out).seconds <= left_s:
            return low
        if self._remaining(at, high, left_out).seconds > left_s:
            return high
        while high / low > 1.0001:
            middle = math.sqrt(low * high)
            if self._remaining(at, middle, left_out).seconds <= left_s:
                high = middle
            else:
                low = middle
        return high

    def _remaining(self, at: Place, pace: float, left_out: int = 0) -> Remaining:
        """Epoch by epoch to the end of the schedule: an epoch is in the phase in which it begins. `left_out`: so many
        validations are not made."""
        work, steps, validations = self.work, 0, 0
        seconds = self._asked_for * self._step_s() if self._asked_for else 0.0
        schedule, epoch, position, phase = at.schedule_epoch, at.epoch, at.position, at.phase_epoch
        new: set[tuple[int, int]] = set()
        while True:
            if position == 0:
                phase = int(schedule)
            size, batch = work.size(phase)
            per_epoch = max(work.num_train // batch, 1)
            wanted = math.ceil((work.epochs - schedule) * per_epoch / pace - 1e-6)
            allowed = work.last_step - at.step - steps
            if min(wanted, allowed) <= 0:
                break
            num = min(wanted, allowed, (work.num_train - position) // batch)
            if num and work.compiles and (size, batch) not in self._speeds and (size, batch) not in new:
                new.add((size, batch))
                seconds += self._start_s
            seconds += num * batch * self._image_s(size, batch)
            steps += num
            schedule += num * pace / per_epoch
            if wanted > num and allowed > num:
                epoch, position = epoch + 1, 0
                validations += epoch % work.eval_every == 0
        scored = work.num_val * (1 + max(validations - left_out, 0)) + work.num_test
        return Remaining(seconds + self._scoring_s(scored) + self.closing_s, steps, validations if work.num_val else 0)

    def _image_s(self, size: int, batch: int) -> float:
        """Seconds a training image: as measured, else in proportion to the pixels from what was measured last."""
        assert self._last is not None
        known = self._speeds.get((size, batch))
        if known is not None and not known.first:
            return known.image_s
        return self._speeds[self._last].image_s * (size / self._last[0]) ** 2

    def _scoring_s(self, num_images: int) -> float:
        if self._validation_s is not None:
            return self._validation_s * num_images / self.work.num_val
        return num_images and self.work.val_cost * num_images * self._image_s(self.work.val_image_size, 0)

    def _steps_per_epoch(self, at: Place) -> int:
        return max(self.work.num_train // self.work.size(at.phase_epoch)[1], 1)

    def _step_s(self) -> float:
        assert self._last is not None
        return self._last[1] * self._speeds[self._last].image_s

    def _steps_between_looks(self) -> int:
        return max(int(self.total_s / LOOKS / self._step_s()), 1)


def command_began() -> float:
    """When this command was started, on `time.perf_counter`'s clock: by the launcher under torchrun, unless it restarts
    the ranks. Where the system does not say, now."""
    pid = os.getppid() if os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0" else os.getpid()
    try:
        # Field 22 of proc(5)'s stat, clock ticks from boot; the name before it may have spaces and brackets.
        ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
        age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        age_s = 0.0
    return time.perf_counter() - max(age_s, 0.0)
