"""What every run imports: done once, before they are forked."""

import matplotlib.pyplot  # noqa: F401
import numba  # noqa: F401
import nvidia.dali.fn
import nvidia.nvimgcodec  # noqa: F401
import torch._dynamo
import torch.distributed.run
import torch.utils.tensorboard  # noqa: F401

import pipeline.resize  # noqa: F401
import tests.integration.faults.inject  # noqa: F401
import train  # noqa: F401
