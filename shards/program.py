"""What the programs are called where this one was started: in a checkout, or as `pip install penstock` has them.

Messages that name a command take its words from here, so that they can be typed as they stand.
"""

import sys
from pathlib import Path


def _is_installed() -> bool:
    """Whether the command `penstock` is meant: it was called, or there is no checkout whose files could be."""
    called = Path(sys.argv[0] if sys.argv else "")
    by_name = called.stem == "penstock" or called.parts[-2:] == ("penstock", "__main__.py")
    return by_name or not (Path(__file__).resolve().parents[1] / "pyproject.toml").exists()


INSTALLED = _is_installed()
SHARD_TOOLS = "penstock" if INSTALLED else "python -m shard_tools"
TRAIN = "penstock train" if INSTALLED else "train.py"
