"""Arrays that overwrite their memory when the last reference goes, to expose late readers."""

import weakref

import numpy as np
import pytest

from penstock.pipeline import loader as loader_module


def mortal(values: np.ndarray) -> np.ndarray:
    """A copy that is overwritten as soon as nothing references it, so a late reader sees wrong values."""
    memory = values.copy()
    view = memory[...]
    weakref.finalize(view, memory.fill, 1)
    return view


@pytest.fixture
def mortal_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every array and image that a loader passes to DALI `mortal`."""
    arrays, images = loader_module.graph_inputs, loader_module.encoded
    monkeypatch.setattr(
        loader_module, "graph_inputs", lambda *args, **kw: {k: mortal(v) for k, v in arrays(*args, **kw).items()}
    )
    monkeypatch.setattr(loader_module, "encoded", lambda views: images([mortal(view) for view in views]))
