"""Everything in a training run: processes, learner, step, evaluation, checkpoints, metrics, watchdog, report."""
