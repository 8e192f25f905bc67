"""Start a run of a checked recipe: join the other ranks, claim the run directory, train, and report errors."""

import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import torch

from penstock.recipes import DEMO_DATA
from penstock.shard_tools.demo import ensure_demo
from penstock.shards.format import ShardSet
from penstock.shards.remote import received_bytes
from penstock.training import checkpoint, distributed, environment
from penstock.training.data import open_dataset
from penstock.training.distributed import Interrupted, StopFlag, World
from penstock.training.learner import autocast_dtype
from penstock.training.refusal import Refused
from penstock.training.request import Chosen, TrainOptions
from penstock.training.run_dir import Claim, find_checkpoints
from penstock.training.setup import Setup
from penstock.training.splits import check_splits
from penstock.training.watchdog import EXIT_CODE, Watchdog


def start(
    train: Callable[[Setup], None], chosen: Chosen, options: TrainOptions, dataset: ShardSet | None, began: float
) -> None:
    """Call `train` on every rank. `dataset`: None for the demo's, or if it is to be opened here. `began`: when the
    command began, by `time.perf_counter`.

    Raises Refused for an error before the run has begun, and another ClickException later, each in one line.
    """
    recipe, run_dir = chosen.recipe, options.run_dir
    claim: Claim | None = None
    try:
        world = distributed.start(options.device, timeout_s=recipe.train.timeout_s)
        with StopFlag() as stop, Watchdog(world, recipe.train.timeout_s, received=received_bytes) as watch:
            environment.choose_kernels(options.deterministic)
            if recipe.data.path == DEMO_DATA and world.local_rank == 0:
                ensure_demo(Path(DEMO_DATA))
            now = distributed.first_start(world)  # also a barrier
            if dataset is None:
                dataset = open_dataset(recipe)
            check_splits(recipe, dataset)
            run_dir = run_dir or Path("runs") / time.strftime(f"{chosen.name}-%Y%m%d-%H%M%S", time.localtime(now))
            with Claim(run_dir, enabled=world.is_main) as claim:
                distributed.barrier()  # no rank reads there until it is locked
                resume_from = find_checkpoints(options.resume, run_dir)
                if world.is_main:
                    click.echo(_headline(chosen, world, run_dir))
                    if chosen.of_machine:
                        click.echo(chosen.of_machine)
                train(Setup(
                    recipe=recipe, dataset=dataset, world=world, claim=claim, resume_from=resume_from, stop=stop,
                    watch=watch, began=began, max_steps=options.max_steps, max_minutes=options.max_minutes,
                    max_val_images=options.max_val_images or 0, profile=options.profile or 0,
                ))  # fmt: skip
    except Interrupted as stopped:
        there = claim is not None and checkpoint.candidates(claim.run_dir)
        place = f"with --run-dir {run_dir}" + ("" if options.resume == "auto" else " and without --resume")
        what = f"{place} resumes from the last checkpoint" if there else "starts again, as there is no checkpoint yet"
        click.echo(f"{stopped}: stopped; the same command {what}", err=True)
        sys.exit(128 + signal.Signals[str(stopped)].value)
    except ValueError as error:
        raise _error(claim, str(error)) from None
    except RuntimeError as error:
        if not (why := distributed.lost_rank(error)):
            raise
        click.echo(f"another rank is gone ({why}); the same command resumes from the last checkpoint", err=True)
        sys.exit(EXIT_CODE)
    except OSError as error:
        raise _error(claim, f"{error.filename or run_dir}: {error.strerror or error}") from None
    finally:
        distributed.finish()


def _error(claim: Claim | None, text: str) -> click.ClickException:
    return click.ClickException(text) if claim and claim.taken else Refused(text)


def _headline(chosen: Chosen, world: World, run_dir: Path) -> str:
    recipe = chosen.recipe
    dtype = str(autocast_dtype(recipe, world.device) or torch.float32).removeprefix("torch.")
    hardware = f"{world.world_size} × {environment.device_name(world.device)}, {dtype}"
    return f"{chosen.origin}, data {recipe.data.path}, {hardware}, run directory {run_dir}"
