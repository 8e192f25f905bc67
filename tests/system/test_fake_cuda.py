"""GPU code on fake tensors that claim to be on a GPU: devices, layouts, dtypes, and that nothing waits for the GPU.

Uses each recipe's own network, loss, optimizer and mixing. No data is computed. Backward passes, fused optimizers and
DALI do not run here; `tests/gpu` runs them.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from penstock.model.config import LossConfig, OptimizerConfig
from penstock.model.losses import LOSSES, build_loss
from penstock.model.optim import OPTIMIZERS, build_optimizer, set_lr
from penstock.pipeline.augment import AugmentConfig
from penstock.pipeline.batch import Batch
from penstock.pipeline.mixing import Mixer
from penstock.recipes import FOLDER, Recipe, config, recipe_file
from penstock.training.data import image_dtype
from penstock.training.evaluate import evaluate
from penstock.training.failure import Failure, finite
from penstock.training.inspection import EvalInspection
from penstock.training.learner import Learner, RunState, build_learner, capture
from penstock.training.snapshot import at_rest, snapshot
from penstock.training.step import train_step
from penstock.training.step_log import StepLog
from tests.common.fake_cuda import DEVICE, WORLD, Event, Gpu, Synchronised, fake_cuda

RECIPES = sorted(file.stem for file in FOLDER.glob("*.toml"))
CLASSES, BATCH = 10, 4


@pytest.fixture
def gpu() -> Iterator[Gpu]:
    with fake_cuda() as found:
        yield found


def recipe_named(name: str, *overrides: str) -> Recipe:
    return config.load_config(Recipe, recipe_file(name), ("model.compile=false", *overrides))


def batches_of(gpu: Gpu, recipe: Recipe, side: int) -> Iterator[Batch]:
    """Batches as a loader yields them: with the recipe's dtype, and the sample ids on the CPU."""
    while True:
        images = gpu.images(BATCH, side, image_dtype(recipe, WORLD))
        yield Batch(images, gpu.labels(BATCH), torch.empty(BATCH, dtype=torch.int64))


def stepped(gpu: Gpu, recipe: Recipe, steps: int = 2) -> tuple[Learner, StepLog]:
    """A learner after steps like those of `train.train`, up to the point where the log is read."""
    learner = build_learner(recipe, CLASSES, WORLD)
    learner.net.train()
    mixer = Mixer(recipe.augment, CLASSES)
    log = StepLog(steps, device=DEVICE)
    log.restart(global_batch_size=BATCH, epoch_digest=0)
    batches = mixer.mixed(log.timed(batches_of(gpu, recipe, recipe.data.image_size)))
    for step in range(steps):
        set_lr(learner.optimizer, 0.1)
        loss, norm, sample_ids, _ = train_step(learner, batches, recipe.train)
        assert (loss.dtype, loss.device, loss.shape) == (torch.float32, DEVICE, ())
        assert (norm is None) == (recipe.train.clip_grad_norm == 0)
        assert [ids.device.type for ids in sample_ids] == ["cpu"] * recipe.train.accumulation
        if learner.ema:
            learner.ema.update(learner.net, step)
        log.add(step=step, epoch=0, position=0, loss=loss, lr=0.1, grad_norm=norm)
    log.close()
    return learner, log


def tensors_in(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict):
        for value in state.values():
            yield from tensors_in(value)
    elif isinstance(state, list | tuple):
        for value in state:
            yield from tensors_in(value)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipes_steps(gpu: Gpu, name: str) -> None:
    learner, log = stepped(gpu, recipe_named(name))
    assert gpu.watch.contiguous == []
    for tensor in (
        *learner.net.parameters(),
        *learner.net.buffers(),
        *(learner.ema.net.parameters() if learner.ema else ()),
    ):
        assert tensor.device == DEVICE
    for parameter in learner.net.parameters():
        assert parameter.dtype == torch.float32
    state = snapshot(capture(learner, RunState()))
    assert all(tensor.device == DEVICE for tensor in tensors_in(state["net"]))
    with pytest.raises(Synchronised, match="an event"):
        log.take()


def test_half_precision_with_a_scaler(gpu: Gpu) -> None:
    learner, _ = stepped(gpu, recipe_named("rn50-90ep", "train.precision=fp16", "train.accumulation=2"))
    assert learner.scaler.is_enabled()
    assert gpu.watch.contiguous == []


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_what_autocast_runs_in(gpu: Gpu, precision: str) -> None:
    recipe = recipe_named("cifar10-rn18", f"train.precision={precision}")
    learner = build_learner(recipe, CLASSES, WORLD)
    batch = next(batches_of(gpu, recipe, 32))
    with learner.autocast:
        logits = learner.net(batch.images)
    assert logits.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shares", [False, True], ids=["labels", "shares"])
def test_losses(gpu: Gpu, name: Any, shares: bool) -> None:
    thresholds = [None, 0.2] if name == "bce" else [None]
    for threshold in thresholds:
        loss_fn = build_loss(LossConfig(name=name, bce_target_threshold=threshold))
        logits = torch.empty(BATCH, CLASSES, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
        labels = torch.empty(BATCH, CLASSES, device=DEVICE) if shares else gpu.labels(BATCH)
        for output in (logits, (logits, logits, None)):
            loss = loss_fn(output, labels)
            assert (loss.dtype, loss.device, loss.shape) == (torch.float32, DEVICE, ())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(gpu: Gpu, name: Any) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 4)).to(DEVICE)
    optimizer = build_optimizer(net, OptimizerConfig(name=name))
    for _ in range(2):
        for parameter in net.parameters():
            parameter.grad = torch.empty_like(parameter)
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    held = [tensor for tensor in tensors_in(optimizer.state_dict()["state"]) if tensor.dim()]
    assert held
    assert all(tensor.device == DEVICE for tensor in held)


@pytest.mark.parametrize("mixing", [{"mixup": 0.2}, {"cutmix": 1.0}, {"mixup": 0.2, "cutmix": 1.0}], ids=str)
def test_mixing_keeps_the_layout(gpu: Gpu, mixing: Any) -> None:
    recipe = Recipe(augment=AugmentConfig(**mixing))
    batch = Mixer(recipe.augment, CLASSES)(next(batches_of(gpu, recipe, 32)))
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert (batch.images.dtype, batch.images.device) == (torch.float16, DEVICE)
    assert (batch.labels.shape, batch.labels.device) == ((BATCH, CLASSES), DEVICE)


class Loader:
    """Validation's batches; their sample ids stay on the CPU, as every loader has them."""

    def __init__(self, gpu: Gpu, recipe: Recipe) -> None:
        self._batches = batches_of(gpu, recipe, recipe.data.val_image_size)
        self.feed = SimpleNamespace(
            split=range(2 * BATCH), num_samples=2 * BATCH, batch_size=BATCH, rank=0, world_size=1
        )

    def iter_epoch(self, epoch: int) -> Iterator[Batch]:
        return (next(self._batches) for _ in range(2))


class Reached(Exception):
    """The end of a validation's batches, where the CPU waits for the device."""


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipes_validation(gpu: Gpu, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_named(name)
    learner = build_learner(recipe, CLASSES, WORLD)
    nets = {"": learner.net} | ({"ema_": learner.ema.net} if learner.ema else {})

    def reached(sums: Tensor) -> Tensor:
        assert (sums.dtype, sums.device, sums.shape) == (torch.float64, DEVICE, (len(nets), 4))
        raise Reached

    monkeypatch.setattr("penstock.training.distributed.sum_tensor", reached)
    loader: Any = Loader(gpu, recipe)
    with pytest.raises(Reached):
        evaluate(nets, loader, DEVICE, learner.autocast, num_classes=CLASSES, flip=recipe.train.val_flip)
    assert gpu.watch.contiguous == []


@pytest.mark.parametrize("num_classes", [10, 5000], ids=["pairs", "no pairs"])
def test_inspection_stays_on_the_device(gpu: Gpu, num_classes: int) -> None:
    inspection = EvalInspection(num_classes, DEVICE)
    logits = torch.empty(BATCH, num_classes, device=DEVICE)
    for _ in range(2):
        inspection.add(logits, gpu.labels(BATCH), torch.empty(BATCH, dtype=torch.int64, device=DEVICE))
    assert {tensor.device for tensor in (inspection._values, inspection._ids, inspection._confusion)} == {DEVICE}


class Stream:
    """Replaces `torch.cuda.Stream`, and records the calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def wait_event(self, event: Event) -> None:
        assert event.recorded
        self.calls.append("wait_event")

    def synchronize(self) -> None:
        self.calls.append("synchronize")

    def __enter__(self) -> None:
        self.calls.append("enter")

    def __exit__(self, *_: object) -> None:
        self.calls.append("exit")


def test_a_checkpoint_is_copied_beside_training(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clone in the training's stream, then over the writer's own stream to pinned memory, which is waited for."""
    learner, _ = stepped(gpu, recipe_named("cifar10-rn18"), steps=1)
    stream = Stream()
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda entered: entered)
    state = snapshot(capture(learner, RunState()))
    ready = Event()
    ready.record()
    copied = at_rest(state, ready)
    assert stream.calls == ["enter", "wait_event", "exit", "synchronize"]
    assert {tensor.device.type for tensor in tensors_in(copied)} == {"cpu"}


def test_a_failures_state_waits_for_nothing_until_it_is_judged(gpu: Gpu, tmp_path: Path) -> None:
    learner, _ = stepped(gpu, recipe_named("cifar10-rn18"), steps=1)
    assert (finite(learner.net).device, finite(learner.net).dtype) == (DEVICE, torch.bool)
    failure = Failure(tmp_path, WORLD, lambda: capture(learner, RunState()), {})
    failure.all_is_well()
    failure.keep(learner.net)
    with pytest.raises(Synchronised, match="an event"):
        failure.is_well()


def test_what_waits_is_seen(gpu: Gpu) -> None:
    """Test the watch itself: it must find each of these faults."""
    on_gpu, on_cpu = torch.empty(3, device=DEVICE), torch.empty(3)
    for fault in (
        lambda: on_gpu.sum().item(),
        lambda: on_gpu.cpu(),
        lambda: on_gpu.tolist(),
        lambda: on_gpu.copy_(on_cpu),
        lambda: on_gpu[on_gpu > 0],
        lambda: bool(on_gpu.sum() > 0),
    ):
        with pytest.raises(Synchronised):
            fault()
    with pytest.raises(RuntimeError, match="device"):
        torch.stack([on_gpu, on_cpu])
    on_gpu.to("cpu", non_blocking=True)
    assert on_gpu.copy_(on_cpu, non_blocking=True).is_cuda


def test_a_phases_sizes_are_the_recipes(gpu: Gpu) -> None:
    """Each size of a phase goes through the network that the recipe builds."""
    recipe = recipe_named("rn18-16ep")
    learner = build_learner(recipe, CLASSES, WORLD)
    for size in recipe.phases.image_size:
        batches = batches_of(gpu, recipe, size)
        now = replace(recipe, data=replace(recipe.data, image_size=size))
        train_step(learner, batches, now.train)
    assert gpu.watch.contiguous == []
