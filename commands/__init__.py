"""The command line of `train.py` and its sub-commands: eval, predict, export, replay, audit, report."""
