"""Train a classifier from packed shards: `python train.py`, or `torchrun --nproc-per-node N train.py`.

Input: a packed dataset (`python -m shard_tools pack`) and a recipe. Output: a run directory with checkpoints,
metrics.jsonl, TensorBoard curves and reports. Which samples come next follows from two integers, epoch and position, by
the plan (`pipeline/plan.py`), for any number of ranks.
"""

if __name__ == "__main__":
    # Before the imports below, which take ten seconds and which --help and a misspelt option can do without. When
    # training starts the command imports this file again, as the module `train`.
    from commands.command_line import main
    from training.budget import command_began

    main(obj=command_began())

from pathlib import Path
from typing import Any

from model.optim import set_lr
from model.schedule import lr_at
from recipes import Recipe
from shards.format import ShardSet
from training.distributed import World
from training.run import build_run
from training.run_dir import Claim
from training.step import seed_step, train_step


def train(recipe: Recipe, dataset: ShardSet, world: World, claim: Claim, resume_from: list[Path], **given: Any) -> None:
    """Train from where `resume_from` left off, or from scratch, to the end of the recipe, --max-steps or the time.
    `given`: what `build_run` takes besides."""
    run = build_run(recipe, dataset, world, claim, resume_from, **given)
    if run is None:  # nothing is left to do
        return
    learner, data, at = run.learner, run.data, run.at
    with run.opened():
        run.validate_where_due()
        while not run.is_over:
            batches = run.epoch()
            steps_per_epoch = data.num_train // data.global_batch_size
            while data.has_batch(at.position) and not run.is_over:
                run.watch.at("training", at.step)
                lr = lr_at(
                    at.schedule_epoch, epochs=recipe.train.epochs, base_lr=recipe.optimizer.lr, config=recipe.schedule
                )
                set_lr(learner.optimizer, lr)
                seed_step(recipe.train.seed, at.step, world.rank)
                with run.failure.step(data, at):
                    step = train_step(learner, batches, data.recipe.train)
                if learner.ema:
                    learner.ema.update(learner.net, at.step)
                at.stepped(step.position, steps_per_epoch=steps_per_epoch, global_batch_size=data.global_batch_size)
                run.log.add(at, step, lr)
                run.after_step()
            run.end_epoch()
            run.validate_where_due()
