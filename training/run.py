"""A training run: build and restore its parts, and do the work around the steps. The step loop is in `train.py`."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import click

from penstock.pipeline.batch import Batch
from penstock.recipes import Recipe, config
from penstock.training import checkpoint, distributed, quarantine
from penstock.training import run_dir as run_dirs
from penstock.training.budget import Budget
from penstock.training.data import TrainingData, count_steps, val_loader_of, work_of
from penstock.training.ending import ending
from penstock.training.evaluate import time_validation
from penstock.training.failure import Failure
from penstock.training.learner import Learner, RunState, about, build_learner, capture, known_by, start_or_resume
from penstock.training.metrics import MetricsLog
from penstock.training.pictures import show_first
from penstock.training.profile import Profile
from penstock.training.progress import Progress
from penstock.training.records import Ending, Rates
from penstock.training.report import write_report
from penstock.training.results import nothing_left, rates_of, summary
from penstock.training.run_clock import RunClock
from penstock.training.run_log import RunLog
from penstock.training.saver import Saver
from penstock.training.setup import Setup
from penstock.training.step_log import StepLog
from penstock.training.validation import Validation


@dataclass
class Run:
    """A run in progress. `last_step`: by the recipe or --max-steps. `total_steps`: by the recipe. `num_images`: the
    number that this command has trained on."""

    setup: Setup
    learner: Learner
    state: RunState
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
    profile: Profile | None = None
    num_images: int = 0

    @property
    def is_over(self) -> bool:
        return self.state.is_over(self.setup.recipe.train.epochs, self.last_step)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Wrap all of the work. At the end, write the report and print a summary."""
        with self.metrics, self.progress, self.saver.writer, self.profile or nullcontext():
            yield
            rates, how = self._end()
        self.data.close()
        self.validation.close()
        if self.setup.world.is_main:
            report = write_report(self.setup.claim.run_dir)[1]
            click.echo(summary(self.setup, self.state, rates, how, report))
            for line in self.profile.lines() if self.profile else ():
                click.echo(line)
        if self.saver.writer.failed:
            raise ValueError(self.saver.writer.failed)

    def validate_where_due(self) -> None:
        """Validate at the run's end, and between epochs as the recipe says, if the time allows."""
        state, every, claim = self.state, self.setup.recipe.train.eval_every, self.setup.claim
        due = state.position == 0 and state.epoch > 0 and state.epoch % every == 0
        if not (self.is_over or due) or not self.validation.is_missing(state):
            return
        if not self.is_over and not self.clock.affords_validation(state):
            self.progress.print(f"step {state.step}: validation skipped, to finish within --max-minutes")
            return
        claim.settle()
        if state.position:  # at an epoch's end this step already has a checkpoint
            self.saver.save(state)
        since_s = self.clock.elapsed_s()
        is_best = self.validation.validate(state)
        self.saver.save(state, is_best)
        self.validation.show(state)
        self.clock.validated(state, since_s)

    def epoch(self) -> Iterator[Batch]:
        """Begin an epoch, or continue inside one, and return its batches in the current phase."""
        state = self.state
        if state.position == 0:
            state.phase_epoch, state.epoch_digest = int(state.schedule_epoch), 0
        self.data.enter(state.phase_epoch)
        self.setup.claim.settle()
        self.learner.net.train()
        self.log.start(state)
        batches = self.data.batches(state.epoch, state.position, self.steps.timed)
        num_compiling = 0
        if self.learner.is_compiled and self.data.is_new_size():
            num_compiling = self.data.recipe.train.accumulation
        batches = self.setup.watch.each(batches, "training", compiling=num_compiling)
        if not self.num_images:
            batches = show_first(batches, self.metrics, self.data.recipe.data, self.setup.dataset, state.step)
        return batches

    def after_step(self) -> None:
        """Log, save or stop if that is due. All ranks do so after the same step."""
        state, every, stop = self.state, self.setup.recipe.train.checkpoint_every, self.setup.stop
        self.num_images += self.data.global_batch_size
        if self.profile:
            self.profile.stepped()
        stop.armed = True
        save_now = every > 0 and state.step % every == 0
        stop_now = stop.agreed()
        if self.log.is_due(state) or save_now or stop_now:
            self.log.flush(state, wait=save_now or stop_now)
        if save_now or stop_now:
            self.saver.save(state)
        if stop_now:
            raise self.saver.interrupted()

    def end_epoch(self) -> None:
        """Log the remaining steps. If the epoch has no more batches, move to the next epoch and save."""
        state, now = self.state, self.data.recipe
        self.log.flush(state)
        if self.data.has_batch(state.position):
            return
        self.metrics.epoch(
            epoch=state.epoch,
            step=state.step,
            position=state.position,
            bad_samples=len(quarantine.read(self.setup.claim.run_dir)),  # of all ranks
            samples=f"{state.epoch_digest:016x}",
            image_size=now.data.image_size,
            global_batch_size=now.train.global_batch_size,
        )
        state.epoch, state.position = state.epoch + 1, 0
        self.saver.save(state)

    def _end(self) -> tuple[Rates, Ending]:
        """After the last validation, do the remaining saving, logging and scoring."""
        state, recipe = self.state, self.setup.recipe
        if state.position and self.validation.loader is None:  # otherwise this step has a checkpoint
            self.setup.claim.settle()
            self.saver.save(state)
        self.saver.writer.wait()
        rates = rates_of(self.steps, self.num_images, self.clock.command_s())
        how = ending(total_steps=self.total_steps, epochs=recipe.train.epochs, schedule_epoch=state.schedule_epoch,
                     data_epochs=state.epoch + state.position / self.data.num_train)  # fmt: skip
        self.metrics.end(state.validation, rates, how, epoch=state.epoch, step=state.step, position=state.position)
        if recipe.data.test_split:
            self.validation.test(state)
        return rates, how


def build_run(setup: Setup) -> Run | None:
    """Build everything that a run needs, and restore the first readable checkpoint if it resumes. Return None if there
    is nothing left to do.

    Raises ValueError if something does not fit. The run directory is then unchanged.
    """
    recipe, dataset, world = setup.recipe, setup.dataset, setup.world
    progress = Progress(world.is_main, num_epochs=recipe.train.epochs)
    val_loader = val_loader_of(recipe, dataset, world, setup.max_val_images)
    total_steps = count_steps(recipe, len(dataset.split(recipe.data.train_split)), world)
    last_step = total_steps if setup.max_steps is None else min(total_steps, setup.max_steps)
    if val_loader is None:
        progress.print("data.val_split is none: no validation and no best.pt")
    learner = _fresh_learner(setup, progress)
    state = start_or_resume(setup.resume_from, recipe, dataset, learner, world, progress.print)
    validated = val_loader is None or state.is_validated_on(val_loader.feed.num_samples)
    if state.step and state.is_over(recipe.train.epochs, last_step) and validated and not recipe.data.test_split:
        progress.print(nothing_left(state, recipe.train.epochs))
        return None
    _take_directory(setup, learner, progress)
    clock = _clock(setup, learner, state, last_step)
    if clock.budget.is_limited and val_loader is not None:
        setup.watch.begin("timing a validation", state.step)
        val_image_s = time_validation(learner, recipe, dataset, world)
        progress.print(clock.budget.expect(val_image_s, state.elapsed_s + clock.command_s()))
    run_dir, facts = setup.claim.run_dir, about(recipe, dataset)
    data = TrainingData(recipe, dataset, world, run_dir, quarantine.read(run_dir, before_epoch=state.epoch))
    metrics = MetricsLog(run_dir, enabled=world.is_main, wandb=recipe.train.wandb)
    steps = StepLog(recipe.train.log_every, device=world.device, world_size=world.world_size,
                    sum_over_ranks=distributed.sum_tensor)  # fmt: skip
    writer = checkpoint.Writer(run_dir, recipe.train.keep_checkpoints, progress.print, world.is_main, world.device)
    failure = Failure(run_dir, world, lambda: capture(learner, state), facts)
    saver = Saver(setup, writer, learner, facts, metrics, clock)
    return Run(
        setup=setup, learner=learner, state=state, last_step=last_step, total_steps=total_steps, data=data,
        clock=clock, steps=steps, failure=failure, saver=saver, metrics=metrics, progress=progress,
        log=RunLog(steps, metrics, progress, failure, clock, data, learner.net, recipe.train.epochs),
        validation=Validation(setup, learner, val_loader, metrics, progress, saver),
        profile=Profile(setup.profile, run_dir, world) if setup.profile else None,
    )  # fmt: skip


def _fresh_learner(setup: Setup, progress: Progress) -> Learner:
    recipe, classes = setup.recipe, setup.dataset.classes
    if setup.resume_from:  # a checkpoint has the weights
        recipe = replace(recipe, model=replace(recipe.model, pretrained=""))
    return build_learner(recipe, len(classes), setup.world, progress.print, classes)


def _clock(setup: Setup, learner: Learner, state: RunState, last_step: int) -> RunClock:
    work = work_of(setup.recipe, setup.dataset, last_step=last_step, at_most=setup.max_val_images,
                   num_nets=len(learner.nets), compiles=learner.is_compiled)  # fmt: skip
    started_s = distributed.from_rank_0(time.perf_counter() - setup.began, setup.world)
    limit_s = 60 * setup.max_minutes if setup.max_minutes else math.inf
    return RunClock(Budget(work, limit_s, started_s=started_s), setup.world, began=setup.began,
                    before_s=state.elapsed_s)  # fmt: skip


def _take_directory(setup: Setup, learner: Learner, progress: Progress) -> None:
    """Take the run directory for this run, after everything is checked."""
    claim, resume_from = setup.claim, setup.resume_from
    need_bytes = sum(tensor.nbytes for net in learner.nets.values() for tensor in net.state_dict().values())
    run_dirs.check_place(claim.run_dir, need_bytes=need_bytes)
    notes = {}
    if setup.world.is_main:
        notes = run_dirs.notes(config.to_toml(setup.recipe), config.to_toml(Recipe()), known_by(setup.dataset))
    if aside := claim.take(resume_from[0] if resume_from else None, notes):
        progress.print(f"moved the earlier run in this directory to {aside}")
    distributed.barrier()  # no rank writes there earlier
