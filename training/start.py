"""A recipe that is checked → a run: join the other ranks, claim the run directory, train; and what the end tells."""

import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch

from recipes import DEMO_DATA, Recipe
from shard_tools.demo import ensure_demo
from shards.format import ShardSet
from shards.remote import received_bytes
from training import checkpoint, distributed, environment
from training.data import open_dataset
from training.distributed import Interrupted, StopFlag, World
from training.learner import autocast_dtype
from training.refusal import Refused
from training.run_dir import Claim, find_checkpoints
from training.splits import check_splits
from training.watchdog import EXIT_CODE, Watchdog


def start(
    train: Callable[..., None], recipe: Recipe, name: str, origin: str, of_machine: str, dataset: ShardSet | None,
    run_dir: Path | None, resume: str, device: Any, deterministic: bool, limits: dict[str, Any],
) -> None:  # fmt: skip
    """Call `train` on every rank, with `limits`. `name`, `origin`, `of_machine`: as `Chosen` has them. `dataset`:
    None where it is the demo's, or another that opens only now.

    Raises Refused for what is wrong before the run has begun, another ClickException later, each in one line.
    """
    claim: Claim | None = None
    try:
        world = distributed.start(device, timeout_s=recipe.train.timeout_s)
        with StopFlag() as stop, Watchdog(world, recipe.train.timeout_s, received=received_bytes) as watch:
            environment.choose_kernels(deterministic)
            if recipe.data.path == DEMO_DATA and world.local_rank == 0:
                ensure_demo(Path(DEMO_DATA))
            now = distributed.first_start(world)  # also a barrier
            dataset = dataset or open_dataset(recipe)
            check_splits(recipe, dataset)
            run_dir = run_dir or Path("runs") / time.strftime(f"{name}-%Y%m%d-%H%M%S", time.localtime(now))
            with Claim(run_dir, enabled=world.is_main) as claim:
                distributed.barrier()  # no rank reads there before it is locked
                resume_from = find_checkpoints(resume, run_dir)
                if world.is_main:
                    click.echo("\n".join([_headline(recipe, origin, world, run_dir), *filter(None, [of_machine])]))
                train(recipe, dataset, world, claim, resume_from, stop=stop, watch=watch, **limits)
    except Interrupted as stopped:
        there = claim is not None and checkpoint.candidates(claim.run_dir)
        place = f"with --run-dir {run_dir}" + ("" if resume == "auto" else " and without --resume")
        what = f"{place} goes on from the last checkpoint" if there else "starts again: it has no checkpoint yet"
        click.echo(f"{stopped}: the same command {what}", err=True)
        sys.exit(128 + signal.Signals[str(stopped)].value)
    except ValueError as error:
        raise _error(claim, str(error)) from None
    except RuntimeError as error:
        if not (why := distributed.lost_rank(error)):
            raise
        click.echo(f"another rank has gone ({why}); the same command goes on from the last checkpoint", err=True)
        sys.exit(EXIT_CODE)
    except OSError as error:
        raise _error(claim, f"{error.filename or run_dir}: {error.strerror or error}") from None
    finally:
        distributed.finish()


def _error(claim: Claim | None, text: str) -> click.ClickException:
    return click.ClickException(text) if claim and claim.taken else Refused(text)


def _headline(recipe: Recipe, origin: str, world: World, run_dir: Path) -> str:
    dtype = str(autocast_dtype(recipe, world.device) or torch.float32).removeprefix("torch.")
    hardware = f"{world.world_size} × {environment.device_name(world.device)}, {dtype}"
    return f"{origin}, data {recipe.data.path}, {hardware}, run directory {run_dir}"
