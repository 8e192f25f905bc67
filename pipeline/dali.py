"""Names for DALI's objects, which have no types, in one place."""

from typing import Any

Node = Any  # of a graph: nvidia.dali.data_node.DataNode
Pipeline = Any  # nvidia.dali.Pipeline
TensorList = Any  # nvidia.dali.tensors.TensorListCPU, TensorListGPU
Arguments = dict[str, Any]  # keyword arguments of an operator

Inputs = tuple[TensorList, ...]  # of one batch: the encoded images, then arrays of one row a sample
