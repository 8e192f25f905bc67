"""Named ranges of a training step for a profiler. They do nothing without one.

    with ranges.span("copy"):
        labels = labels.to(device)

`training/profile.py` defines the contexts while it traces.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

Open = Callable[[str], AbstractContextManager[object]]
NOTHING = nullcontext()
_open: Open = lambda name: NOTHING  # noqa: E731


def span(name: str) -> AbstractContextManager[object]:
    """A context for the range `name`."""
    return _open(name)


@contextmanager
def opened_by(opener: Open) -> Iterator[None]:
    """Make `span` return `opener(name)` until the context ends."""
    global _open
    before, _open = _open, opener
    try:
        yield
    finally:
        _open = before
