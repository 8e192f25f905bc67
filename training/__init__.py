"""All of a run: processes, learner, step, evaluation, checkpoints, metrics, progress, watchdog, report."""
