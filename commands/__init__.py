"""What `train.py` offers besides training: eval, predict, export, replay, audit, report; and its command line."""
