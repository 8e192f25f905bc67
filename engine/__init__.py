"""What joins the pipeline, the network and the run around the algorithm in `train.py`."""
