"""Train a classifier from packed shards: `python train.py`, or `torchrun --nproc-per-node N train.py`.

Input: a packed dataset (`python -m shard_tools pack`) and a recipe. Output: a run directory with checkpoints,
metrics.jsonl, TensorBoard curves and reports. Where a run stands is two integers, epoch and position; the plan
(`pipeline/plan.py`) tells the rest, for any number of ranks.
"""

import shard_tools.folders  # noqa: F401, I001 - first: torch wants a directory for temporary files
import math
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch

from engine.commands import LazyGroup
from engine.evaluate import evaluate
from engine.failure import Failure, out_of_memory
from engine.learner import about, autocast_dtype, build_learner, capture, start_or_resume
from engine.loaders import count_steps, eval_loader, open_dataset, train_loader
from engine.machine import load_recipe
from engine.seeing import show_first, show_worst
from engine.step import train_step
from model.optim import set_lr
from model.schedule import lr_at
from pipeline.batch import Loader
from pipeline.mixing import Mixer
from recipes import Recipe, recipe_file
from recipes.phases import recipe_at
from shard_tools.demo import ensure_demo
from shard_tools.format import ShardSet
from shard_tools.remote import received_bytes
from training import checkpoint, config, distributed, environment, quarantine
from training import run_dir as run_dirs
from training.budget import Budget
from training.distributed import Interrupted, StopFlag, World
from training.metrics import MetricsLog
from training.progress import Progress
from training.report import write_report
from training.step_log import StepLog
from training.watchdog import EXIT_CODE, Watchdog

DEMO_DATA = "data/demo"
SMALLER = "lower train.global_batch_size or raise train.accumulation"


def train(
    recipe: Recipe, dataset: ShardSet, world: World, run_dir: Path, resume_from: list[Path],
    max_steps: int | None, max_minutes: float | None, stop: StopFlag, watch: Watchdog,
) -> None:  # fmt: skip
    """Train from where `resume_from` left off, or from scratch, to the end of the recipe, `max_steps` or the time."""
    epochs, num_train = recipe.train.epochs, len(dataset.split(recipe.data.train_split))
    val_loader = eval_loader(recipe, dataset, world, recipe.data.val_split)
    if recipe.data.test_split:
        dataset.split(recipe.data.test_split)  # raises now, not at the end
    num_val, num_classes = len(val_loader.feed.split), len(dataset.classes)
    total_steps = count_steps(recipe, num_train, world)
    last_step = total_steps if max_steps is None else min(total_steps, max_steps)
    budget = Budget(60 * max_minutes, epochs, num_val) if max_minutes else None

    progress = Progress(world.is_main, last_step, num_epochs=epochs)
    pretrained = "" if resume_from else recipe.model.pretrained  # a checkpoint has the weights
    built = replace(recipe, model=replace(recipe.model, pretrained=pretrained))
    learner = build_learner(built, num_classes, world, progress.print)
    nets = {"": learner.net} | ({"ema_": learner.ema.net} if learner.ema else {})
    at = start_or_resume(resume_from, recipe, dataset, learner, world, progress.print)
    if world.is_main:  # not before it is known that the run goes on
        run_dirs.note(run_dir, config.to_toml(recipe), config.to_toml(Recipe()))
    started, elapsed_before, num_images = time.perf_counter(), at.elapsed_s, 0
    out = quarantine.read(run_dir, before_epoch=at.epoch)
    metrics = MetricsLog(run_dir, enabled=world.is_main, wandb=recipe.train.wandb)
    steps = StepLog(recipe.train.log_every, device=world.device, world_size=world.world_size,
                    sum_over_ranks=distributed.sum_tensor)  # fmt: skip
    writer = checkpoint.Writer(run_dir, recipe.train.keep_checkpoints, progress.print, world.is_main, world.device)
    told = about(recipe, dataset)
    failure = Failure(run_dir, world, lambda: capture(learner, at), told)
    loader: Loader | None = None
    in_force = recipe
    compiled: set[tuple[int, int]] = set()  # image and batch sizes

    def elapsed_s() -> float:
        """Of the whole run, by rank 0's clock."""
        return distributed.of_main(elapsed_before + time.perf_counter() - started, world)

    def log_steps(wait: bool = True) -> None:
        """End the interval of steps, and tell of it: now, or without `wait` on a GPU once the next one ends."""
        tell(steps.take())
        if len(steps):
            steps.close()
            at.epoch_digest = steps.epoch_digest
            failure.keep(learner.net)
        if wait or not steps.is_deferred:
            tell(steps.take())

    def tell(lines: list[dict[str, Any]]) -> None:
        if not lines:
            return
        for line in lines:
            metrics.step(**line)
            if not math.isfinite(line["loss"]):
                raise failed(f"the loss is {line['loss']}", step=line["step"], end=line["position"])
        if not failure.is_well():
            raise failed("its weights are not finite", step=lines[-1]["step"], end=lines[-1]["position"])
        shown = ("epoch", "loss", "lr", "images_per_s", "data_wait")
        progress.update(step=lines[-1]["step"] + 1, **{name: lines[-1][name] for name in shown})
        if budget:
            rate = distributed.of_main(lines[-1]["images_per_s"], world)
            at.pace = budget.pace(at.schedule_epoch, elapsed_s(), rate, num_train)

    def failed(why: str, *, step: int, end: int, alone: bool = False) -> ValueError:
        assert loader is not None
        start = end - in_force.train.global_batch_size
        return failure.at_step(loader.feed, why, step=step, epoch=at.epoch, start=start, alone=alone)

    def save(is_best: bool = False) -> None:
        watch.at("checkpoint", at.step)
        at.elapsed_s = elapsed_s()
        metrics.sync()
        writer.save(at.step, capture(learner, at) | told, is_best)

    def interrupted() -> Interrupted:
        """The launcher may end all ranks when the first is gone: not before the checkpoint is on disk."""
        writer.wait()
        distributed.barrier()
        return Interrupted(stop.signal or "SIGTERM")

    def score(loader: Loader, stage: str) -> Any:
        """What `evaluate` answers; a checkpoint of this step is there already."""
        try:
            with out_of_memory():
                scored = evaluate(nets, loader, world.device, learner.autocast, num_classes=num_classes,
                                  flip=recipe.train.val_flip, should_stop=stop.agreed,
                                  watched=lambda batches: watch.each(batches, stage))  # fmt: skip
        except MemoryError as error:
            raise ValueError(f"step {at.step}, {stage}: out of memory ({error}); {SMALLER}") from None
        if scored is None:
            raise interrupted()
        return scored

    def validate() -> None:
        if at.position:  # at an epoch's end there is a checkpoint of this step
            save()
        began = time.perf_counter()
        watch.at("validation", at.step)
        distributed.broadcast_buffers(nets.values())
        at.validation, seen = score(val_loader, "validation")
        metrics.eval(step=at.step, epoch=at.epoch, position=at.position, **at.validation)
        top1 = at.validation.get("ema_top1", at.validation["top1"])
        progress.print(f"step {at.step}: {described(at.validation)} on {at.validation['num_images']}/{num_val} images")
        is_best, at.best_top1 = top1 > at.best_top1, max(top1, at.best_top1)
        save(is_best)
        if budget:
            budget.validation_s = distributed.of_main(time.perf_counter() - began, world)
        if world.is_main:
            show_worst(run_dir, metrics, dataset, val_loader.feed, seen, at.step)

    def test() -> None:
        """Score the test split, this once."""
        test_loader = eval_loader(recipe, dataset, world, recipe.data.test_split)
        figures, _ = score(test_loader, "test split")
        test_loader.close()
        metrics.eval(kind="test", step=at.step, epoch=at.epoch, position=at.position, **figures)
        progress.print(f"test split: {described(figures)} on {figures['num_images']} images")

    with metrics, progress, writer:
        while True:
            finished = at.schedule_epoch >= epochs or at.step >= last_step or (budget and budget.is_over(elapsed_s()))
            due = at.position == 0 and at.epoch > 0 and at.epoch % recipe.train.eval_every == 0
            if (finished or due) and not at.validation:
                validate()
            if finished:
                break
            if at.position == 0:
                at.phase_epoch, at.epoch_digest = int(at.schedule_epoch), 0
            now = recipe_at(recipe, at.phase_epoch)
            if loader is None or now != in_force:
                if loader:
                    out |= loader.quarantine
                    loader.close()
                loader, in_force = train_loader(now, dataset, world, run_dir, out), now
                mixer = Mixer(now.augment, num_classes, seed=now.train.seed, rank=world.rank)
            global_batch_size = now.train.global_batch_size
            steps_per_epoch = num_train // global_batch_size
            learner.net.train()
            steps.restart(global_batch_size=global_batch_size, epoch_digest=at.epoch_digest)
            failure.all_is_well()
            loader.quarantine |= distributed.union(loader.quarantine, world)
            batches = mixer.mixed(steps.timed(loader.iter_epoch(at.epoch, at.position)), loader)
            shape = now.data.image_size, now.train.global_batch_size
            compiling = learner.is_compiled and shape not in compiled
            compiled.add(shape)
            batches = watch.each(batches, "training", compiling=now.train.accumulation * compiling)
            if not num_images:
                batches = show_first(batches, metrics, now.data, dataset, at.step)
            while at.position + global_batch_size <= num_train and at.step < last_step and at.schedule_epoch < epochs:
                watch.at("training", at.step)
                lr = lr_at(at.schedule_epoch, epochs=epochs, base_lr=recipe.optimizer.lr, config=recipe.schedule)
                set_lr(learner.optimizer, lr)
                torch.manual_seed((recipe.train.seed * 2**32 + at.step) * 2**12 + world.rank)  # no state to resume
                try:
                    with out_of_memory():
                        loss, grad_norm, sample_ids = train_step(learner, batches, now.train)
                except MemoryError as error:
                    why = f"out of memory ({error}); {SMALLER}"
                    raise failed(why, step=at.step, end=at.position + global_batch_size, alone=True) from None
                if learner.ema:
                    learner.ema.update(learner.net, at.step)
                at.position, at.validation = loader.state[1], None
                steps.add(step=at.step, epoch=at.epoch, position=at.position, loss=loss, lr=lr, sample_ids=sample_ids,
                          grad_norm=grad_norm)  # fmt: skip
                at.step, num_images, stop.armed = at.step + 1, num_images + global_batch_size, True
                pure = at.epoch + at.position // global_batch_size / steps_per_epoch
                at.schedule_epoch = at.schedule_epoch + at.pace / steps_per_epoch if budget else pure
                save_now = recipe.train.checkpoint_every and at.step % recipe.train.checkpoint_every == 0
                stop_now = stop.agreed()
                if steps.is_full or save_now or stop_now:
                    log_steps(wait=bool(save_now) or stop_now)
                if save_now or stop_now:
                    save()
                if stop_now:
                    raise interrupted()
            log_steps()
            if at.position + global_batch_size > num_train:
                bad_samples = len(quarantine.read(run_dir))  # of all ranks
                metrics.write("epoch", epoch=at.epoch, step=at.step, position=at.position, bad_samples=bad_samples,
                              samples=f"{at.epoch_digest:016x}", image_size=now.data.image_size,
                              global_batch_size=global_batch_size)  # fmt: skip
                at.epoch, at.position = at.epoch + 1, 0
                save()
        assert at.validation is not None
        writer.wait()
        seconds = time.perf_counter() - started
        images_per_s = num_images / steps.total_s if steps.total_s else 0.0
        data_wait = steps.total_wait_s / steps.total_s if steps.total_s else 0.0
        summary = at.validation | {"images_per_s": images_per_s, "data_wait": data_wait, "seconds": seconds}
        metrics.write("end", epoch=at.epoch, step=at.step, position=at.position, **summary)
        if recipe.data.test_split:
            test()
    if loader:
        loader.close()
    val_loader.close()
    if world.is_main:
        shared = "; decoding shares the cores, too" if world.device.type == "cpu" else ""
        click.echo(
            f"{described(at.validation)} ({at.validation['num_images']}/{num_val} images)\n"
            f"images/s          {images_per_s:,.0f} in training, {world.world_size} rank(s), {seconds:.0f} s in all\n"
            f"waiting for data  {data_wait:.1%} of the training time{shared}\n"
            f"checkpoint        {checkpoint.last_path(run_dir)}\n"
            f"report            {write_report(run_dir)[1]}"
        )
    if writer.failed:
        raise ValueError(writer.failed)


def described(figures: dict[str, Any]) -> str:
    ema = f", of the average {figures['ema_top1']:.4f}" if "ema_top1" in figures else ""
    return f"top-1 {figures['top1']:.4f}{ema}, loss {figures['loss']:.3f}"


@click.group(
    cls=LazyGroup, invoke_without_command=True, context_settings={"show_default": True, "max_content_width": 110}
)
@click.option("--data", metavar="DIR|URL", help="Packed dataset; without it the recipe's data.path (demo: own images).")
@click.option("--recipe", "recipe_name", default="demo", metavar="NAME|FILE", help="A file of recipes/, or a path.")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Override a recipe's value.")
@click.option("--run-dir", metavar="DIR", type=click.Path(path_type=Path), help="[default: runs/RECIPE-TIME]")
@click.option("--resume", default="auto", metavar="auto|never|PATH", help="auto: if --run-dir has a checkpoint.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="auto: CUDA if it is there.")
@click.option("--max-steps", type=click.IntRange(min=0), metavar="N", help="End after N steps of the whole run.")
@click.option("--max-minutes", type=click.FloatRange(min=0, min_open=True), metavar="M",
              help="End in time: the schedule is fitted to M minutes where the recipe takes longer.")  # fmt: skip
@click.option("--deterministic", is_flag=True, help="Deterministic kernels on the GPU too; the CPU's always are.")
@click.option("--no-machine-config", is_flag=True, help="Leave out the machine.toml of `bench.py tune` in this folder.")
@click.option("--show-config", is_flag=True, help="Print all settings as TOML, and end.")
@click.option("--show-schedule", is_flag=True, help="Plot learning rate and sizes over the epochs, and end.")
@click.pass_context
def main(
    context: click.Context, data: str | None, recipe_name: str, overrides: tuple[str, ...], run_dir: Path | None,
    resume: str, device: Any, max_steps: int | None, max_minutes: float | None, deterministic: bool,
    no_machine_config: bool, show_config: bool, show_schedule: bool,
) -> None:  # fmt: skip
    """Train a classifier from packed shards; or run a command on what was trained.

    \b
    python train.py                                    the demo: makes its own images, 3 minutes on 2 cores
    python train.py --data DIR --recipe cifar10-cpu    DIR comes from: python -m shard_tools pack SOURCE DIR
    torchrun --nproc-per-node 8 train.py --data DIR --recipe rn50-90ep

    Ctrl-C and SIGTERM write a checkpoint; the same command with the same --run-dir goes on there, on any number of
    GPUs that divides the global batch. The last lines say top-1, images/s and where the report lies.
    """
    if context.invoked_subcommand:
        return
    try:
        file = recipe_file(recipe_name)
        recipe, of_machine = load_recipe(file, overrides, device=device, use=not no_machine_config)
        recipe = replace(recipe, data=replace(recipe.data, path=data or recipe.data.path))
        if show_config:
            click.echo(config.to_toml(recipe), nl=False)
            return
        if show_schedule:
            from engine.show import schedule_chart

            click.echo(schedule_chart(recipe))
            return
        if not recipe.data.path:
            raise ValueError(f"recipe {recipe_name} names no data: give --data DIR")
        world = distributed.start(device, timeout_s=recipe.train.timeout_s)
        with StopFlag() as stop, Watchdog(world, recipe.train.timeout_s, received=received_bytes) as watch:
            environment.choose_kernels(deterministic)
            if recipe.data.path == DEMO_DATA and world.local_rank == 0:
                ensure_demo(Path(DEMO_DATA))
            now = distributed.first_start(world)  # also a barrier
            dataset = open_dataset(recipe)  # before a run directory is made for nothing
            run_dir = run_dir or Path("runs") / time.strftime(f"{file.stem}-%Y%m%d-%H%M%S", time.localtime(now))
            resume_from = run_dirs.find_checkpoints(resume, run_dir)
            distributed.barrier()
            if world.is_main:
                aside, _lock = run_dirs.prepare(run_dir, resume_from[0] if resume_from else None)
                dtype = str(autocast_dtype(recipe, world.device) or torch.float32).removeprefix("torch.")
                hardware = f"{world.world_size} × {environment.device_name(world.device)}, {dtype}"
                click.echo(f"recipe {file.stem}, data {recipe.data.path}, {hardware}, run directory {run_dir}")
                if of_machine:
                    click.echo(of_machine)
                if aside:
                    click.echo(f"the earlier run there is now {aside}")
            distributed.barrier()
            train(recipe, dataset, world, run_dir, resume_from, max_steps, max_minutes, stop, watch)
    except Interrupted as stopped:
        click.echo(f"{stopped}: the same command with --run-dir {run_dir} goes on from the last checkpoint", err=True)
        sys.exit(128 + signal.Signals[str(stopped)].value)
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    except RuntimeError as error:
        if not (why := distributed.lost_rank(error)):
            raise
        click.echo(f"another rank has gone ({why}); the same command goes on from the last checkpoint", err=True)
        sys.exit(EXIT_CODE)
    except OSError as error:
        raise click.ClickException(f"{error.filename or run_dir}: {error.strerror or error}") from None
    finally:
        distributed.finish()


if __name__ == "__main__":
    main()
