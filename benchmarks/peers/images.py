"""Lay out a packed training split for the peers: the same files as a folder of classes, and the shards themselves."""

import shutil
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from penstock.benchmarks.peers import check
from penstock.shard_tools.writer import pack
from penstock.shards.format import ShardSet, Split, table_file
from penstock.shards.ppm import EXTENSION

SPLIT = "train"


class Images(NamedTuple):
    """The images. folder: has LABEL/SAMPLE.jpg, or .ppm. packed: the split's tars, indexes and table. key: an id."""

    split: Split
    folder: Path
    packed: list[Path]
    key: str


def make_once(target: Path, make: Callable[[Path], None]) -> None:
    """Fill the folder `target` with `make`, unless an earlier run completed it."""
    if not target.exists():
        partial = target.with_name(f".{target.name}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        make(partial)
        partial.rename(target)


def lay_out(dataset: ShardSet, data: Path) -> Images:
    """Copy the images to files below `data`, unless they are there. Raises ValueError if the shards are at a URL."""
    split, key = dataset.split(SPLIT), dataset.fingerprint[:12]
    if split.url:
        raise ValueError(f"{split.url}: the peers cannot read from a URL. Give a dataset on a disk.")

    def write(target: Path) -> None:
        for sample_id, row in enumerate(split.samples):
            with open(split.shard_path(row["shard"]), "rb") as tar:
                tar.seek(int(row["offset"]))
                data = tar.read(int(row["size"]))
            suffix = EXTENSION if data.startswith(b"P6") else "jpg"
            # sorting the labels keeps their numbers
            path = target / f"{row['label']:05d}" / f"{sample_id:09d}.{suffix}"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)

    make_once(data / f"images-{key}", write)
    files = [path(shard) for path in (split.shard_path, split.index_path) for shard in range(len(split.shards))]
    return Images(split, data / f"images-{key}", [*files, split.root / table_file(SPLIT)], key)


def lay_out_marked(data: Path) -> Images:
    """Make the marked images of `check`, each in its own class, packed and as files below `data`."""

    def make(target: Path) -> None:
        with tempfile.TemporaryDirectory(prefix=".marked-", dir=data) as folder, ThreadPoolExecutor(1) as executor:
            for label in range(check.NUM_MARKED):
                path = Path(folder, SPLIT, f"{label:02d}", "image.jpg")
                path.parent.mkdir(parents=True)
                Image.fromarray(check.marked_image(label)).save(path, quality=95, subsampling=0)
            pack(folder, target, executor=executor)

    make_once(data / "marked", make)
    return lay_out(ShardSet.open(data / "marked"), data)


def bytes_of(paths: Iterable[Path]) -> int:
    """Return the total size of files, and of all files below folders."""
    files = [file for path in paths for file in (path.rglob("*") if path.is_dir() else [path])]
    return sum(file.stat().st_size for file in files if file.is_file())
