"""The comparison: lay the images out, let each peer in, time those that passed in turn → a result (`record`)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace

from benchmarks import noise, record
from benchmarks.measure import Sample, in_turn, ratio
from benchmarks.peers.contest import Contestant, Settings, enter, reference
from benchmarks.peers.environments import how_to_install
from benchmarks.peers.layout import Layout, lay_out, lay_out_gradients
from benchmarks.peers.process import Missing, PeerError
from benchmarks.peers.registry import OURS
from shards.format import ShardSet

MANY_THREADS = 4


def worker_counts(threads: int) -> tuple[int, ...]:
    """Numbers of workers to try: 1 to 4, and with more threads than that, from half as many to twice as many."""
    if threads <= MANY_THREADS:
        return tuple(range(1, MANY_THREADS + 1))
    return tuple(threads * quarters // 4 for quarters in (2, 4, 6, 8))


def compare(
    names: Sequence[str], data: ShardSet, against: ShardSet | None, split: str, settings: Settings, seconds: float,
    repeats: int, say: Callable[[str], None],
) -> record.Result:  # fmt: skip
    """Ours and the peers `names`.

    Args:
        against: what the peers read, where that is another than what ours reads.
        seconds, repeats: of each program's turns.
        say: gets a line about each program as it comes in.

    Returns:
        the result, with `skipped` and `failed` in `more`: peer → why.
    """
    ours = lay_out(data, split, settings.folder, len(settings.cores))
    theirs = lay_out(against, split, settings.folder, len(settings.cores)) if against else ours
    skipped: dict[str, str] = {}
    failed: dict[str, str] = {}
    with ExitStack() as stack:
        contestants = []
        for contestant in entered(names, ours, theirs, settings, skipped, failed, say):
            contestants.append(stack.enter_context(closing(contestant)))
        with noise.watched() as warnings:
            samples = timed(contestants, seconds, repeats, failed, say)
    rates = {name: [one.images_per_s for one in taken] for name, taken in samples.items()}
    ratios = {
        f"{OURS} / {name}": ratio(rates[OURS], theirs)
        for name, theirs in rates.items()
        if name != OURS and OURS in rates
    }
    described = {
        "data": str(data.root), "against": str((against or data).root), "split": split,
        "image_size": settings.image_size, "batch_size": settings.batch_size, "threads": len(settings.cores),
        "workers": list(settings.workers), "seconds": seconds, "repeats": repeats, "device": "cpu",
    }  # fmt: skip
    lines = [*warnings, *noise.spread_warnings(rates)]
    figures = {one.name: one.figures() for one in contestants if one.name in samples}
    result = record.build("peers", described, samples, ratios, lines, figures)
    return replace(result, more={"skipped": skipped, "failed": failed})


def entered(
    names: Sequence[str], ours: Layout, theirs: Layout, settings: Settings, skipped: dict[str, str],
    failed: dict[str, str], say: Callable[[str], None],
) -> Iterator[Contestant]:  # fmt: skip
    """Each program that may be timed, as soon as it has passed. Fills `skipped` and `failed`."""
    gradients = lay_out_gradients(settings.folder)
    crops = reference(gradients, settings, crops=True)
    expected = {layout.key: reference(layout, settings) for layout in (ours, theirs)}
    for name in names:
        images = ours if name == OURS else theirs
        try:
            contestant = enter(name, images, gradients, expected[images.key], crops, settings)
        except Missing as error:
            skipped[name] = f"{error}; {how_to_install(name)}"
            say(f"{name}: skipped, {skipped[name]}")
        except PeerError as error:
            failed[name] = str(error)
            say(f"{name}: FAILED, {error}")
        else:
            say(f"{name}: output checked, {contestant.workers} workers")
            yield contestant


def timed(
    contestants: Sequence[Contestant], seconds: float, repeats: int, failed: dict[str, str], say: Callable[[str], None]
) -> dict[str, list[Sample]]:
    """`in_turn`; where one fails the others begin again without it, so that all of theirs were taken in turn."""
    left = list(contestants)
    while left:
        try:
            return in_turn(left, seconds, repeats)
        except PeerError as error:
            failed[error.peer] = str(error)
            say(f"{error.peer}: FAILED, {error}")
            left = [one for one in left if one.name != error.peer]
    return {}
