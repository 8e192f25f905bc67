"""What a run says of its figures, and of its end."""

from pathlib import Path
from typing import Any

from training import checkpoint
from training.distributed import World
from training.ending import ending, how_it_ended
from training.figures import rate
from training.learner import RunState
from training.step_log import StepLog


def described(figures: dict[str, Any]) -> str:
    """A validation's figures in a line, with the number of images, and of how many where that is a choice."""
    ema = f", of the average {figures['ema_top1']:.4f}" if "ema_top1" in figures else ""
    num_images = figures["num_images"]
    chosen = " (--max-val-images)" if "split_images" in figures else ""
    images = f"{num_images}/{figures.get('split_images', num_images)} images{chosen}"
    return f"top-1 {figures['top1']:.4f}{ema}, loss {figures['loss']:.3f} on {images}"


def end_of(
    at: RunState, steps: StepLog, *, num_images: int, num_train: int, total_steps: int, epochs: int, seconds: float
) -> dict[str, Any]:
    """The fields of `metrics.jsonl`'s "end": the last validation's, this process's rates, and what ended the run.

    `num_images` were trained on in these `seconds`, of which there are `num_train` in an epoch; the recipe has
    `total_steps` in so many `epochs`.
    """
    rates = {"seconds": seconds}
    if steps.total_s:  # else it made no step
        rates |= {"images_per_s": num_images / steps.total_s, "data_wait": steps.total_wait_s / steps.total_s}
    how = ending(step=at.step, total_steps=total_steps, epochs=epochs, schedule_epoch=at.schedule_epoch,
                 data_epochs=at.epoch + at.position / num_train)  # fmt: skip
    return {"epoch": at.epoch, "step": at.step, "position": at.position} | (at.validation or {}) | rates | how


def nothing_left(at: RunState, epochs: int) -> str:
    """What to say of a run that is resumed where it ended."""
    more = "--set train.epochs=N" if at.schedule_epoch >= epochs else "a larger --max-steps"
    figures = f"{described(at.validation)}\n" if at.validation else ""
    return f"{figures}nothing is left to do, step {at.step} is the last; {more} goes on from there"


def summary(end: dict[str, Any], *, world: World, run_dir: Path, report: Path) -> str:
    """The lines at the end of a run. `end`: the fields of `metrics.jsonl`'s "end"."""
    last = checkpoint.last_path(run_dir)
    shared = "; decoding shares the cores, too" if world.device.type == "cpu" else ""
    rates = ""
    if "images_per_s" in end:
        rates = (
            f"images/s          {rate(end['images_per_s'])} in training, {world.world_size} rank(s), "
            f"{end['seconds']:.0f} s in all\n"
            f"waiting for data  {end['data_wait']:.1%} of the training time{shared}\n"
        )
    return (
        f"{described(end) if 'top1' in end else 'no validation (data.val_split is none)'}\n"
        f"{how_it_ended(end)}\n{rates}"
        f"checkpoint        {last if last.exists() else 'none: no step was made'}\n"
        f"report            {report}"
    )
