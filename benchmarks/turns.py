"""Two settings measured in turn, within a time that is given: settings → programs → a pair of images/s a turn.

What `tune` asks for candidates. Turns begin short, since most candidates are told by little, and grow; whoever asks
stops when it knows enough. No turn begins that would not end in time, by what the turns before it have taken.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any

from benchmarks.measure import Program

Settings = dict[str, Any]  # name in [data], or batch_size → value
SHORTEST = 4  # the first turns are a quarter and half as long


class Turns:
    """`turns(ours, theirs)` gives (our, their) images/s, turn by turn; it ends with its number or with the time.

    Both programs are made anew for each pair, so that both begin with the same samples: one that was further on would
    read what no program has read yet. A first run of each, which makes and compiles what it needs, is not counted. Who
    begins changes from turn to turn.
    """

    def __init__(
        self,
        build: Callable[[Settings], Program],
        clock: Callable[[], float],
        *,
        seconds: float,
        number: int,
    ) -> None:
        """seconds: of a turn of full length, of each program. number: of turns, at most."""
        self._build, self._clock, self._seconds, self._number = build, clock, seconds, number
        self.deadline = float("inf")  # by the clock
        self._start_s = 0.0  # to make two programs and run them once, the last time
        self._beside_s = 0.0  # what a turn took beside its seconds, the last time
        self._counted = 0

    def __call__(self, ours: Settings, theirs: Settings) -> Iterator[tuple[float, float]]:
        lengths = [self._seconds / max(1, SHORTEST >> turn) for turn in range(self._number)]
        if self._number < 3:
            lengths = [self._seconds] * self._number
        if not self._fits(self._start_s + 2 * lengths[0] + self._beside_s):
            return
        with ExitStack() as stack:
            begun = self._clock()
            pair = []
            for settings in (ours, theirs):
                pair.append(stack.enter_context(closing(self._build(settings))))
                pair[-1].run(lengths[0])
            self._start_s = self._clock() - begun
            for turn, seconds in enumerate(lengths):
                if not self._fits(2 * seconds + self._beside_s):
                    return
                begun, rates = self._clock(), [0.0, 0.0]
                for place in (0, 1) if turn % 2 == 0 else (1, 0):
                    rates[place] = pair[place].run(seconds).images_per_s
                self._beside_s = self._clock() - begun - 2 * seconds
                self._counted += 1
                yield rates[0], rates[1]

    def _fits(self, seconds: float) -> bool:
        """Whether so much ends in time. The first turn of all is made in any case: without it nothing is known."""
        return self._counted == 0 or self._clock() + seconds <= self.deadline
