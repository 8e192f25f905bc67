"""The arithmetic of a training step, and what the device can do of it: MFU, the model FLOPs utilization.

A multiply-add is two FLOPs. The device's peak is measured: the best of a few turns of a large square matrix product.
"""

import torch
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from penstock.benchmarks.explain.stages import meta_network
from penstock.benchmarks.options import BenchSetup
from penstock.benchmarks.programs import Stopwatch
from penstock.training.learner import autocast_dtype

MATMUL_SIDE = {"cpu": 1024, "cuda": 8192}
TURNS, TURN_S = 5, 0.2
BATCH = 2  # BatchNorm wants more than one


def training_flops(setup: BenchSetup) -> float:
    """FLOPs an image of a training step, forward and backward, by torch's counter on the meta device."""
    net, size = meta_network(setup).train(), setup.recipe.data.image_size
    with FlopCounterMode(display=False) as counter:
        logits = tree_leaves(net(torch.empty(BATCH, 3, size, size, device="meta")))  # auxiliary heads have theirs
        torch.stack([one.sum() for one in logits if isinstance(one, torch.Tensor)]).sum().backward()
    return float(counter.get_total_flops() / BATCH)


def peak_flops_per_s(setup: BenchSetup) -> float:
    """Of the matrix product in the precision of training, over all ranks."""
    device, side = setup.world.device, MATMUL_SIDE[setup.world.device.type]
    dtype = autocast_dtype(setup.recipe, device) or torch.float32
    a, b, out = (torch.randn(side, side, device=device).to(dtype) for _ in range(3))
    torch.mm(a, b, out=out)
    rates = []
    for _ in range(TURNS):
        watch, calls = Stopwatch(device), 0
        while watch.running() < TURN_S:
            torch.mm(a, b, out=out)
            calls += 1
        rates.append(calls / watch.lap())
    return 2 * side**3 * max(rates) * setup.world.world_size
