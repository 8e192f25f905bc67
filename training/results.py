"""The lines that a run prints about its scores and its end."""

import os
from pathlib import Path

from penstock.recipes import DEMO_DATA
from penstock.shards.program import INSTALLED, SHARD_TOOLS, TRAIN
from penstock.training import checkpoint
from penstock.training.ending import how_it_ended
from penstock.training.figures import rate
from penstock.training.learner import RunState
from penstock.training.records import Ending, Rates, Scores
from penstock.training.setup import Setup
from penstock.training.step_log import StepLog


def described(figures: Scores) -> str:
    """A validation's scores in a line, with the number of images scored and of all images in the split."""
    ema = f", EMA top-1 {figures['ema_top1']:.4f}" if "ema_top1" in figures else ""
    num_images = figures["num_images"]
    chosen = " (--max-val-images)" if "split_images" in figures else ""
    images = f"{num_images}/{figures.get('split_images', num_images)} images{chosen}"
    return f"top-1 {figures['top1']:.4f}{ema}, loss {figures['loss']:.3f} on {images}"


def rates_of(steps: StepLog, num_images: int, seconds: float) -> Rates:
    """The rates of this command, which took `seconds` and trained on `num_images`."""
    if not steps.total_s:  # no step was done
        return {"seconds": seconds}
    return {
        "seconds": seconds,
        "images_per_s": num_images / steps.total_s,
        "data_wait": steps.total_wait_s / steps.total_s,
    }


def nothing_left(state: RunState, epochs: int) -> str:
    """The lines for a run that is resumed after its last step."""
    more = "--set train.epochs=N" if state.schedule_epoch >= epochs else "a larger --max-steps"
    figures = f"last validation: {described(state.validation)}\n" if state.validation else ""
    return f"{figures}nothing left to do: step {state.step} was the last. To train longer, give {more}"


def summary(setup: Setup, state: RunState, rates: Rates, how: Ending, report: Path) -> str:
    """The lines at the end of a run."""
    last, world = checkpoint.last_path(setup.claim.run_dir), setup.world
    lines = [
        f"validation        {described(state.validation) if state.validation else 'none (data.val_split is none)'}",
        how_it_ended({"step": state.step, **how}),
    ]
    if "images_per_s" in rates:
        shared = "; decoding also takes CPU time from training" if world.device.type == "cpu" else ""
        ranks = "ranks" if world.world_size > 1 else "rank"
        lines += [
            f"images/s          {rate(rates['images_per_s'])} in training on {world.world_size} {ranks}",
            f"waiting for data  {rates['data_wait']:.1%} of the training time{shared}",
            f"total time        {rates['seconds']:.0f} s",
        ]
    lines += [
        f"checkpoint        {last if last.exists() else 'none: no step was done'}",
        f"report            {report}",
    ]
    if setup.recipe.data.path == DEMO_DATA:
        lines += next_steps(report)
    return "\n".join(lines)


def next_steps(report: Path) -> list[str]:
    """Three lines that suggest what to do after the demo."""
    uv = "uv run " if "UV" in os.environ else ""
    pack, train = f"{uv}{SHARD_TOOLS} pack", TRAIN if INSTALLED else f"{uv or 'python '}{TRAIN}"
    return [
        f"next: report       open {report} in a browser",
        f"      your photos  {pack} PHOTOS data/mine --split train=0.9,val=0.1  (docs/finetuning.md)",
        f"      ImageNet     {pack} IMAGENET data/in1k; {train} --data data/in1k --recipe rn50-90ep",
    ]
