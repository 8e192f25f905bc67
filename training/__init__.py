"""What a run needs besides the algorithm: config, processes, checkpoints, metrics, progress, report."""
