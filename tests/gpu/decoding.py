"""Run a validation epoch on the GPU in its own process, since decoding may crash: pixels to a file, log to stderr.

python -m tests.gpu.decoding DATA OUT.npy '{"gpu_decode": "region"}'
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from penstock.pipeline.config import DataConfig
from penstock.pipeline.decoders_used import LOG_LEVEL
from penstock.pipeline.feed import Feed
from penstock.pipeline.loader import DaliLoader
from penstock.shards.format import ShardSet

SIZE = 96
ROOT = Path(__file__).parents[2]


def validation(shard_set: ShardSet, batch_size: int = 20, **config: Any) -> Feed:
    """A feed of every image of the validation split in stored order, with the same pixels in every epoch."""
    settings = {"val_image_size": SIZE, "val_resize_size": SIZE + 10} | config
    return Feed(split=shard_set.split("val"), config=DataConfig(**settings), augment=None, batch_size=batch_size)


def levels(loader: DaliLoader) -> torch.Tensor:
    """An epoch in grey levels on the CPU: (n, 3, S, S) float32."""
    config = loader.feed.config
    images = torch.cat([batch.images.cpu().float() for batch in loader.iter_epoch(0)])
    return images * torch.tensor(config.std)[:, None, None] + torch.tensor(config.mean)[:, None, None]


def in_a_process(data: Path, out: Path, **config: Any) -> tuple[torch.Tensor, str]:
    """The epoch's `levels` and the log. Raises AssertionError with the log if the process fails."""
    command = [sys.executable, "-m", "tests.gpu.decoding", str(data), str(out), json.dumps(config)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | LOG_LEVEL, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"exit status {done.returncode}: {done.stderr[-2000:]}"
    return torch.from_numpy(np.load(out)), done.stderr


if __name__ == "__main__":
    feed = validation(ShardSet.open(Path(sys.argv[1])), **json.loads(sys.argv[3]))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    np.save(sys.argv[2], levels(DaliLoader(feed, device=device, threads=2)).numpy())
