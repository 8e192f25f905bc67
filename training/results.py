"""What a run says of its figures, and of its end."""

import os
from pathlib import Path

from penstock.recipes import DEMO_DATA
from penstock.shards.program import SHARD_TOOLS, TRAIN
from penstock.training import checkpoint
from penstock.training.ending import how_it_ended
from penstock.training.figures import rate
from penstock.training.learner import RunState
from penstock.training.records import Ending, Rates, Scores
from penstock.training.setup import Setup
from penstock.training.step_log import StepLog


def described(figures: Scores) -> str:
    """A validation's figures in a line, with the number of images, and of how many where that is a choice."""
    ema = f", of the average {figures['ema_top1']:.4f}" if "ema_top1" in figures else ""
    num_images = figures["num_images"]
    chosen = " (--max-val-images)" if "split_images" in figures else ""
    images = f"{num_images}/{figures.get('split_images', num_images)} images{chosen}"
    return f"top-1 {figures['top1']:.4f}{ema}, loss {figures['loss']:.3f} on {images}"


def rates_of(steps: StepLog, num_images: int, seconds: float) -> Rates:
    """Of this command, which took `seconds` and has trained on `num_images`."""
    if not steps.total_s:  # it made no step
        return {"seconds": seconds}
    return {
        "seconds": seconds,
        "images_per_s": num_images / steps.total_s,
        "data_wait": steps.total_wait_s / steps.total_s,
    }


def nothing_left(state: RunState, epochs: int) -> str:
    """What to say of a run that is resumed where it ended."""
    more = "--set train.epochs=N" if state.schedule_epoch >= epochs else "a larger --max-steps"
    figures = f"{described(state.validation)}\n" if state.validation else ""
    return f"{figures}nothing is left to do, step {state.step} is the last; {more} goes on from there"


def summary(setup: Setup, state: RunState, rates: Rates, how: Ending, report: Path) -> str:
    """The lines at the end of a run."""
    last, world = checkpoint.last_path(setup.claim.run_dir), setup.world
    lines = [
        described(state.validation) if state.validation else "no validation (data.val_split is none)",
        how_it_ended({"step": state.step, **how}),
    ]
    if "images_per_s" in rates:
        shared = "; decoding shares the cores, too" if world.device.type == "cpu" else ""
        lines += [
            f"images/s          {rate(rates['images_per_s'])} in training, {world.world_size} rank(s), "
            f"{rates['seconds']:.0f} s in all",
            f"waiting for data  {rates['data_wait']:.1%} of the training time{shared}",
        ]
    lines += [
        f"checkpoint        {last if last.exists() else 'none: no step was made'}",
        f"report            {report}",
    ]
    if setup.recipe.data.path == DEMO_DATA:
        lines += next_steps(report)
    return "\n".join(lines)


def next_steps(report: Path) -> list[str]:
    """What to do after the demo: three lines."""
    pack = f"{'uv run ' if 'UV' in os.environ else ''}{SHARD_TOOLS} pack"
    return [
        f"next: the report    open {report} in a browser",
        f"      own photos    {pack} PHOTOS data/mine --split train=0.9,val=0.1; docs/finetuning.md",
        f"      ImageNet      {pack} IMAGENET data/in1k; {TRAIN} --data data/in1k --recipe rn50-90ep",
    ]
