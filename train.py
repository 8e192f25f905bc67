"""Train a classifier from packed shards: `python train.py`, or `torchrun --nproc-per-node N train.py`.

Input: a packed dataset (`python -m shard_tools pack`) and a recipe. Output: a run directory with checkpoints,
metrics.jsonl, TensorBoard curves and report.png. Where a run stands is two integers, epoch and position; the plan
(`pipeline/plan.py`) tells the rest, for any number of ranks.
"""

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.losses import Loss, build_loss
from model.metrics import topk_correct
from model.networks import build_model
from model.optim import build_optimizer
from model.schedule import lr_at
from pipeline.batch import Batch, Loader
from pipeline.build import build_loader, threads_per_rank
from pipeline.feed import Feed
from pipeline.holes import BadSample
from pipeline.mixing import Mixer
from recipes import Recipe, recipe_file
from shard_tools.demo import ensure_demo
from shard_tools.format import ShardSet
from training import checkpoint, config, distributed, environment, quarantine
from training import run_dir as run_dirs
from training.distributed import StopFlag, World
from training.metrics import MetricsLog, StepLog
from training.progress import Progress
from training.report import write_report

DEMO_DATA = "data/demo"
# What may change when a run is resumed: it alters the speed or the log, not the result.
FREE_ON_RESUME = {"data.path", "data.threads", "data.prefetch", "data.read_ahead", "data.hw_decoder_load",
                  "data.max_bad_fraction", "train.eval_every", "train.checkpoint_every", "train.log_every"}  # fmt: skip


class Stopped(Exception):
    """A signal came and the checkpoint is written; the argument is the signal's name."""


class Learner(NamedTuple):
    """What a step trains. `model` runs `net`, wrapped for several ranks and compiled where the recipe says so."""

    net: nn.Module
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    loss_fn: Loss
    autocast: AbstractContextManager[Any]


@dataclass
class Standing:
    """Where a run stands. With the states of net, optimizer and scaler this is what a checkpoint holds."""

    epoch: int = 0
    position: int = 0  # samples of this epoch trained on, over all ranks
    step: int = 0  # optimizer steps done in the whole run
    best_top1: float = -1.0
    validation: dict[str, Any] | None = None  # of the net as it is now


def build_learner(recipe: Recipe, num_classes: int, world: World) -> Learner:
    torch.manual_seed(recipe.train.seed)
    wanted = {name: value for name, value in asdict(recipe.model).items() if name not in ("name", "compile")}
    net = build_model(recipe.model.name, num_classes, **wanted).to(world.device)
    model = distributed.wrap(net, world)
    if recipe.model.compile:
        model = torch.compile(model)  # type: ignore[assignment]
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(recipe.train.precision)
    return Learner(
        net=net,
        model=model,
        optimizer=build_optimizer(net, recipe.optimizer),
        scaler=torch.amp.GradScaler(world.device.type, enabled=dtype == torch.float16),
        loss_fn=build_loss(recipe.train.label_smoothing),
        autocast=torch.autocast(world.device.type, dtype=dtype) if dtype else nullcontext(),
    )


def train_step(learner: Learner, batches: Iterator[Batch], accumulation: int) -> tuple[Tensor, list[Tensor]]:
    """One optimizer step. Returns this rank's mean loss (a scalar on the device) and its batches' sample ids."""
    model, total, sample_ids = learner.model, None, []
    for micro in range(accumulation):
        images, labels, ids = next(batches)
        exchange = micro == accumulation - 1 or not hasattr(model, "no_sync")
        with nullcontext() if exchange else model.no_sync():  # type: ignore[operator]
            with learner.autocast:
                loss = learner.loss_fn(model(images), labels) / accumulation
            learner.scaler.scale(loss).backward()
        total = loss.detach() if total is None else total + loss.detach()
        sample_ids.append(ids)
    learner.scaler.step(learner.optimizer)
    learner.scaler.update()
    learner.optimizer.zero_grad(set_to_none=True)
    assert total is not None
    return total, sample_ids


@torch.inference_mode()
def evaluate(learner: Learner, loader: Loader, device: torch.device) -> dict[str, Any]:
    """Score every validation image once, over all ranks: top1 and top5 (fractions), loss (mean), num_images."""
    learner.net.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=device)
    for images, labels, _ in loader.iter_epoch(0):
        with learner.autocast:
            logits = learner.net(images).float()
        loss = F.cross_entropy(logits, labels, reduction="sum")
        sums += torch.stack([*topk_correct(logits, labels), loss, torch.ones_like(labels).sum()])
    top1, top5, loss_sum, num_images = distributed.sum_tensor(sums).tolist()
    if num_images != len(loader.feed.split):
        raise RuntimeError(f"validation counted {num_images:.0f} of {len(loader.feed.split)} images")
    mean = {"top1": top1 / num_images, "top5": top5 / num_images, "loss": loss_sum / num_images}
    return mean | {"num_images": int(num_images)}


def train(
    recipe: Recipe, dataset: ShardSet, world: World, run_dir: Path, resume_from: Path | None, max_steps: int | None
) -> None:
    """Train from where `resume_from` left off, or from scratch, to the end of the recipe or to `max_steps`."""
    train_loader, val_loader = build_loaders(recipe, dataset, world, run_dir)
    num_train, global_batch_size = len(train_loader.feed.split), recipe.train.global_batch_size
    steps_per_epoch = num_train // global_batch_size
    total_steps = recipe.train.epochs * steps_per_epoch
    last_step = total_steps if max_steps is None else min(total_steps, max_steps)

    learner = build_learner(recipe, len(dataset.classes), world)
    at = restore(resume_from, recipe, dataset, learner) if resume_from else Standing()
    train_loader.quarantine |= quarantine.read(run_dir, before_epoch=at.epoch)
    first_step, started = at.step, time.perf_counter()

    mixer = Mixer(recipe.augment, len(dataset.classes), seed=recipe.train.seed, rank=world.rank)
    metrics = MetricsLog(run_dir, enabled=world.is_main)
    progress = Progress(world.is_main, last_step, num_epochs=recipe.train.epochs)
    steps = StepLog(
        recipe.train.log_every,
        global_batch_size=global_batch_size,
        device=world.device,
        world_size=world.world_size,
        sum_over_ranks=distributed.sum_tensor,
    )

    def log_steps() -> None:
        lines = steps.flush()
        for fields in lines:
            metrics.step(**fields)
        if lines:
            shown = ("epoch", "loss", "lr", "images_per_s", "data_wait")
            progress.update(step=at.step, **{name: lines[-1][name] for name in shown})

    def save() -> None:
        if world.is_main:
            state = {name: getattr(learner, name).state_dict() for name in ("net", "optimizer", "scaler")}
            made_of = {"recipe": config.to_toml(recipe), "dataset": dataset.fingerprint}
            classes = {"classes": [asdict(c) for c in dataset.classes]}
            checkpoint.save(checkpoint.last_path(run_dir), {"at": asdict(at)} | state | made_of | classes)

    def validate() -> dict[str, Any]:
        distributed.broadcast_buffers(learner.net)
        at.validation = result = evaluate(learner, val_loader, world.device)
        metrics.eval(step=at.step, epoch=at.epoch, position=at.position, **result)
        counted = f"{result['num_images']}/{len(val_loader.feed.split)}"
        progress.print(f"step {at.step}: top-1 {result['top1']:.4f}, loss {result['loss']:.3f} on {counted} images")
        is_best, at.best_top1 = result["top1"] > at.best_top1, max(result["top1"], at.best_top1)
        save()
        if is_best and world.is_main:
            checkpoint.duplicate(checkpoint.last_path(run_dir), checkpoint.best_path(run_dir))
        return result

    with metrics, progress, StopFlag() as stop:
        while at.step < last_step:
            learner.net.train()
            steps.restart()
            train_loader.quarantine |= distributed.union(train_loader.quarantine, world)
            batches = mixer.mixed(steps.timed(train_loader.iter_epoch(at.epoch, at.position)), train_loader)
            while at.position + global_batch_size <= num_train and at.step < last_step:
                lr = lr_at(
                    at.step,
                    total_steps=total_steps,
                    steps_per_epoch=steps_per_epoch,
                    base_lr=recipe.optimizer.lr,
                    config=recipe.schedule,
                )
                for group in learner.optimizer.param_groups:
                    group["lr"] = lr
                torch.manual_seed((recipe.train.seed * 2**32 + at.step) * 2**12 + world.rank)  # no state to resume
                loss, sample_ids = train_step(learner, batches, recipe.train.accumulation)
                at.position, at.validation = train_loader.state[1], None
                steps.add(step=at.step, epoch=at.epoch, position=at.position, loss=loss, lr=lr, sample_ids=sample_ids)
                at.step += 1
                save_now = recipe.train.checkpoint_every and at.step % recipe.train.checkpoint_every == 0
                stop_now = stop.agreed()
                if steps.is_full or save_now or stop_now:
                    log_steps()
                if save_now or stop_now:
                    save()
                if stop_now:
                    raise Stopped(stop.signal or "SIGTERM")
            log_steps()
            if at.position + global_batch_size > num_train:
                bad_samples = len(quarantine.read(run_dir))  # of all ranks
                metrics.write("epoch", epoch=at.epoch, step=at.step, position=at.position, bad_samples=bad_samples)
                at.epoch, at.position = at.epoch + 1, 0
                if at.epoch % recipe.train.eval_every == 0 or at.epoch == recipe.train.epochs:
                    validate()
                else:
                    save()
        result = at.validation or validate()
        images_per_s = (at.step - first_step) * global_batch_size / steps.total_s if steps.total_s else 0.0
        data_wait = steps.total_wait_s / steps.total_s if steps.total_s else 0.0
        summary = {"top1": result["top1"], "images_per_s": images_per_s, "data_wait": data_wait}
        seconds = time.perf_counter() - started
        metrics.write("end", epoch=at.epoch, step=at.step, position=at.position, **summary, seconds=seconds)
    train_loader.close()
    val_loader.close()
    if world.is_main:
        click.echo(
            f"top-1             {result['top1']:.4f} ({result['num_images']}/{len(val_loader.feed.split)} images)\n"
            f"images/s          {images_per_s:,.0f} in training, {world.world_size} rank(s), {seconds:.0f} s in all\n"
            f"waiting for data  {data_wait:.1%} of the training time\n"
            f"checkpoint        {checkpoint.last_path(run_dir)}\n"
            f"report            {write_report(run_dir)}"
        )


def build_loaders(recipe: Recipe, dataset: ShardSet, world: World, run_dir: Path) -> tuple[Loader, Loader]:
    """This rank's training and validation loader."""
    parts = world.world_size * recipe.train.accumulation
    batch_size, rest = divmod(recipe.train.global_batch_size, parts)
    if rest or not batch_size:
        raise ValueError(
            f"train.global_batch_size {recipe.train.global_batch_size} is not a multiple of "
            f"{world.world_size} ranks × train.accumulation {recipe.train.accumulation}"
        )

    def on_bad(bad: BadSample) -> None:
        quarantine.append(run_dir, asdict(bad))
        click.echo(f"taken out: {bad.where}: {bad.reason}", err=True)

    threads = threads_per_rank(recipe.data.threads, world.local_world_size)
    share: dict[str, Any] = {"config": recipe.data, "rank": world.rank, "world_size": world.world_size}
    train_feed = Feed(
        split=dataset.split(recipe.data.train_split),
        augment=recipe.augment,
        batch_size=batch_size,
        global_batch_size=recipe.train.global_batch_size,
        seed=recipe.train.seed,
        **share,
    )
    val_feed = Feed(split=dataset.split(recipe.data.val_split), augment=None, batch_size=batch_size, **share)
    running: dict[str, Any] = {"device": world.device, "threads": threads, "dtype": image_dtype(recipe, world)}
    return build_loader(train_feed, on_bad=on_bad, **running), build_loader(val_feed, **running)


def image_dtype(recipe: Recipe, world: World) -> torch.dtype:
    """Half precision where autocast would make it so anyway; on the CPU DALI is faster in float32."""
    half = world.device.type == "cuda" and recipe.train.precision != "fp32"
    return torch.float16 if half else torch.float32


def restore(path: Path, recipe: Recipe, dataset: ShardSet, learner: Learner) -> Standing:
    """Load a checkpoint into the learner. Raises ValueError for one of another recipe or dataset: the difference."""
    state = checkpoint.load(path)
    changes = config.diff(config.from_toml(Recipe, state["recipe"], str(path)), recipe)
    changes = [line for line in changes if line.partition(":")[0] not in FREE_ON_RESUME]
    if changes:
        raise ValueError(f"{path}: made by another recipe ({'; '.join(changes)}); undo that, or --resume never")
    if state["dataset"] != dataset.fingerprint:
        raise ValueError(f"{path}: made from another dataset than {dataset.root}; give that one, or --resume never")
    for name in ("net", "optimizer", "scaler"):
        getattr(learner, name).load_state_dict(state[name])
    return Standing(**state["at"])


@click.command(context_settings={"show_default": True, "max_content_width": 110})
@click.option("--data", metavar="DIR", help="Packed dataset; without it the recipe's data.path (demo: own images).")
@click.option("--recipe", "recipe_name", default="demo", metavar="NAME|FILE", help="A file of recipes/, or a path.")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Override a recipe's value.")
@click.option("--run-dir", metavar="DIR", type=click.Path(path_type=Path), help="[default: runs/RECIPE-TIME]")
@click.option("--resume", default="auto", metavar="auto|never|PATH", help="auto: if --run-dir has a checkpoint.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="auto: CUDA if it is there.")
@click.option("--max-steps", type=click.IntRange(min=0), metavar="N", help="End after N steps of the whole run.")
@click.option("--deterministic", is_flag=True, help="Deterministic kernels on the GPU too; the CPU's always are.")
def main(
    data: str | None, recipe_name: str, overrides: tuple[str, ...], run_dir: Path | None, resume: str,
    device: Any, max_steps: int | None, deterministic: bool,
) -> None:  # fmt: skip
    """Train a classifier from packed shards.

    \b
    python train.py                                    the demo: makes its own images, 3 minutes on 2 cores
    python train.py --data DIR --recipe cifar10-cpu    DIR comes from: python -m shard_tools pack SOURCE DIR
    torchrun --nproc-per-node 8 train.py --data DIR --recipe rn50-imagenet

    Ctrl-C and SIGTERM write a checkpoint; the same command with the same --run-dir goes on there, on any number of
    GPUs that divides the global batch. The last lines say top-1, images/s and where the report lies.
    """
    try:
        file = recipe_file(recipe_name)
        recipe = config.load_config(Recipe, file, overrides)
        recipe = replace(recipe, data=replace(recipe.data, path=data or recipe.data.path))
        if not recipe.data.path:
            raise ValueError(f"recipe {recipe_name} names no data: give --data DIR")
        world = distributed.start(device)
        torch.backends.cudnn.benchmark = not deterministic
        torch.use_deterministic_algorithms(deterministic)
        torch.set_float32_matmul_precision("high")
        if recipe.data.path == DEMO_DATA and world.local_rank == 0:
            ensure_demo(Path(DEMO_DATA))
        now = distributed.sum_tensor(torch.tensor(int(time.time()) * world.is_main))  # rank 0's; also a barrier
        dataset = ShardSet.open(recipe.data.path)  # before a run directory is made for nothing
        run_dir = run_dir or Path("runs") / time.strftime(f"{file.stem}-%Y%m%d-%H%M%S", time.localtime(int(now)))
        resume_from = run_dirs.find_checkpoint(resume, run_dir)
        distributed.barrier()
        if world.is_main:
            aside = run_dirs.prepare(run_dir, config.to_toml(recipe), resume_from)
            hardware = f"{world.world_size} × {environment.device_name(world.device)}"
            click.echo(f"recipe {file.stem}, data {recipe.data.path}, {hardware}, run directory {run_dir}")
            if resume_from or aside:
                click.echo(f"resuming from {resume_from}" if resume_from else f"the earlier run there is now {aside}")
        distributed.barrier()
        train(recipe, dataset, world, run_dir, resume_from, max_steps)
    except Stopped as stopped:
        click.echo(
            f"{stopped}: checkpoint written; the same command with --run-dir {run_dir} goes on from it", err=True
        )
        sys.exit(128 + signal.Signals[str(stopped)].value)
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"{error.filename or run_dir}: {error.strerror or error}") from None
    finally:
        distributed.finish()


if __name__ == "__main__":
    main()
