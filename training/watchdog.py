"""Ends a run that hangs, with one line that says which rank hangs, in which step and in what.

The main thread of each rank marks what it does (`at`, `each`); a thread looks whether the marks move. A rank that hangs
makes all others wait for it in a collective, so the ranks tell each other how far they are
(`training.distributed.Notices`), and the one that is behind is named by all.

The clock runs from the start: loading, compiling and a long first step must take less than the time-out, too. A process
that was stopped for longer ends when it is continued.
"""

import faulthandler
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Self, TypeVar

from training.distributed import World

T = TypeVar("T")

# EX_TEMPFAIL of sysexits.h, "try again later": what ended the run need not come again.
EXIT_CODE = 75
_LOOKS = 10  # a time-out has so many looks at the marks,
_MOST_S = 5.0  # and two looks are at most so far apart


class Mark(NamedTuple):
    """What a rank's main thread does. `moves` grows by one with each mark, alike on all ranks."""

    moves: int
    step: int
    stage: str
    since: float  # time.monotonic()

    def __str__(self) -> str:
        return f"step {self.step}: {self.stage}"


class Watchdog:
    """A context manager around a run. `at` costs less than a microsecond and waits for nothing."""

    def __init__(self, world: World, timeout_s: float, end: Callable[[str], None] | None = None) -> None:
        """`end` is told the line; by default it prints it and ends the process with EXIT_CODE."""
        self._world, self._timeout_s, self._end = world, timeout_s, end or _end
        self._look_every_s = min(timeout_s / _LOOKS, _MOST_S)
        self._mark = Mark(0, 0, "starting", time.monotonic())
        self._looks = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def at(self, stage: str, step: int | None = None) -> None:
        """This rank now does `stage`, in `step` (the last one named, where it is None)."""
        last = self._mark
        self._mark = Mark(last.moves + 1, last.step if step is None else step, stage, time.monotonic())

    def each(self, batches: Iterable[T], stage: str) -> Iterator[T]:
        """The same batches: the wait for each, and what is done with it, are stages of their own."""
        iterator, waiting = iter(batches), f"{stage}, waiting for data"
        while True:
            self.at(waiting)
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self.at(stage)
            yield batch

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        while not self._over.wait(self._look_every_s):
            # A thread cannot look while C code hangs with Python's lock held, on a dead file system for one. This does
            # not need the lock: it prints where all threads are, and ends the process.
            faulthandler.dump_traceback_later(self._timeout_s + 10 * self._look_every_s, exit=True, file=2)
            self._post()
            mark = self._mark
            still_s = time.monotonic() - mark.since
            if still_s >= self._timeout_s:
                line = f"rank {self._world.rank}: no progress for {still_s:.0f} s in {mark}{self._who_is_behind()}"
                if self._mark is mark:  # it may have moved after all
                    self._end(line)
                    return

    def _post(self) -> None:
        self._looks += 1
        if self._world.notices:
            self._world.notices.post(json.dumps([self._looks, *self._mark[:3]]))

    def _who_is_behind(self) -> str:
        """The rank with the fewest moves, where it is not this one. Takes four looks' time: a rank that posts no new
        notice in that time is not merely waiting."""
        if not self._world.notices:
            return ""
        before = self._world.notices.read()
        for _ in range(4):
            time.sleep(self._look_every_s)
            self._post()
        now = self._world.notices.read()
        if not all(now):
            return f"; rank {now.index('')} has not started" if any(now) else "; the launcher's store does not answer"
        marks = [Mark(moves, step, stage, 0.0) for _, moves, step, stage in map(json.loads, now)]
        rank = min(range(len(marks)), key=lambda rank: marks[rank].moves)
        if marks[rank].moves >= self._mark.moves:
            return ""
        if now[rank] == before[rank]:
            return f"; rank {rank} is silent (stopped, or its machine is gone), last seen in {marks[rank]}"
        return f"; it waits for rank {rank}, which hangs in {marks[rank]}"


def _end(line: str) -> None:
    os.write(2, f"{line}; the same command goes on from the last checkpoint\n".encode())
    os._exit(EXIT_CODE)
