"""Train a classifier from packed shards: `python train.py`, or `torchrun --nproc-per-node N train.py`.

Input: a packed dataset (`python -m shard_tools pack`) and a recipe. Output: a run directory with checkpoints,
metrics.jsonl, TensorBoard curves and reports. Two integers, epoch and position, determine which samples come next. The
plan (`pipeline/plan.py`) computes them, for any number of ranks.
"""

from typing import TYPE_CHECKING

from penstock.commands.command_line import command_line
from penstock.training.budget import command_began

if TYPE_CHECKING:
    from penstock.training.setup import Setup


def train(setup: "Setup") -> None:
    """Train to the end of the recipe, --max-steps or --max-minutes, from the setup's checkpoints or from scratch."""
    # Imported here because they take ten seconds, and --help and a misspelt option do not need them.
    from penstock.model.optim import set_lr
    from penstock.model.schedule import lr_at
    from penstock.training.run import build_run
    from penstock.training.step import seed_step, train_step

    run = build_run(setup)
    if run is None:  # nothing is left to do
        return
    recipe, learner, data, state = setup.recipe, run.learner, run.data, run.state
    with run.opened():
        run.validate_where_due()
        while not run.is_over:
            batches = run.epoch()
            steps_per_epoch = data.num_train // data.global_batch_size
            while data.has_batch(state.position) and not run.is_over:
                setup.watch.begin("training", state.step)
                lr = lr_at(state.schedule_epoch, epochs=recipe.train.epochs, base_lr=recipe.optimizer.lr,
                           config=recipe.schedule)  # fmt: skip
                set_lr(learner.optimizer, lr)
                seed_step(recipe.train.seed, state.step, setup.world.rank)
                with run.failure.step(data, state):
                    step = train_step(learner, batches, data.recipe.train)
                if learner.ema:
                    learner.ema.update(learner.net, state.step)
                state.stepped(step.position, steps_per_epoch=steps_per_epoch, global_batch_size=data.global_batch_size)
                run.log.add(state, step, lr)
                run.after_step()
            run.end_epoch()
            run.validate_where_due()


main = command_line(train)

if __name__ == "__main__":
    main(obj=command_began())
