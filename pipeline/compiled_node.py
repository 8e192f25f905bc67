"""A Numba-compiled function as a node of DALI's graph: it runs in DALI's threads on the CPU, without Python's lock.

DALI's Numba operator calls it ("NumbaFunction" in its reference), which accepts at most six inputs.
"""

from collections.abc import Callable
from typing import Any

from numba import types
from numba.core.ccallback import CFunc

from penstock.pipeline.dali import Node

_ADDRESS, _COUNT = types.uint64, types.int32
# (outs, out_shapes, out_ndims, num_outs, ins, in_shapes, in_ndims, num_ins), for one sample
RUN = types.void(_ADDRESS, _ADDRESS, _ADDRESS, _COUNT, _ADDRESS, _ADDRESS, _ADDRESS, _COUNT)
# (out_shapes, out_ndims, num_outs, in_shapes, in_ndims, num_ins, num_samples)
SETUP = types.void(_ADDRESS, _ADDRESS, _COUNT, _ADDRESS, _ADDRESS, _COUNT, _COUNT)


def compiled_node(run: CFunc, setup: CFunc, out_type: Any, *inputs: tuple[Node, Any, int]) -> Node:
    """A node with one output of three axes, which `run` writes.

    Args:
        run: a callback with signature `RUN`. The caller keeps it alive, and also `setup`.
        setup: a callback with signature `SETUP`, which sets the output's shapes.
        out_type: the output's DALI type.
        inputs: nodes on the CPU, with their DALI types and numbers of axes.
    """
    from nvidia.dali.plugin.numba import NumbaFunction

    class Compiled(NumbaFunction):
        """Accepts addresses of compiled code: the plug-in would compile its own wrapper for 3 s at every start."""

        def _get_run_fn_cpu(self, run_fn: int, *_: object) -> int:
            return run_fn

        def _get_setup_fn_cpu(self, setup_fn: int) -> int:
            return setup_fn

    make: Callable[..., Callable[..., Node]] = Compiled  # its annotations require Python functions
    nodes, in_types, ins_ndim = zip(*inputs, strict=True)
    operator = make(
        run_fn=run.address,
        setup_fn=setup.address,
        out_types=[out_type],
        in_types=list(in_types),
        outs_ndim=[3],
        ins_ndim=list(ins_ndim),
    )
    return operator(*nodes)
