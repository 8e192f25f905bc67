"""End a run that hangs, with one line that names the rank that hangs, the step and the stage.

The main thread of each rank marks what it does (`begin`, `each`), and another thread checks that the marks change. A
rank that hangs makes all others wait for it in a collective. So the ranks share their progress
(`training.distributed.Notices`), and all of them name the rank that is behind.

A rank that waits for data does not hang as long as data arrive, however slowly, and neither do the ranks that wait for
it. The first download of a dataset may take any time.

The clock runs from the start, so loading and the first step must also take less than the timeout. Compiling a network
may take an hour longer. A process that was stopped for longer than the timeout ends when it is continued.
"""

import faulthandler
import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Self, TypeVar

from penstock.training.distributed import World

T = TypeVar("T")

# EX_TEMPFAIL of sysexits.h, "try again later": the cause need not occur again.
EXIT_CODE = 75
_LOOKS = 10  # checks of the marks within a timeout
_MOST_S = 5.0  # the longest time between two checks
_WAITING, _COMPILING = ", waiting for data", ", compiling"
COMPILING_S = 3600.0  # in addition to the timeout: "max-autotune" times hundreds of kernels


class Mark(NamedTuple):
    """What a rank's main thread is doing. stages: the number of stages that began or ran out of batches, the same on
    all ranks. batches: of this stage; in validation some ranks can have one more."""

    stages: int
    batches: int
    step: int
    stage: str
    since: float  # time.monotonic()

    def __str__(self) -> str:
        return f"step {self.step}: {self.stage}"


class Watchdog:
    """A context manager around a run. `begin` takes less than a microsecond and never waits."""

    def __init__(
        self,
        world: World,
        timeout_s: float,
        end: Callable[[str], None] | None = None,
        received: Callable[[], int] = lambda: 0,
    ) -> None:
        """`end` is called with the line; the default prints it and ends the process with EXIT_CODE. `received` returns
        how many bytes of the dataset have arrived in this process so far."""
        self._world, self._timeout_s, self._end, self._received = world, timeout_s, end or _end, received
        self._look_every_s = min(timeout_s / _LOOKS, _MOST_S)
        self._mark = Mark(0, 0, 0, "starting", time.monotonic())
        self._looks = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def begin(self, stage: str, step: int | None = None) -> None:
        """Mark that this rank begins `stage`, in `step` (by default the last one named)."""
        last = self._mark
        self._mark = Mark(last.stages + 1, 0, last.step if step is None else step, stage, time.monotonic())

    def _in(self, stage: str) -> None:
        last = self._mark
        self._mark = Mark(last.stages, last.batches + 1, last.step, stage, time.monotonic())

    def each(self, batches: Iterable[T], stage: str, compiling: int = 0) -> Iterator[T]:
        """Pass on the batches. The wait for each and the work on it are marked as separate stages.

        `compiling`: the number of batches at the start during which the network may be compiled.
        """
        iterator, waiting = iter(batches), f"{stage}{_WAITING}"
        for number in itertools.count():
            self._in(waiting)
            try:
                batch = next(iterator)
            except StopIteration:
                self.begin(f"{stage}, waiting for other ranks")
                return
            self._in(f"{stage}{_COMPILING}" if number < compiling else stage)
            yield batch

    def __enter__(self) -> Self:
        self._post()  # at once, or a rank that is stopped before the first check would seem not to have started
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        patient_since = 0.0  # when data last arrived
        while not self._over.wait(self._look_every_s):
            # This thread cannot run while C code hangs and holds Python's lock, for example on a dead file system.
            # faulthandler does not need the lock: it prints the stacks of all threads and ends the process.
            faulthandler.dump_traceback_later(self._timeout_s + 10 * self._look_every_s, exit=True, file=2)
            self._post()
            mark = self._mark
            still_s = time.monotonic() - max(mark.since, patient_since)
            limit_s = self._timeout_s
            if mark.stage.endswith(_COMPILING):
                limit_s += COMPILING_S
            if still_s >= limit_s:
                before, now = self._two_looks()
                if self._mark is not mark:  # the mark has changed in the meantime
                    continue
                if self._works(before, now):
                    patient_since = time.monotonic()
                    continue
                still_s = time.monotonic() - mark.since
                line = f"rank {self._world.rank}: no progress for {still_s:.0f} s in {mark}"
                self._end(line + self._who_is_behind(before, now))
                return

    def _notice(self) -> str:
        return json.dumps([self._looks, *self._mark[:4], self._received()])

    def _post(self) -> None:
        self._looks += 1
        if self._world.notices:
            self._world.notices.post(self._notice())

    def _two_looks(self) -> tuple[list[str], list[str]]:
        """All ranks' notices ("" for a rank that has posted none), now and four checks later. A rank that posts no new
        notice in that time is not merely waiting."""
        notices = self._world.notices
        before = notices.read() if notices else [self._notice()]
        for _ in range(4):
            time.sleep(self._look_every_s)
            self._post()
        return before, notices.read() if notices else [self._notice()]

    def _works(self, before: list[str], now: list[str]) -> bool:
        """Whether the rank that is behind is working: it waits for data and received some between two checks, or it is
        another rank and compiles. A rank that compiles has its own limit."""
        if not (all(before) and all(now)):
            return False
        rank, mark = _last(now)
        if mark.stage.endswith(_COMPILING):
            return rank != self._world.rank and before[rank] != now[rank]
        return mark.stage.endswith(_WAITING) and json.loads(before[rank])[-1] < json.loads(now[rank])[-1]

    def _who_is_behind(self, before: list[str], now: list[str]) -> str:
        """Text about the rank that is furthest behind, if it is not this one."""
        if not self._world.notices:
            return ""
        if not all(now):
            return f"; rank {now.index('')} has not started" if any(now) else "; the launcher's store does not answer"
        rank, mark = _last(now)
        if mark[:2] >= self._mark[:2]:
            return ""
        if now[rank] == before[rank]:
            return f"; rank {rank} is silent (stopped, or its machine is gone), last seen in {mark}"
        return f"; it waits for rank {rank}, which hangs in {mark}"


def _last(notices: list[str]) -> tuple[int, Mark]:
    """The rank that is furthest behind, and its mark."""
    marks = [Mark(stages, batches, step, stage, 0.0) for _, stages, batches, step, stage, _ in map(json.loads, notices)]
    rank = min(range(len(marks)), key=lambda rank: marks[rank][:2])
    return rank, marks[rank]


def _end(line: str) -> None:
    os.write(2, f"{line}; the same command resumes from the last checkpoint\n".encode())
    os._exit(EXIT_CODE)
