"""Train a classifier from packed shards: `python train.py`, or `torchrun --nproc-per-node N train.py`.

Input: a packed dataset (`python -m shard_tools pack`) and a recipe. Output: a run directory with checkpoints,
metrics.jsonl, TensorBoard curves and report.png. Where a run stands is two integers, epoch and position; the plan
(`pipeline/plan.py`) tells the rest, for any number of ranks.
"""

import json
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.losses import build_loss
from model.metrics import topk_correct
from model.networks import build_model
from model.optim import build_optimizer
from model.schedule import lr_at
from pipeline.batch import Batch, Loader
from pipeline.build import build_loader, threads_per_rank
from pipeline.feed import Feed
from pipeline.loader import BadSample
from recipes import Recipe, recipe_file
from shard_tools.format import INFO_FILE, ShardSet
from training import checkpoint, distributed, environment, quarantine
from training.config import diff, load_config, to_toml
from training.distributed import StopFlag, World
from training.metrics import MetricsLog, StepLog
from training.progress import Progress
from training.report import write_report

DEMO_DATA = "data/demo"
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
# What a resumed run may change: it alters the speed or the log, not the result.
FREE_ON_RESUME = ("data.path", "data.threads", "data.prefetch", "data.read_ahead", "data.hw_decoder_load",
                  "data.max_bad_fraction", "train.eval_every", "train.checkpoint_every", "train.log_every")  # fmt: skip


class Stopped(Exception):
    """A signal came and the checkpoint is written; the argument is the signal's name."""


@dataclass
class Standing:
    """Where a run stands. With the states of model, optimizer and scaler this is what a checkpoint holds."""

    epoch: int = 0
    position: int = 0  # samples of this epoch trained on, over all ranks
    step: int = 0  # optimizer steps done in the whole run
    best_top1: float = -1.0
    validation: dict[str, Any] | None = None  # of exactly this state of the model


def train(recipe: Recipe, world: World, run_dir: Path, resume_from: Path | None, max_steps: int | None) -> None:
    """Train from where `resume_from` left off, or from scratch, to the end of the recipe or to `max_steps`."""
    dataset = ShardSet.open(recipe.data.path)
    taken_out = quarantine.read(run_dir)
    train_loader, val_loader = build_loaders(recipe, dataset, world, run_dir, taken_out)
    accumulation, global_batch_size = recipe.train.accumulation, recipe.train.global_batch_size
    num_train, num_val = (len(loader.feed.split) for loader in (train_loader, val_loader))
    steps_per_epoch = num_train // global_batch_size
    total_steps = recipe.train.epochs * steps_per_epoch
    last_step = total_steps if max_steps is None else min(total_steps, max_steps)

    torch.manual_seed(recipe.train.seed)
    net = build_model(
        recipe.model.name,
        len(dataset.classes),
        stem=recipe.model.stem,
        zero_init_residual=recipe.model.zero_init_residual,
        channels_last=recipe.model.channels_last,
    ).to(world.device)
    optimizer = build_optimizer(net, recipe.optimizer)
    scaler = torch.amp.GradScaler(world.device.type, enabled=recipe.train.precision == "fp16")
    loss_fn = build_loss(recipe.train.label_smoothing)
    at = restore(resume_from, recipe, dataset, net, optimizer, scaler) if resume_from else Standing()
    first_step = at.step
    model = distributed.wrap(net, world)
    if recipe.model.compile:
        model = torch.compile(model)  # type: ignore[assignment]

    def train_step(batches: Iterator[Batch]) -> tuple[Tensor, list[Tensor]]:
        """One optimizer step. Returns this rank's mean loss, on the device, and the ids of its samples."""
        loss, sample_ids = torch.zeros((), device=world.device), []
        for micro in range(accumulation):
            images, labels, ids = next(batches)
            hold_gradients = world.world_size > 1 and micro < accumulation - 1
            with model.no_sync() if hold_gradients else nullcontext():  # type: ignore[operator]
                with autocast(recipe, world):
                    micro_loss = loss_fn(model(in_precision(images, recipe)), labels) / accumulation
                scaler.scale(micro_loss).backward()
            loss += micro_loss.detach()
            sample_ids.append(ids)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        return loss, sample_ids

    def save() -> None:
        if world.is_main:
            states = {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "scaler": scaler.state_dict()}
            made_from = {"recipe": to_toml(recipe), "dataset": dataset.fingerprint}
            classes = [asdict(c) for c in dataset.classes]
            checkpoint.save(checkpoint.last_path(run_dir), {"at": asdict(at), **states, **made_from, "classes": classes})

    def log_steps() -> None:
        for fields in (lines := steps.flush()):
            metrics.step(**fields)
        if lines:
            progress.update(**{k: lines[-1][k] for k in ("epoch", "loss", "lr", "images_per_s", "data_wait")}, step=at.step)

    def validate() -> None:
        distributed.broadcast_buffers(net)
        at.validation = evaluate(net, val_loader, recipe, world)
        metrics.eval(step=at.step, epoch=at.epoch, position=at.position, **at.validation)
        top1, counted = at.validation["top1"], f"{at.validation['num_images']}/{num_val}"
        progress.print(f"after epoch {at.epoch}, step {at.step}: top-1 {top1:.4f} on {counted} validation images")
        is_best, at.best_top1 = top1 > at.best_top1, max(top1, at.best_top1)
        save()
        if is_best and world.is_main:
            checkpoint.duplicate(checkpoint.last_path(run_dir), checkpoint.best_path(run_dir))

    steps = StepLog(
        recipe.train.log_every,
        global_batch_size=global_batch_size,
        device=world.device,
        world_size=world.world_size,
        sum_over_ranks=distributed.sum_tensor,
    )
    metrics = MetricsLog(run_dir, enabled=world.is_main)
    progress = Progress(world.is_main, last_step, num_epochs=recipe.train.epochs)
    started = time.perf_counter()
    with metrics, progress, StopFlag() as stop:
        while at.step < last_step:
            model.train()
            steps.restart()
            batches = steps.timed(train_loader.iter_epoch(at.epoch, at.position))
            for _ in range(min((num_train - at.position) // global_batch_size, last_step - at.step)):
                lr = lr_at(
                    at.step,
                    total_steps=total_steps,
                    steps_per_epoch=steps_per_epoch,
                    base_lr=recipe.optimizer.lr,
                    config=recipe.schedule,
                )
                for group in optimizer.param_groups:
                    group["lr"] = lr
                torch.manual_seed((recipe.train.seed * 2**32 + at.step) * 2**12 + world.rank)  # dropout: no state
                loss, ids = train_step(batches)
                at.position, at.validation = train_loader.state[1], None
                steps.add(step=at.step, epoch=at.epoch, position=at.position, loss=loss, lr=lr, sample_ids=ids)
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
            if num_train - at.position < global_batch_size:
                bad_samples = len(quarantine.read(run_dir))  # of all ranks
                metrics.write("epoch", step=at.step, epoch=at.epoch, position=at.position, bad_samples=bad_samples)
                at.epoch, at.position = at.epoch + 1, 0
                if at.epoch % recipe.train.eval_every == 0 or at.epoch == recipe.train.epochs:
                    validate()
                else:
                    save()
        if at.validation is None:
            validate()
        result = {
            "top1": at.validation["top1"],
            "images_per_s": (at.step - first_step) * global_batch_size / steps.total_s if steps.total_s else 0.0,
            "data_wait": steps.total_wait_s / steps.total_s if steps.total_s else 0.0,
            "seconds": time.perf_counter() - started,
        }
        metrics.write("end", epoch=at.epoch, step=at.step, position=at.position, **result)
    for loader in (train_loader, val_loader):
        loader.close()
    if world.is_main:
        click.echo(f"top-1             {result['top1']:.4f} ({at.validation['num_images']}/{num_val} validation images)")
        click.echo(f"images/s          {result['images_per_s']:,.0f} in training, over {world.world_size} rank(s)")
        click.echo(f"waiting for data  {result['data_wait']:.1%} of the training time")
        click.echo(f"checkpoint        {checkpoint.last_path(run_dir)}")
        click.echo(f"report            {write_report(run_dir)}")


@torch.inference_mode()
def evaluate(net: nn.Module, loader: Loader, recipe: Recipe, world: World) -> dict[str, Any]:
    """Score every validation image once, over all ranks: top1 and top5 (fractions), loss (mean), num_images."""
    net.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=world.device)
    for images, labels, _ in loader.iter_epoch(0):
        with autocast(recipe, world):
            logits = net(in_precision(images, recipe)).float()
        top1, top5 = topk_correct(logits, labels)
        sums += torch.stack([top1, top5, F.cross_entropy(logits, labels, reduction="sum"), top1.new_tensor(len(labels))])
    top1, top5, loss, num_images = distributed.sum_tensor(sums).tolist()
    if num_images != len(loader.feed.split):
        raise RuntimeError(f"validation counted {num_images:.0f} images of {len(loader.feed.split)}")
    return {"top1": top1 / num_images, "top5": top5 / num_images, "loss": loss / num_images, "num_images": int(num_images)}


def autocast(recipe: Recipe, world: World) -> AbstractContextManager[Any]:
    dtype = AUTOCAST.get(recipe.train.precision)
    return torch.autocast(world.device.type, dtype=dtype) if dtype else nullcontext()


def in_precision(images: Tensor, recipe: Recipe) -> Tensor:
    """Images as the network takes them: autocast casts by itself, float32 training on a GPU is given float16."""
    return images if recipe.train.precision in AUTOCAST else images.float()


def build_loaders(
    recipe: Recipe, dataset: ShardSet, world: World, run_dir: Path, taken_out: set[int]
) -> tuple[Loader, Loader]:
    """The training and the validation loader of this rank. Bad training samples are added to `taken_out`."""
    ranks, accumulation = world.world_size, recipe.train.accumulation
    batch_size, rest = divmod(recipe.train.global_batch_size, ranks * accumulation)
    if rest:
        raise ValueError(
            f"train.global_batch_size {recipe.train.global_batch_size} is not a multiple of {ranks} ranks "
            f"× train.accumulation {accumulation}"
        )

    def on_bad(bad: BadSample) -> None:
        quarantine.append(run_dir, asdict(bad))
        click.echo(f"taken out: {bad.where}: {bad.reason}", err=True)

    share: dict[str, Any] = {"config": recipe.data, "batch_size": batch_size, "rank": world.rank, "world_size": ranks}
    train_feed = Feed(
        split=dataset.split(recipe.data.train_split),
        augment=recipe.augment,
        global_batch_size=recipe.train.global_batch_size,
        seed=recipe.train.seed,
        **share,
    )
    val_feed = Feed(split=dataset.split(recipe.data.val_split), augment=None, **share)
    running: dict[str, Any] = {
        "device": world.device, "threads": threads_per_rank(recipe.data.threads, world.local_world_size)
    }
    return build_loader(train_feed, quarantine=taken_out, on_bad=on_bad, **running), build_loader(val_feed, **running)


def restore(
    path: Path, recipe: Recipe, dataset: ShardSet, net: nn.Module, optimizer: torch.optim.Optimizer, scaler: Any
) -> Standing:
    """Load a checkpoint. Raises ValueError where it is of another dataset or recipe, with the difference."""
    state = checkpoint.load(path)
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(state["recipe"])
        file.flush()
        saved = load_config(Recipe, Path(file.name))
    changes = [line for line in diff(saved, recipe) if line.split(":")[0] not in FREE_ON_RESUME]
    if changes:
        raise ValueError(f"{path}: made by another recipe ({'; '.join(changes)}); undo that, or give --resume never")
    if state["dataset"] != dataset.fingerprint:
        raise ValueError(f"{path}: made from another dataset than {dataset.root}; give that one, or --resume never")
    net.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    scaler.load_state_dict(state["scaler"])
    return Standing(**state["at"])


def find_checkpoint(resume: str, run_dir: Path) -> Path | None:
    """What `--resume` names. Raises ValueError where it names nothing."""
    if resume == "auto":
        return checkpoint.newest(run_dir)
    if resume == "never":
        return None
    path = Path(resume)
    found = checkpoint.newest(path) if path.is_dir() else path
    if found is None or not found.is_file():
        raise ValueError(f"--resume {resume}: no checkpoint there; give auto, never, a run directory or a .pt file")
    return found


def prepare_run_dir(run_dir: Path, recipe: Recipe, resume: str) -> None:
    """Make the directory and note settings and environment. An earlier run that is not resumed is moved aside."""
    if resume != "auto" and (run_dir / "config.toml").exists():
        aside = next(p for i in range(1, sys.maxsize) if not (p := run_dir.with_name(f"{run_dir.name}.{i}")).exists())
        run_dir.rename(aside)
        click.echo(f"the earlier run in {run_dir} is now {aside}")
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.toml").write_text(to_toml(recipe), encoding="utf-8")
    (run_dir / "env.json").write_text(json.dumps(environment.describe(), indent=1), encoding="utf-8")


def make_demo_data(path: str) -> None:
    from shard_tools.demo import make_demo

    if not Path(path, INFO_FILE).exists():
        click.echo(f"making the demo images in {path} (once)")
        make_demo(Path(path))


@click.command(context_settings={"show_default": True, "max_content_width": 110})
@click.option("--data", metavar="DIR", help="Packed dataset. Without it the recipe's data.path: the demo's own images.")
@click.option("--recipe", "recipe_name", default="demo", metavar="NAME|FILE", help="A file of recipes/, or a path.")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Override a recipe's value.")
@click.option("--run-dir", metavar="DIR", type=click.Path(path_type=Path), help="[default: runs/RECIPE-TIME]")
@click.option("--resume", default="auto", metavar="auto|never|PATH", help="auto: go on where --run-dir has a checkpoint.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="auto: CUDA if there is one.")
@click.option("--max-steps", type=click.IntRange(min=0), metavar="N", help="End after N steps of the whole run.")
@click.option("--deterministic", is_flag=True, help="Deterministic kernels on the GPU too; the CPU's always are.")
def main(
    data: str | None, recipe_name: str, overrides: tuple[str, ...], run_dir: Path | None, resume: str, device: Any,
    max_steps: int | None, deterministic: bool,
) -> None:
    """Train a classifier from packed shards.

    \b
    python train.py                                              demo: makes its own images, 3 minutes on 2 cores
    python train.py --data DIR --recipe cifar10-cpu              DIR from: python -m shard_tools pack SOURCE DIR
    torchrun --nproc-per-node 8 train.py --data DIR --recipe rn50-imagenet

    Ctrl-C or SIGTERM writes a checkpoint; the same command with the same --run-dir goes on there, on any number of
    GPUs that divides the global batch. The last lines say top-1, images/s and where the report lies.
    """
    try:
        file = recipe_file(recipe_name)
        recipe = load_config(Recipe, file, overrides)
        if data:
            recipe = replace(recipe, data=replace(recipe.data, path=data))
        if not recipe.data.path:
            raise ValueError(f"recipe {recipe_name} has no data.path: give --data DIR")
        world = distributed.start(device)
        torch.backends.cudnn.benchmark = not deterministic
        torch.use_deterministic_algorithms(deterministic)
        torch.set_float32_matmul_precision("high")
        if recipe.data.path == DEMO_DATA and world.local_rank == 0:
            make_demo_data(recipe.data.path)
        started = distributed.sum_tensor(torch.tensor(int(time.time()) if world.is_main else 0))  # also a barrier
        run_dir = run_dir or Path("runs") / time.strftime(f"{file.stem}-%Y%m%d-%H%M%S", time.localtime(int(started)))
        checkpoint_path = find_checkpoint(resume, run_dir)
        if world.is_main:
            prepare_run_dir(run_dir, recipe, resume)
            click.echo(f"{file.stem} on {recipe.data.path}, {world.world_size} × {world.device.type}, to {run_dir}")
            if checkpoint_path:
                click.echo(f"resuming from {checkpoint_path}")
        distributed.barrier()
        train(recipe, world, run_dir, checkpoint_path, max_steps)
    except Stopped as stopped:
        name = str(stopped)
        click.echo(f"stopped by {name}; checkpoint written; go on with the same command and --run-dir {run_dir}", err=True)
        sys.exit(128 + signal.Signals[name].value)
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"{error.filename or run_dir}: {error.strerror or error}") from None
    finally:
        distributed.finish()


if __name__ == "__main__":
    main()
