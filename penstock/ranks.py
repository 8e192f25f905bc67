"""Which process of how many this one is, in a training loop that is not ours."""

import os
from typing import NamedTuple

import torch
import torch.distributed as dist


class Ranks(NamedTuple):
    """Which process this is; `local` means on this machine."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int


def current_ranks() -> Ranks:
    """Those of the process group that somebody has made, else of torchrun's environment, else of one process.

    Raises ValueError for an environment in which they are no numbers.
    """
    env = {}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        if name in os.environ:
            if not os.environ[name].isdecimal():
                raise ValueError(f"{name}={os.environ[name]}: not a number; torchrun sets it")
            env[name] = int(os.environ[name])
    rank, world_size = (env["RANK"], env["WORLD_SIZE"]) if {"RANK", "WORLD_SIZE"} <= set(env) else (0, 1)
    if dist.is_available() and dist.is_initialized():
        rank, world_size = dist.get_rank(), dist.get_world_size()
    local_world_size = min(env.get("LOCAL_WORLD_SIZE", torch.cuda.device_count() or world_size), world_size)
    return Ranks(rank, world_size, env.get("LOCAL_RANK", rank % local_world_size), local_world_size)


def union_of_group(ids: set[int]) -> set[int]:
    """The ids of all ranks of the process group, the same set on each; without a group `ids` themselves."""
    if not (dist.is_available() and dist.is_initialized()):
        return ids
    gathered: list[set[int]] = [set() for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, ids)
    return set[int]().union(*gathered)
