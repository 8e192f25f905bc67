"""Shared by the tests of packing: small images, the command line, and hashes of the output."""

import hashlib
from pathlib import Path

import numpy as np
from click.testing import CliRunner, Result
from PIL import Image

from penstock.shard_tools.__main__ import main

NUM_IMAGES = {"train": 90, "val": 25}


def write_source(root: Path) -> Path:
    """115 small noise images in 3 classes, nearly all JPEG."""
    rng = np.random.default_rng(0)
    for split, count in NUM_IMAGES.items():
        for i in range(count):
            path = root / split / f"class{i % 3}" / f"{i:03d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            shape = (int(rng.integers(20, 60)), int(rng.integers(20, 60)), 3)
            image = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
            if i % 10 == 3:
                image = image.convert("L")
            if i % 30 == 7:
                image.save(path.with_suffix(".png"))
            else:
                image.save(path)
    return root


def hashes(root: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(root.iterdir())}


def cli(*arguments: object) -> Result:
    """Run the command in this process: exit code and output as from a shell, without the start-up of a second."""
    return CliRunner().invoke(main, list(map(str, arguments)))


def finished_shards(out: Path) -> dict[str, int]:
    """The finished shards of an unfinished directory, and the times at which their tars were written (ns)."""
    names = [path.stem for path in out.glob(".pack/*.part")]
    return {name: (out / f"{name}.tar").stat().st_mtime_ns for name in names}
