"""`train.py replay FILE`: repeat a failed step in one process and report where the first non-finite value appears.

Input: the `failed-step-N.pt` of a run. The replay restores the state before the failure and repeats the steps since
then by the plan. The failed step gets exactly its own batch, in the run's batch sizes, on one device.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

import click
import torch
from torch import Tensor, nn

from penstock.model.optim import set_lr
from penstock.model.schedule import lr_at
from penstock.pipeline.batch import Batch
from penstock.pipeline.holes import NO_SAMPLE
from penstock.pipeline.mixing import Mixer
from penstock.recipes import Recipe, config, recipe_at
from penstock.training import checkpoint, distributed, environment, quarantine
from penstock.training.data import open_dataset, train_loader
from penstock.training.distributed import World
from penstock.training.failure import out_of_memory
from penstock.training.learner import Learner, build_learner, set_state
from penstock.training.refusal import told_in_a_line
from penstock.training.request import Device
from penstock.training.step import seed_step


def run(file: Path, data: str | None, device: Device) -> None:
    """Run `train.py replay`. Its options are in commands/options.py."""
    with told_in_a_line(file):
        environment.choose_kernels()
        for line in replay(file, data, distributed.start(device)):
            click.echo(line)


def replay(file: Path, data: str | None, world: World) -> Iterator[str]:
    """Yield lines that describe the replay. Raises ValueError if the file or the dataset is not the run's."""
    saved = checkpoint.load(file)
    if "failed" not in saved:
        raise ValueError(f"{file}: a checkpoint, but not of a failed step. Give a file named failed-step-N.pt")
    failed = cast(checkpoint.FailedState, saved)["failed"]
    recipe = config.from_toml(Recipe, saved["recipe"], str(file))
    dataset = open_dataset(recipe, data)
    if saved["dataset"] != dataset.fingerprint:
        raise ValueError(
            f"{file}: the run used another dataset than {dataset.root}. Give the run's dataset with --data"
        )
    eager = replace(recipe.model, pretrained="", compile=False, compile_mode="auto", sync_batch_norm=False)
    recipe = replace(recipe, model=eager)
    learner = build_learner(recipe, len(dataset.classes), world, classes=dataset.classes)
    state = set_state(learner, saved)
    yield f"{failed['why']} in step {failed['step']}; repeating the steps from {state.step} on"

    now = recipe_at(recipe, state.phase_epoch)
    ranks, batch_size, global_batch_size = failed["world_size"], failed["batch_size"], now.train.global_batch_size
    parts = global_batch_size // batch_size  # one process does the work of all ranks, in the run's batches
    now = replace(now, train=replace(now.train, accumulation=parts))
    loader = train_loader(now, dataset, world, file.parent, quarantine.read(file.parent, before_epoch=state.epoch))
    mixers = [Mixer(now.augment, len(dataset.classes), seed=now.train.seed, rank=rank) for rank in range(ranks)]
    batches = loader.iter_epoch(failed["epoch"], state.position)
    steps_per_epoch = len(loader.feed.split) // global_batch_size
    learner.net.train()
    try:
        for step in range(state.step, failed["step"] + 1):
            epoch = state.schedule_epoch + state.pace * (step - state.step) / steps_per_epoch
            lr = lr_at(epoch, epochs=recipe.train.epochs, base_lr=recipe.optimizer.lr, config=recipe.schedule)
            set_lr(learner.optimizer, lr)
            start = state.position + (step - state.step) * global_batch_size
            ends = [start + (part // ranks + 1) * ranks * batch_size for part in range(parts)]
            taken = [replace(next(batches), position=end) for end in ends]
            fed = [mixers[part % ranks](batch) for part, batch in enumerate(taken)]
            if step == failed["step"]:
                yield from compared(fed, failed["sample_ids"])
            yield from run_step(learner, fed, ranks, step, lr, seed=recipe.train.seed)
    finally:
        loader.close()


def compared(fed: list[Batch], sample_ids: list[int]) -> Iterator[str]:
    """Yield a line that states whether the batch is that of the failed step. Places of bad samples hold no sample."""
    there = [i for batch in fed for i in batch.sample_ids.tolist()]
    differ = [b for a, b in zip(there, sample_ids, strict=True) if a not in (b, NO_SAMPLE)]
    same = f"the batch has the failed step's {len(there)} samples in the same order"
    yield same if not differ else f"the batch does NOT have the failed step's samples: {differ[:8]}"


def run_step(learner: Learner, batches: list[Batch], ranks: int, step: int, lr: float, *, seed: int) -> Iterator[str]:
    """Run one step as `train.py` does, and yield its loss, its gradient norm, and the first values that are not finite.

    `batches`: the batches of all ranks, in the order of their positions. Each rank has its own random numbers.
    """
    total = 0.0
    try:
        with out_of_memory(), watched(learner.net) as found:
            for rank, batch in ((r, batch) for r in range(ranks) for batch in batches[r::ranks]):
                if batch is batches[rank]:  # the rank's first
                    seed_step(seed, step, rank)
                with learner.autocast:
                    logits = learner.net(batch.images)
                    answers = learner.answers(batch.images)
                    loss = learner.loss_fn(logits, batch.labels, answers) / len(batches)
                if not torch.isfinite(batch.images).all():
                    yield f"step {step}: NaN or infinite images, samples {bad_rows(batch.images, batch.sample_ids)}"
                first = logits if isinstance(logits, Tensor) else logits[0]
                if not torch.isfinite(first).all():
                    yield f"step {step}: NaN or infinite logits, samples {bad_rows(first, batch.sample_ids)}"
                learner.scaler.scale(loss).backward()
                total += loss.item()
    except MemoryError as error:
        yield f"step {step}: out of memory ({error})"
        return
    learner.scaler.unscale_(learner.optimizer)
    gradients = {name: p.grad for name, p in learner.net.named_parameters() if p.grad is not None}
    norm = torch.nn.utils.get_total_norm(list(gradients.values())).item()
    yield f"step {step}: loss {total:.6g}, gradient norm {norm:.6g}, lr {lr:.4g}"
    if found:
        yield f"step {step}: the first module with a NaN or infinite output is {found[0]}"
    broken = [name for name, gradient in gradients.items() if not torch.isfinite(gradient).all()]
    if broken:
        yield f"step {step}: {len(broken)} gradients are NaN or infinite, last first: {', '.join(broken[::-1][:5])}"
    learner.scaler.step(learner.optimizer)
    learner.scaler.update()
    learner.optimizer.zero_grad(set_to_none=True)


@contextmanager
def watched(net: nn.Module) -> Iterator[list[str]]:
    """Collect the names of the modules with NaN or infinite outputs, in the order in which they ran."""
    found: list[str] = []

    def look(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and not torch.isfinite(output).all():
                found.append(f"{name or 'the network'} ({type(module).__name__})")

        return hook

    handles = [module.register_forward_hook(look(name)) for name, module in net.named_modules()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def bad_rows(rows: Tensor, sample_ids: Tensor) -> list[int]:
    """The sample ids of the rows (N, …) that contain a NaN or an infinity."""
    bad = ~torch.isfinite(rows.flatten(1)).all(1)
    return [int(i) for i in sample_ids[bad.cpu()]]
