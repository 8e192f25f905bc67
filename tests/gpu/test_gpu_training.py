"""Steps as CUDA graphs and steps with kernels launched one by one give the same training."""

import gzip
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from penstock.model.config import EmaConfig, ModelConfig, OptimizerConfig
from penstock.pipeline.batch import Batch
from penstock.recipes import Recipe, TrainConfig
from penstock.training.distributed import World
from penstock.training.learner import Learner, build_learner
from penstock.training.profile import SKIPPED, Profile
from penstock.training.step import train_step

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

DEVICE = torch.device("cuda", 0)
STEPS = 12
RECIPE = Recipe(
    model=ModelConfig(name="cifar_resnet20"),
    optimizer=OptimizerConfig(lr=0.05, momentum=0.9),
    ema=EmaConfig(decay=0.5),
    train=TrainConfig(precision="fp32", clip_grad_norm=1.0),
)


@pytest.fixture(autouse=True)
def _exact(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Use exact float32 products, and discard compiled code afterwards."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    yield
    torch.compiler.reset()


def batches(seed: int | None = None) -> Iterator[Batch]:
    """Each batch has its own memory, freed when the next is requested. With a seed, the same batch repeats."""
    generator = torch.Generator().manual_seed(seed or 0)
    while True:
        if seed is not None:
            generator.manual_seed(seed)
        images = torch.randn(32, 3, 32, 32, generator=generator).to(DEVICE, memory_format=torch.channels_last)
        labels = torch.randint(10, (32,), generator=generator)
        yield Batch(images, labels.to(DEVICE), torch.arange(32))
        del images


def trained(recipe: Recipe, given: Iterator[Batch]) -> tuple[Learner, list[float], list[float]]:
    """A learner after some steps, its losses and its gradients' norms."""
    learner = build_learner(recipe, 10, World(0, 0, 1, 1, DEVICE))
    learner.net.train()
    losses, norms = [], []
    for step in range(STEPS):
        torch.manual_seed(step)
        loss, norm, *_ = train_step(learner, given, recipe.train)
        assert learner.ema
        learner.ema.update(learner.net, step)
        losses.append(loss)
        norms.append(norm)
    return learner, [float(loss) for loss in losses], [float(norm) for norm in norms if norm is not None]


def compiled(recipe: Recipe) -> Recipe:
    return replace(recipe, model=replace(recipe.model, compile=True))


def test_graphs_train_as_kernels_do() -> None:
    eager, *expected = trained(RECIPE, batches())
    graphed, *found = trained(compiled(RECIPE), batches())
    assert graphed.is_compiled
    torch.testing.assert_close(found, expected, rtol=5e-3, atol=1e-3)
    assert eager.ema
    assert graphed.ema
    for one, other in ((graphed.net, eager.net), (graphed.ema.net, eager.ema.net)):
        theirs: dict[str, Any] = other.state_dict()
        for name, value in one.state_dict().items():
            torch.testing.assert_close(
                value, theirs[name], rtol=5e-2, atol=5e-3, msg=lambda text, n=name: f"{n}: {text}"
            )


def test_they_are_graphs() -> None:
    from torch._dynamo.utils import counters

    counters.clear()
    trained(compiled(RECIPE), batches())
    assert counters["inductor"]["cudagraph_skips"] == 0


def test_each_replay_draws_anew() -> None:
    """What is dropped in one step is not what is dropped in the next: the same images, the same weights, other losses;
    and the step's seed gives the same again."""
    model = ModelConfig(name="resnet18", stem="small", stochastic_depth=0.8, zero_init_residual=False)
    still = replace(RECIPE, model=model, optimizer=OptimizerConfig(lr=1e-30, weight_decay=0.0))
    losses = [trained(compiled(still), batches(seed=1))[1] for _ in range(2)]
    assert len({round(loss, 4) for loss in losses[0]}) > STEPS // 2
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_a_trace_has_the_gpus_kernels_and_its_times(tmp_path: Path) -> None:
    learner, given = build_learner(RECIPE, 10, World(0, 0, 1, 1, DEVICE)), batches()
    learner.net.train()
    with Profile(2, tmp_path, World(0, 0, 1, 1, DEVICE)) as profile:
        for _ in range(SKIPPED + 2):
            train_step(learner, given, RECIPE.train)
            profile.stepped()
    events = json.loads(gzip.decompress((tmp_path / "trace.json.gz").read_bytes()))["traceEvents"]
    assert sum(event.get("cat") == "kernel" for event in events) > 100
    times = {words[0]: float(words[1]) for words in map(str.split, profile.lines()[1:])}
    assert min(times[name] for name in ("forward", "backward", "step")) > 0
    assert all("ms per step of the GPU" in line for line in profile.lines()[1:])
