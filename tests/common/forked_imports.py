"""The modules that programs import, imported once in the process that forks them (`tests/common/forked.py`)."""

import matplotlib.pyplot  # noqa: F401
import numba  # noqa: F401
import nvidia.dali.fn
import nvidia.nvimgcodec  # noqa: F401
import torch._dynamo
import torch._inductor.compile_fx
import torch.distributed.elastic.multiprocessing.api
import torch.distributed.launcher.api
import torch.utils.tensorboard  # noqa: F401
import torchvision  # noqa: F401

import penstock.benchmarks.programs
import penstock.pipeline.resize
import penstock.shard_tools.verify
import penstock.shard_tools.writer
import penstock.training.run  # noqa: F401
from penstock import train  # noqa: F401
