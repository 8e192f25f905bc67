"""One training step of two ranks is the step of one process on the joint batch, to float rounding.

The network has no BatchNorm, since each rank keeps its own statistics. torchrun runs this file as each rank's program.
"""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.common import forked

ROOT = Path(__file__).parents[2]
STEPS, SAMPLES, CLASSES = 3, 12, 5


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.norm(self.conv(images))).mean((2, 3)))


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(SAMPLES, 3, 8, 8, generator=generator).to(memory_format=torch.channels_last)
    return images, torch.randint(CLASSES, (SAMPLES,), generator=generator)


def train_steps(accumulation: int, compiled: bool) -> dict[str, torch.Tensor]:
    """The project's own steps on this rank's share of the batches."""
    sys.path.insert(0, str(ROOT))
    from penstock.model.config import ModelConfig
    from penstock.model.networks import OWN_NETWORKS
    from penstock.recipes import OptimizerConfig, Recipe, TrainConfig

    OWN_NETWORKS["plain"] = lambda num_classes: Plain()
    from penstock.model.config import EmaConfig
    from penstock.pipeline.batch import Batch
    from penstock.training import distributed
    from penstock.training.learner import build_learner
    from penstock.training.step import train_step

    recipe = Recipe(
        model=ModelConfig(name="plain", compile=compiled),
        optimizer=OptimizerConfig(name="sgd", lr=0.1, momentum=0.9, nesterov=False, weight_decay=1e-2),
        ema=EmaConfig(decay=0.9),
        train=TrainConfig(precision="fp32", accumulation=accumulation, clip_grad_norm=0.5),
    )
    recipe = replace(recipe, loss=replace(recipe.loss, label_smoothing=0.1))
    world = distributed.start("cpu")
    learner = build_learner(recipe, CLASSES, world)
    parts = world.world_size * accumulation
    for step in range(STEPS):
        images, labels = (tensor.chunk(parts)[world.rank :: world.world_size] for tensor in batch(step))
        batches = (Batch(i, y, torch.zeros(len(y))) for i, y in zip(images, labels, strict=True))
        train_step(learner, batches, recipe.train)
        assert learner.ema
        learner.ema.update(learner.net, step)
    state = learner.net.state_dict() | {f"ema.{k}": v for k, v in learner.ema.net.state_dict().items()}
    distributed.finish()
    return state if world.is_main else {}


def by_torch_alone() -> dict[str, torch.Tensor]:
    """The same on the joint batch, from torch's own parts."""
    torch.manual_seed(0)
    net = Plain().to(memory_format=torch.channels_last)
    average = torch.optim.swa_utils.AveragedModel(net)
    decayed = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 1e-2}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    loss_fn = nn.CrossEntropyLoss(label_smoothing=0.1)
    for step in range(STEPS):
        images, labels = batch(step)
        optimizer.zero_grad()
        loss_fn(net(images), labels).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        optimizer.step()
        decay = min(0.9, (1 + step) / (10 + step))
        for a, p in zip(average.module.parameters(), net.parameters(), strict=True):
            a.data.mul_(decay).add_(p.data, alpha=1 - decay)
    return net.state_dict() | {f"ema.{k}": v for k, v in average.module.state_dict().items()}


@pytest.mark.parametrize(("ranks", "accumulation", "compiled"), [(2, 1, False), (2, 3, False), (2, 3, True)])
def test_the_step_is_that_of_the_joint_batch(ranks: int, accumulation: int, compiled: bool, tmp_path: Path) -> None:
    out = tmp_path / "state.pt"
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", ranks]
    done = forked.run([*words, __file__, accumulation, int(compiled), out], timeout=300)
    assert done.returncode == 0, done.stderr
    ours, expected = torch.load(out, weights_only=True), by_torch_alone()
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(ours[name], tensor, rtol=2e-6, atol=2e-7, msg=lambda m, name=name: f"{name}: {m}")


if __name__ == "__main__":
    if state := train_steps(int(sys.argv[1]), sys.argv[2] == "1"):
        torch.save(state, sys.argv[3])
