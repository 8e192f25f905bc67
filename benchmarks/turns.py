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
BUSIER = 1.5  # so much longer than ever before may take what lies beside a turn, where others use the machine


class Turns:
    """`turns(ours, theirs)` gives (our, their) images/s, turn by turn; it ends with its number or with the time.

    Both programs are made anew for each pair, so that both begin with the same samples: one that was further on would
    read what no program has read yet. What they throw away before they count (`BatchProgram`) is their warm-up, which
    also makes and compiles what they need. Who begins changes from turn to turn.
    """

    def __init__(
        self,
        build: Callable[[Settings], Program],
        clock: Callable[[], float],
        *,
        seconds: float,
        number: int,
        batch_size: int = 1,
    ) -> None:
        """seconds: of a turn of full length, of each program. number: of turns, at most. batch_size: where the settings
        have none."""
        self._build, self._clock, self._seconds, self._number = build, clock, seconds, number
        self._batch_size = batch_size
        self.deadline = float("inf")  # by the clock
        self.most_s = float("inf")  # for one pair: what is close must not take the time of all
        # an image of their batches: what a pair's first turn took beside its seconds at most, and another turn
        self._beside_s = [0.0, 0.0]
        self._counted = 0

    def __call__(self, ours: Settings, theirs: Settings) -> Iterator[tuple[float, float]]:
        lengths = [self._seconds / max(1, SHORTEST >> turn) for turn in range(self._number)]
        if self._number < 3:
            lengths = [self._seconds] * self._number
        size = sum(settings.get("batch_size", self._batch_size) for settings in (ours, theirs))
        end = self._clock() + self.most_s
        with ExitStack() as stack:
            pair: list[Program] = []
            for turn, seconds in enumerate(lengths):
                beside_s = size * self._beside_s[min(turn, 1)]
                late = turn and self._clock() + 2 * seconds + beside_s > end
                if late or not self._fits(2 * seconds + BUSIER * beside_s):
                    return
                begun, rates = self._clock(), [0.0, 0.0]
                if not pair:
                    pair = [stack.enter_context(closing(self._build(settings))) for settings in (ours, theirs)]
                for place in (0, 1) if turn % 2 == 0 else (1, 0):
                    rates[place] = pair[place].run(seconds).images_per_s
                beside_s = (self._clock() - begun - 2 * seconds) / size
                self._beside_s[min(turn, 1)] = max(self._beside_s[min(turn, 1)], beside_s)
                self._counted += 1
                yield rates[0], rates[1]

    def _fits(self, seconds: float) -> bool:
        """Whether so much ends in time. The first turn of all is made in any case: without it nothing is known."""
        return self._counted == 0 or self._clock() + seconds <= self.deadline
