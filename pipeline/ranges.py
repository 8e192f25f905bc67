"""Named ranges of a training step, for a profiler: nothing where none is at work.

    with ranges.span("copy"):
        labels = labels.to(device)

`training/profile.py` says what entering one does while it traces.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

Open = Callable[[str], AbstractContextManager[object]]
NOTHING = nullcontext()
_open: Open = lambda name: NOTHING  # noqa: E731


def span(name: str) -> AbstractContextManager[object]:
    """A context around what the range `name` is."""
    return _open(name)


@contextmanager
def opened_by(opener: Open) -> Iterator[None]:
    """Have `span` give what `opener` makes of the name, until the context ends."""
    global _open
    before, _open = _open, opener
    try:
        yield
    finally:
        _open = before
