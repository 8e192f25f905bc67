"""A run: its parts, built and restored, and what comes before, between and after its steps, which `train.py` has."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
from torch import nn

from pipeline.batch import Batch
from recipes import Recipe, config
from shards.format import ShardSet
from training import checkpoint, distributed, quarantine
from training import run_dir as run_dirs
from training.budget import Budget
from training.data import TrainingData, count_steps, val_loader_of, work_of
from training.distributed import StopFlag, World
from training.evaluate import time_validation
from training.failure import Failure
from training.learner import Learner, RunState, about, build_learner, capture, known_by, start_or_resume
from training.metrics import MetricsLog
from training.pictures import show_first
from training.progress import Progress
from training.report import write_report
from training.results import end_of, nothing_left, summary
from training.run_clock import RunClock
from training.run_log import RunLog
from training.saver import Saver
from training.step_log import StepLog
from training.validation import Validation
from training.watchdog import Watchdog


@dataclass
class Run:
    """A run under way. `last_step`: the recipe's, or --max-steps; `total_steps`: the recipe's. `num_images`: that this
    command has trained on."""

    recipe: Recipe
    dataset: ShardSet
    world: World
    claim: run_dirs.Claim
    learner: Learner
    at: RunState
    last_step: int
    total_steps: int
    data: TrainingData
    clock: RunClock
    steps: StepLog
    log: RunLog
    failure: Failure
    saver: Saver
    validation: Validation
    metrics: MetricsLog
    progress: Progress
    watch: Watchdog
    num_images: int = 0

    @property
    def is_over(self) -> bool:
        return self.at.is_over(self.recipe.train.epochs, self.last_step)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Around all of the work. After it the report is written, and what the run came to is on the terminal."""
        with self.metrics, self.progress, self.saver.writer:
            yield
            ended = self._end()
        self.data.close()
        self.validation.close()
        if self.world.is_main:
            report = write_report(self.claim.run_dir)[1]
            click.echo(summary(ended, world=self.world, run_dir=self.claim.run_dir, report=report))
        if self.saver.writer.failed:
            raise ValueError(self.saver.writer.failed)

    def validate_where_due(self) -> None:
        """At the run's end, and between epochs as the recipe says, as far as the time allows."""
        at, every = self.at, self.recipe.train.eval_every
        due = at.position == 0 and at.epoch > 0 and at.epoch % every == 0
        if not (self.is_over or due) or not self.validation.is_missing(at):
            return
        if not self.is_over and not self.clock.affords_validation(at):
            self.progress.print(f"step {at.step}: not validated, which would leave too little of --max-minutes")
            return
        self.claim.settle()
        if at.position:  # at an epoch's end there is a checkpoint of this step
            self.saver.save(at)
        since_s = self.clock.elapsed_s()
        is_best = self.validation.validate(at)
        self.saver.save(at, is_best)
        self.validation.show(at, self.claim.run_dir)
        self.clock.validated(at, since_s)

    def epoch(self) -> Iterator[Batch]:
        """Begin an epoch, or go on inside one: its batches, in the phase that is in force."""
        at = self.at
        if at.position == 0:
            at.phase_epoch, at.epoch_digest = int(at.schedule_epoch), 0
        self.data.enter(at.phase_epoch)
        self.claim.settle()
        self.learner.net.train()
        self.log.start(at)
        batches = self.data.batches(at.epoch, at.position, self.steps.timed)
        compiling = self.learner.is_compiled and self.data.is_new_size()
        accumulation = self.data.recipe.train.accumulation
        batches = self.watch.each(batches, "training", compiling=accumulation * compiling)
        if not self.num_images:
            batches = show_first(batches, self.metrics, self.data.recipe.data, self.dataset, at.step)
        return batches

    def after_step(self) -> None:
        """Log, save or stop, where that is due; all ranks after the same step."""
        at, every, stop = self.at, self.recipe.train.checkpoint_every, self.saver.stop
        self.num_images, stop.armed = self.num_images + self.data.global_batch_size, True
        save_now = every > 0 and at.step % every == 0
        stop_now = stop.agreed()
        if self.log.is_due(at) or save_now or stop_now:
            self.log.flush(at, wait=save_now or stop_now)
        if save_now or stop_now:
            self.saver.save(at)
        if stop_now:
            raise self.saver.interrupted()

    def end_epoch(self) -> None:
        """Log the steps that are left; where the epoch's batches are used up, go on to the next one and save."""
        at, now = self.at, self.data.recipe
        self.log.flush(at)
        if self.data.has_batch(at.position):
            return
        bad_samples = len(quarantine.read(self.claim.run_dir))  # of all ranks
        self.metrics.write("epoch", epoch=at.epoch, step=at.step, position=at.position, bad_samples=bad_samples,
                           samples=f"{at.epoch_digest:016x}", image_size=now.data.image_size,
                           global_batch_size=now.train.global_batch_size)  # fmt: skip
        at.epoch, at.position = at.epoch + 1, 0
        self.saver.save(at)

    def _end(self) -> dict[str, Any]:
        """After the last validation: what is still to be saved, logged and scored. Returns the fields of the "end"."""
        at = self.at
        if at.position and self.validation.loader is None:  # else there is a checkpoint of this step
            self.claim.settle()
            self.saver.save(at)
        self.saver.writer.wait()
        ended = end_of(at, self.steps, num_images=self.num_images, num_train=self.data.num_train,
                       total_steps=self.total_steps, epochs=self.recipe.train.epochs,
                       seconds=self.clock.command_s())  # fmt: skip
        self.metrics.write("end", **ended)
        if self.recipe.data.test_split:
            self.validation.test(at)
        return ended


def build_run(
    recipe: Recipe, dataset: ShardSet, world: World, claim: run_dirs.Claim, resume_from: list[Path], *,
    stop: StopFlag, watch: Watchdog, began: float, max_steps: int | None = None, max_minutes: float | None = None,
    max_val_images: int = 0,
) -> Run | None:  # fmt: skip
    """All that a run needs, restored from the first readable checkpoint of `resume_from`, if there is any; None where
    nothing is left to do. `began`: when the command did, by `time.perf_counter`.

    Raises ValueError for what does not fit; the run directory is as it was then.
    """
    progress = Progress(world.is_main, num_epochs=recipe.train.epochs)
    val_loader = val_loader_of(recipe, dataset, world, max_val_images)
    total_steps = count_steps(recipe, len(dataset.split(recipe.data.train_split)), world)
    last_step = total_steps if max_steps is None else min(total_steps, max_steps)
    progress.print("" if val_loader is not None else "data.val_split is none: no validation, and no best.pt")
    learner = _fresh_learner(recipe, dataset, world, progress, resumes=bool(resume_from))
    nets = {"": learner.net} | ({"ema_": learner.ema.net} if learner.ema else {})
    at = start_or_resume(resume_from, recipe, dataset, learner, world, progress.print)
    validated = val_loader is None or at.is_validated_on(val_loader.feed.num_samples)
    if at.step and at.is_over(recipe.train.epochs, last_step) and validated and not recipe.data.test_split:
        progress.print(nothing_left(at, recipe.train.epochs))
        return None
    _take(claim, recipe, dataset, world, nets, resume_from, progress)
    budget = Budget(
        work_of(recipe, dataset, last_step=last_step, at_most=max_val_images, num_nets=len(nets),
                compiles=learner.is_compiled),
        60 * max_minutes if max_minutes else math.inf,
        started_s=distributed.of_main(time.perf_counter() - began, world),
    )  # fmt: skip
    clock = RunClock(budget, world, began=began, before_s=at.elapsed_s)
    if budget.is_limited and val_loader is not None:
        watch.at("timing a validation", at.step)
        val_image_s = time_validation(nets, recipe, dataset, world, learner.autocast)
        progress.print(budget.expect(val_image_s, at.elapsed_s + clock.command_s()))
    run_dir, told = claim.run_dir, about(recipe, dataset)
    data = TrainingData(recipe, dataset, world, run_dir, quarantine.read(run_dir, before_epoch=at.epoch))
    metrics = MetricsLog(run_dir, enabled=world.is_main, wandb=recipe.train.wandb)
    steps = StepLog(recipe.train.log_every, device=world.device, world_size=world.world_size,
                    sum_over_ranks=distributed.sum_tensor)  # fmt: skip
    writer = checkpoint.Writer(run_dir, recipe.train.keep_checkpoints, progress.print, world.is_main, world.device)
    failure = Failure(run_dir, world, lambda: capture(learner, at), told)
    saver = Saver(writer, learner, told, metrics, clock, watch, stop)
    return Run(
        recipe=recipe, dataset=dataset, world=world, claim=claim, learner=learner, at=at, last_step=last_step,
        total_steps=total_steps, data=data, clock=clock, steps=steps, failure=failure, saver=saver, metrics=metrics,
        log=RunLog(steps, metrics, progress, failure, clock, data, learner.net, recipe.train.epochs),
        validation=Validation(nets, val_loader, recipe, dataset, world, learner.autocast, metrics, progress, watch,
                              saver, max_val_images),
        progress=progress, watch=watch,
    )  # fmt: skip


def _fresh_learner(recipe: Recipe, dataset: ShardSet, world: World, progress: Progress, *, resumes: bool) -> Learner:
    pretrained = "" if resumes else recipe.model.pretrained  # a checkpoint has the weights
    built = replace(recipe, model=replace(recipe.model, pretrained=pretrained))
    return build_learner(built, len(dataset.classes), world, progress.print, dataset.classes)


def _take(
    claim: run_dirs.Claim, recipe: Recipe, dataset: ShardSet, world: World, nets: dict[str, nn.Module],
    resume_from: list[Path], progress: Progress,
) -> None:  # fmt: skip
    """Make the run directory this run's, not before all is checked."""
    need_bytes = sum(tensor.nbytes for net in nets.values() for tensor in net.state_dict().values())
    run_dirs.check_place(claim.run_dir, need_bytes=need_bytes)
    facts = config.to_toml(recipe), config.to_toml(Recipe()), known_by(dataset)
    notes = run_dirs.notes(*facts) if world.is_main else {}
    if aside := claim.take(resume_from[0] if resume_from else None, notes):
        progress.print(f"the earlier run there is now {aside}")
    distributed.barrier()  # no rank writes there before
