"""A function compiled by Numba as a node of DALI's graph: run in DALI's threads on the CPU, without Python or its lock.

It is called through DALI's Numba operator ("NumbaFunction" in its reference), which takes at most six inputs.
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
    """A node whose one output, of three axes, `run` writes.

    Args:
        run: of signature `RUN`; kept alive by whoever made it, as is `setup`.
        setup: of signature `SETUP`, which says the output's shapes.
        out_type: of the output, one of DALI's types.
        inputs: nodes on the CPU, their DALI types and numbers of axes.
    """
    from nvidia.dali.plugin.numba import NumbaFunction

    class Compiled(NumbaFunction):
        """Takes addresses: the plug-in would compile its wrapper at every start, for 3 s, and never keep it."""

        def _get_run_fn_cpu(self, run_fn: int, *_: object) -> int:
            return run_fn

        def _get_setup_fn_cpu(self, setup_fn: int) -> int:
            return setup_fn

    make: Callable[..., Callable[..., Node]] = Compiled  # its annotations ask for Python functions
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
