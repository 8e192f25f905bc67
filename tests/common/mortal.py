"""Arrays whose memory is overwritten when the last reference goes: who reads too late sees it."""

import weakref

import numpy as np
import pytest

from penstock.pipeline import loader as loader_module


def mortal(values: np.ndarray) -> np.ndarray:
    """A copy that is overwritten as soon as nobody holds it: who still reads it then reads something else."""
    memory = values.copy()
    view = memory[...]
    weakref.finalize(view, memory.fill, 1)
    return view


@pytest.fixture
def mortal_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every array and every image that a loader hands to DALI is `mortal`."""
    arrays, images = loader_module.graph_inputs, loader_module.encoded
    monkeypatch.setattr(
        loader_module, "graph_inputs", lambda *args, **kw: {k: mortal(v) for k, v in arrays(*args, **kw).items()}
    )
    monkeypatch.setattr(loader_module, "encoded", lambda views: images([mortal(view) for view in views]))
