"""Estimate the remaining time of a run, and with `--max-minutes` how fast the schedule must go to finish in time.

The schedule is a function of the recipe's epochs, 0 to E. A run with a time limit goes through all of it on fewer
samples: each step advances the schedule by `pace` times its share of an epoch. The time covers the whole command:
importing and building, training in every phase, all remaining validations, and the report.

This is pure arithmetic on times that the caller passes, in seconds since the command began, over its restarts. All
ranks must pass the same times and then get the same results.
"""

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

# Drawing the report and exiting take about as long as starting up, within these bounds.
CLOSING_S = 4.0, 8.0
SHOWING_S = 1.5  # a validation's pictures and checkpoint
# The number of speed measurements in a budget, and the fraction of the budget over which old ones fade.
LOOKS, FORGET = 60, 0.1
# The fraction of a budget that may remain unused, and how much faster the schedule may become to make room for a
# validation. If it would become faster than that, the validation is skipped.
UNUSED, SLACK = 0.02, 1.1
MOST_LEFT_OUT = 10


class Place(Protocol):
    """The position of a run (`training.learner.RunState`)."""

    epoch: int
    position: int
    step: int
    schedule_epoch: float
    phase_epoch: int
    pace: float


@dataclass(frozen=True, kw_only=True)
class Work:
    """The work of a run.

    image_sizes, batch_sizes: of each epoch of the schedule, in pixels per side and in samples over all ranks.
    num_val: images in a validation, 0 for none. num_test: images in the test split. val_cost: the assumed cost of a
    validation image that was not timed, in training images of `val_image_size`. compiles: each new size costs the same
    start-up time as the first.
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
        """Image size and global batch size while the schedule is in `epoch`."""
        index = min(int(epoch), self.epochs - 1)
        return self.image_sizes[index], self.batch_sizes[index]


class Remaining(NamedTuple):
    """The remaining work: seconds to the end of the command, optimizer steps, validations before the last one."""

    seconds: float
    steps: int
    validations: int


@dataclass
class _Speed:
    """The time that training on one size took. Later measurements count more. first: only the first interval was
    measured, in which pipelines start and kernels are compiled."""

    images: float
    seconds: float
    first: bool = True

    @property
    def image_s(self) -> float:
        return self.seconds / self.images


class Budget:
    """The time budget of a run. `total_s`: its time limit, over its restarts; infinite without a limit. `started_s`:
    how long this process took to start up."""

    def __init__(self, work: Work, total_s: float = math.inf, *, started_s: float = 0.0) -> None:
        self.work, self.total_s = work, total_s
        self.closing_s = min(max(started_s, CLOSING_S[0]), CLOSING_S[1])
        self._validation_s: float | None = None  # of all its images, with its pictures and checkpoint
        self._speeds: dict[tuple[int, int], _Speed] = {}
        self._last: tuple[int, int] | None = (
            None  # the size measured last; its first interval counts only if no size has another
        )
        self._start_s = 0.0  # how much longer the first interval took than its steps
        self._since = 0.0
        self._next_look = 0
        self._asked_for = 0  # steps that are queued on the GPU

    @property
    def is_limited(self) -> bool:
        return math.isfinite(self.total_s)

    def trained(self, at: Place, steps: int, now: float, *, asked_for: int = 0) -> None:
        """Record that `steps` more are done since the last call of `trained` or `validated`. Of the steps that `at`
        counts, `asked_for` are queued and not done yet."""
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
        """Record that a validation took `seconds`. Training continues from here."""
        self._validation_s, self._since, self._asked_for = seconds, now, 0

    def expect(self, val_image_s: float, now: float) -> str:
        """Record the expected time per validation image, measured on a few. Return a warning if the scoring at the end
        leaves little time for training, otherwise ""."""
        self._validation_s = val_image_s * self.work.num_val + SHOWING_S
        ends_s, left_s = self._scoring_s(self.work.num_val + self.work.num_test), self.total_s - now - self.closing_s
        if ends_s <= left_s / 2:
            return ""
        return (
            f"--max-minutes {self.total_s / 60:g}: scoring at the end takes about {ends_s:.0f} s of the remaining "
            f"{left_s:.0f} s. Give more minutes, or fewer images with --max-val-images N"
        )

    def is_due(self, step: int) -> bool:
        """Whether to measure after `step` steps. With a time limit that is more often than the log is written."""
        return self.is_limited and step >= self._next_look

    def remaining(self, at: Place, now: float) -> Remaining:
        """The remaining work at the run's pace, once a step was timed. It ends with the budget if skipping validations
        makes that possible."""
        remaining = self._remaining(at, at.pace)
        least_s = remaining.seconds - remaining.validations * self._scoring_s(self.work.num_val)
        if self._is_unmeasured:  # the pace will be what the budget allows
            least_s = 0.0
        return remaining._replace(seconds=min(max(self.total_s - now, least_s), remaining.seconds))

    def pace(self, at: Place, now: float) -> float:
        """How many times faster than the data the schedule must go: 1 if the whole recipe fits, otherwise more. It does
        not change before the second measurement."""
        if not self.is_limited:
            return 1.0
        here = self._speeds.get(self.work.size(at.phase_epoch))
        self._next_look = at.step + (1 if here is None or here.first else self._steps_between_looks())
        return at.pace if self._is_unmeasured and now < self.total_s else self._pace(at, self.total_s - now)

    @property
    def _is_unmeasured(self) -> bool:
        """Whether only a first step was timed. First steps are slower than others."""
        return self._last is None or self._speeds[self._last].first

    def affords_validation(self, at: Place, now: float) -> bool:
        """Whether there is time for a validation before the end without a much faster schedule."""
        if not self.is_limited or self._last is None:
            return True
        left_s = self.total_s - now
        without = max(at.pace, self._pace(at, left_s))
        return self._pace(at, left_s - self._scoring_s(self.work.num_val)) <= SLACK * without

    def _pace(self, at: Place, left_s: float) -> float:
        """The slowest pace, from 1 up, at which the remaining work takes no longer than `left_s`. The time jumps where
        an epoch ends with a validation, so validations are skipped until the time is used well."""
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
        """The slowest pace by bisection between 1 and `high`; `high` if even that is too slow."""
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
        """Add up the work epoch by epoch to the end of the schedule. An epoch belongs to the phase in which it begins.
        `left_out`: the number of validations to skip."""
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
        """Seconds per training image: as measured, otherwise scaled by the pixels from the last measurement."""
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
    """When this command was started, on `time.perf_counter`'s clock. Under torchrun that is when the launcher started,
    unless it restarted the ranks. Return the current time if the system does not provide it."""
    pid = os.getppid() if os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0" else os.getpid()
    try:
        # Field 22 of proc(5)'s stat, clock ticks from boot; the name before it may have spaces and brackets.
        ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
        age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        age_s = 0.0
    return time.perf_counter() - max(age_s, 0.0)
