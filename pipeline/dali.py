"""Type names for DALI's untyped objects, and the error if DALI is missing."""

import platform
import sys
from importlib.util import find_spec
from typing import Any

Node = Any  # of a graph: nvidia.dali.data_node.DataNode
Pipeline = Any  # nvidia.dali.Pipeline
TensorList = Any  # nvidia.dali.tensors.TensorListCPU, TensorListGPU
Arguments = dict[str, Any]  # keyword arguments of an operator

Inputs = tuple[TensorList, ...]  # of one batch: the encoded images, then arrays with one row for each sample

WHEELS = ("x86_64", "aarch64")  # on Linux; NVIDIA builds DALI for no other system


def require_dali() -> None:
    """Raises ValueError with the remedy if DALI is not installed, or does not exist for this system."""
    if find_spec("nvidia") and find_spec("nvidia.dali"):
        return
    instead = 'or use the reference loader (--set data.loader=reference, or open_loader(…, loader="reference"))'
    if sys.platform != "linux" or platform.machine() not in WHEELS:
        raise ValueError(f"NVIDIA has no DALI for {platform.system()} on {platform.machine()}; {instead}")
    raise ValueError(f"DALI is not installed: pip install 'penstock[cuda13]' or 'penstock[cuda12]'; {instead}")
