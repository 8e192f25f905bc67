"""The rank and world size of this process in any training loop."""

import os
from typing import NamedTuple

import torch
import torch.distributed as dist


class Ranks(NamedTuple):
    """The rank of this process and the number of ranks; `local` means on this machine."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int


def current_ranks() -> Ranks:
    """The ranks of the process group, or, without one, of torchrun's environment, or, without that, of one process.

    Raises ValueError if the environment's values are not numbers.
    """
    if dist.is_available() and dist.is_initialized():
        return ranks_of(dist.get_rank(), dist.get_world_size())
    rank, world_size = _from_environment("RANK"), _from_environment("WORLD_SIZE")
    return ranks_of(0, 1) if rank is None or world_size is None else ranks_of(rank, world_size)


def ranks_of(rank: int, world_size: int) -> Ranks:
    """`Ranks` with the local ranks from torchrun's environment. Without it one process for each GPU of the machine is
    assumed, or, without GPUs, all processes on one machine."""
    local_world_size = _from_environment("LOCAL_WORLD_SIZE") or torch.cuda.device_count() or world_size
    local_world_size = min(local_world_size, world_size)
    local_rank = _from_environment("LOCAL_RANK")
    return Ranks(rank, world_size, rank % local_world_size if local_rank is None else local_rank, local_world_size)


def _from_environment(name: str) -> int | None:
    text = os.environ.get(name)
    if text is not None and not text.isdecimal():
        raise ValueError(f"{name}={text}: not a number; torchrun sets it")
    return None if text is None else int(text)


def union_of_group(ids: set[int]) -> set[int]:
    """The union of the ids of all ranks of the process group. Without a group it is `ids`."""
    if not (dist.is_available() and dist.is_initialized()):
        return ids
    gathered: list[set[int]] = [set() for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, ids)
    return set[int]().union(*gathered)
