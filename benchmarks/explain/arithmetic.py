"""The FLOPs of a training step and the device's peak, which together give the MFU (model FLOPs utilization).

A multiply-add counts as two FLOPs. The peak is measured: the best of a few turns of a large square matrix product.
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
BATCH = 2  # BatchNorm needs more than one image


def training_flops(setup: BenchSetup) -> float:
    """Count the FLOPs per image of a training step, forward and backward, with torch's counter on the meta device."""
    net, size = meta_network(setup).train(), setup.recipe.data.image_size
    with FlopCounterMode(display=False) as counter:
        logits = tree_leaves(net(torch.empty(BATCH, 3, size, size, device="meta")))  # includes auxiliary heads' logits
        torch.stack([one.sum() for one in logits if isinstance(one, torch.Tensor)]).sum().backward()
    return float(counter.get_total_flops() / BATCH)


def peak_flops_per_s(setup: BenchSetup) -> float:
    """Measure FLOP/s of a matrix product in the training precision, summed over all ranks."""
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
