"""Train a classifier from packed shards: `python train.py`, or `torchrun --nproc-per-node N train.py`.

Input: a packed dataset (`python -m shard_tools pack`) and a recipe. Output: a run directory with checkpoints,
metrics.jsonl, TensorBoard curves and reports. Where a run stands is two integers, epoch and position; the plan
(`pipeline/plan.py`) tells the rest, for any number of ranks.
"""

if __name__ == "__main__":
    # Before the imports below, which take ten seconds and which --help and a misspelt option can do without. When
    # training starts the command imports this file again, as the module `train`.
    from commands.command_line import main
    from training.budget import command_began

    main(obj=command_began())

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch

from model.optim import set_lr
from model.schedule import lr_at
from pipeline.batch import Loader
from pipeline.mixing import Mixer
from recipes import Recipe, config, recipe_at
from shard_tools.format import ShardSet
from training import checkpoint, distributed, quarantine
from training import run_dir as run_dirs
from training.budget import Budget
from training.data import count_steps, eval_loader, train_loader, val_loader_of, work_of
from training.distributed import Interrupted, StopFlag, World
from training.evaluate import evaluate, time_validation
from training.failure import Failure, out_of_memory
from training.learner import about, build_learner, capture, known_by, start_or_resume
from training.metrics import MetricsLog
from training.pictures import show_first, show_worst
from training.progress import Progress
from training.report import write_report
from training.results import described, end_of, nothing_left, summary
from training.step import train_step
from training.step_log import StepLog
from training.watchdog import Watchdog

SMALLER = "lower train.global_batch_size or raise train.accumulation"


def train(
    recipe: Recipe, dataset: ShardSet, world: World, claim: run_dirs.Claim, resume_from: list[Path], *,
    stop: StopFlag, watch: Watchdog, began: float, max_steps: int | None = None, max_minutes: float | None = None,
    max_val_images: int = 0,
) -> None:  # fmt: skip
    """Train from where `resume_from` left off, or from scratch, to the end of the recipe, `max_steps` or the time.
    `began`: when the command did, by `time.perf_counter`."""
    run_dir = claim.run_dir
    epochs, num_train = recipe.train.epochs, len(dataset.split(recipe.data.train_split))
    num_classes = len(dataset.classes)
    val_loader = val_loader_of(recipe, dataset, world, max_val_images)  # false where this rank has none of its images
    total_steps = count_steps(recipe, num_train, world)
    last_step = total_steps if max_steps is None else min(total_steps, max_steps)

    progress = Progress(world.is_main, num_epochs=epochs)
    progress.print("" if val_loader is not None else "data.val_split is none: no validation, and no best.pt")
    pretrained = "" if resume_from else recipe.model.pretrained  # a checkpoint has the weights
    built = replace(recipe, model=replace(recipe.model, pretrained=pretrained))
    learner = build_learner(built, num_classes, world, progress.print, dataset.classes)
    nets = {"": learner.net} | ({"ema_": learner.ema.net} if learner.ema else {})
    at = start_or_resume(resume_from, recipe, dataset, learner, world, progress.print)
    validated = val_loader is None or at.is_validated_on(val_loader.feed.num_samples)
    if at.step and (at.schedule_epoch >= epochs or at.step >= last_step) and validated and not recipe.data.test_split:
        progress.print(nothing_left(at, epochs))
        return
    run_dirs.check_place(run_dir, need_bytes=sum(t.nbytes for net in nets.values() for t in net.state_dict().values()))
    facts = config.to_toml(recipe), config.to_toml(Recipe()), known_by(dataset)
    notes = run_dirs.notes(*facts) if world.is_main else {}
    if aside := claim.take(resume_from[0] if resume_from else None, notes):  # not before all is checked
        progress.print(f"the earlier run there is now {aside}")
    distributed.barrier()  # no rank writes there before
    elapsed_before, num_images = at.elapsed_s, 0
    work = work_of(recipe, dataset, last_step=last_step, at_most=max_val_images, num_nets=len(nets),
                   compiles=learner.is_compiled)  # fmt: skip
    started_s = distributed.of_main(time.perf_counter() - began, world)
    budget = Budget(work, 60 * max_minutes if max_minutes else math.inf, started_s=started_s)
    if budget.is_limited and val_loader is not None:
        watch.at("timing a validation", at.step)
        val_image_s = time_validation(nets, recipe, dataset, world, learner.autocast)
        progress.print(budget.expect(val_image_s, at.elapsed_s + time.perf_counter() - began))
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
        """Of the whole run; in a budget by rank 0's clock."""
        elapsed = elapsed_before + time.perf_counter() - began
        return distributed.of_main(elapsed, world) if budget.is_limited else elapsed

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
        now, last = elapsed_s(), lines[-1]
        budget.trained(at, len(lines), now, asked_for=at.step - last["step"] - 1)
        at.pace = budget.pace(at, now)
        rest = budget.rest(at, now)
        progress.update(last, total_steps=at.step + rest.steps, remaining_s=rest.seconds,
                        schedule=at.schedule_epoch / epochs if at.is_fitted else None)  # fmt: skip

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
                                  flip=recipe.train.val_flip, should_stop=stop.agreed, watched=lambda batches:
                                  progress.each(watch.each(batches, stage), stage, loader.feed))  # fmt: skip
        except MemoryError as error:
            raise ValueError(f"step {at.step}, {stage}: out of memory ({error}); {SMALLER}") from None
        if scored is None:
            raise interrupted()
        return scored

    def validate(loader: Loader) -> None:
        if at.position:  # at an epoch's end there is a checkpoint of this step
            save()
        since = elapsed_s()
        watch.at("validation", at.step)
        distributed.broadcast_buffers(nets.values())
        figures, seen = score(loader, "validation")
        metrics.eval(step=at.step, epoch=at.epoch, position=at.position, **figures)
        progress.print(f"step {at.step}: {described(figures)}")
        save(is_best=at.validated(figures))
        if world.is_main:
            show_worst(run_dir, metrics, dataset, loader.feed, seen, at.step)
        now = elapsed_s()
        budget.validated(now - since, now)
        at.pace = budget.pace(at, now)

    def test() -> None:
        """Score the test split, this once."""
        test_loader = eval_loader(recipe, dataset, world, recipe.data.test_split, at_most=max_val_images)
        figures, _ = score(test_loader, "test split")
        test_loader.close()
        metrics.eval(kind="test", step=at.step, epoch=at.epoch, position=at.position, **figures)
        progress.print(f"test split: {described(figures)}")

    with metrics, progress, writer:
        while True:
            finished = at.schedule_epoch >= epochs or at.step >= last_step
            due = at.position == 0 and at.epoch > 0 and at.epoch % recipe.train.eval_every == 0
            if val_loader is not None and (finished or due) and not at.is_validated_on(val_loader.feed.num_samples):
                if finished or budget.affords_validation(at, elapsed_s()):
                    claim.settle()
                    validate(val_loader)
                else:
                    progress.print(f"step {at.step}: not validated, which would leave too little of --max-minutes")
            if finished:
                if at.position and val_loader is None:  # else there is a checkpoint of this step
                    claim.settle()
                    save()
                break
            if at.position == 0:
                at.phase_epoch, at.epoch_digest = int(at.schedule_epoch), 0
            now = recipe_at(recipe, at.phase_epoch)
            if loader is None or now != in_force:
                if loader is not None:
                    out |= loader.quarantine
                    loader.close()
                loader, in_force = train_loader(now, dataset, world, run_dir, out), now
                mixer = Mixer(now.augment, num_classes, seed=now.train.seed, rank=world.rank)
                claim.settle()
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
                at.stepped(loader.state[1], steps_per_epoch=steps_per_epoch, global_batch_size=global_batch_size)
                steps.add(step=at.step - 1, epoch=at.epoch, position=at.position, loss=loss, lr=lr,
                          sample_ids=sample_ids, grad_norm=grad_norm)  # fmt: skip
                num_images, stop.armed = num_images + global_batch_size, True
                save_now = recipe.train.checkpoint_every and at.step % recipe.train.checkpoint_every == 0
                stop_now = stop.agreed()
                if steps.is_full or budget.is_due(at.step) or save_now or stop_now:
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
        writer.wait()
        end = end_of(at, steps, num_images=num_images, num_train=num_train, total_steps=total_steps, epochs=epochs,
                     seconds=time.perf_counter() - began)  # fmt: skip
        metrics.write("end", **end)
        if recipe.data.test_split:
            test()
    for opened in (loader, val_loader):
        if opened is not None:
            opened.close()
    if world.is_main:
        report = write_report(run_dir)[1]
        click.echo(summary(end, world=world, run_dir=run_dir, report=report))
    if writer.failed:
        raise ValueError(writer.failed)
