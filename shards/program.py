"""The names of the commands, which differ between a checkout and `pip install penstock`.

Messages take command names from here, so that users can copy them as printed.
"""

import sys
from pathlib import Path


def _is_installed() -> bool:
    """Whether messages should name the command `penstock`: it was called, or this is not a checkout."""
    called = Path(sys.argv[0] if sys.argv else "")
    by_name = called.stem == "penstock" or called.parts[-2:] == ("penstock", "__main__.py")
    return by_name or not (Path(__file__).resolve().parents[1] / "pyproject.toml").exists()


INSTALLED = _is_installed()
SHARD_TOOLS = "penstock" if INSTALLED else "python -m shard_tools"
TRAIN = "penstock train" if INSTALLED else "train.py"
