"""A packed split → what the peers read: the same JPEGs as a folder of classes, and as the shards they come from.

Copies are made once, in FOLDER/data, under names that hold the dataset's fingerprint. `complete` is the last file that
a copy gets: one without it was interrupted, and is made again.
"""

import io
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.peers import gradient
from shard_tools.writer import PackOptions, pack
from shards.format import ShardSet, Split, table_file

COMPLETE = "complete.json"
NUM_GRADIENTS, NUM_GRADIENT_CLASSES = 64, 2


@dataclass(frozen=True)
class Layout:
    """One split, as files. All sizes in bytes.

    pack_s: how long packing the folder into shards took; None where they are not what packing the folder gives.
    """

    dataset: ShardSet
    split: Split
    folder: Path
    folder_bytes: int
    shard_bytes: int
    pack_s: float | None

    @property
    def key(self) -> str:
        return key_of(self.dataset, self.split)

    def job(self) -> dict[str, Any]:
        """What an adapter is told of it."""
        shards = range(len(self.split.shards))
        return {
            "folder": str(self.folder),
            "shards": [str(self.split.shard_path(shard)) for shard in shards],
            "indexes": [str(self.split.index_path(shard)) for shard in shards],
            "dataset": str(self.dataset.root),
            "split": self.split.name,
            "num_images": len(self.split),
        }


def key_of(dataset: ShardSet, split: Split) -> str:
    return f"{dataset.fingerprint[:12]}-{split.name}"


def make_once(target: Path, make: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """What `make` said when it filled `target`: now, or in an earlier run that came to its end."""
    marker = target / COMPLETE
    if not marker.exists():
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        said = make(target)
        marker.write_text(json.dumps(said) + "\n", encoding="utf-8")
    return dict(json.loads(marker.read_text(encoding="utf-8")))


def lay_out(dataset: ShardSet, split_name: str, folder: Path, workers: int | None) -> Layout:
    """Copy the split's JPEGs to files, unless they are there; and see how long `workers` take to pack those.

    workers: None leaves that out.

    Raises ValueError where the shards are not on a disk.
    """
    split = dataset.split(split_name)
    if split.url:
        raise ValueError(f"{split.url}: the peers read files; give a dataset on a disk")
    images = folder / "data" / f"images-{key_of(dataset, split)}"

    def make(target: Path) -> dict[str, Any]:
        write_folder(split, target)
        timed = None if workers is None or _resized(dataset) else pack_seconds(target, workers)
        return {"bytes": bytes_of(target), "pack_s": timed}

    said = make_once(images, make)
    shards = range(len(split.shards))
    files = [split.shard_path(shard) for shard in shards] + [split.index_path(shard) for shard in shards]
    shard_bytes = sum(path.stat().st_size for path in [*files, split.root / table_file(split.name)])
    return Layout(dataset, split, images, said["bytes"], shard_bytes, said["pack_s"])


def write_folder(split: Split, target: Path) -> None:
    """FOLDER/LABEL/SAMPLE.jpg; the labels have leading zeros, so that sorting them keeps their numbers."""
    for shard in range(len(split.shards)):
        with open(split.shard_path(shard), "rb") as tar:
            for sample_id in (split.samples["shard"] == shard).nonzero()[0]:
                row = split.samples[sample_id]
                tar.seek(int(row["offset"]))
                path = target / f"{row['label']:05d}" / f"{sample_id:09d}.jpg"
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(tar.read(int(row["size"])))


def _resized(dataset: ShardSet) -> bool:
    """Whether its shards were made from images of another size, which packing the copies would not do again."""
    encode = dataset.made.get("encode")
    return isinstance(encode, dict) and any(encode.get(name) for name in ("max_side", "short_side", "reencode"))


def pack_seconds(images: Path, workers: int) -> float:
    """Pack the folder, and throw the shards away."""
    with tempfile.TemporaryDirectory(prefix=".pack-", dir=images.parent) as out:
        started = time.perf_counter()
        pack(images, Path(out) / "packed", PackOptions(workers=workers))
        return time.perf_counter() - started


def lay_out_gradients(folder: Path) -> Layout:
    """Copies of the image that tells where a crop is from, packed, and as files."""
    encoded = io.BytesIO()
    Image.fromarray(gradient.image()).save(encoded, "JPEG", quality=95, subsampling=0)

    def make(target: Path) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix=".gradient-", dir=target.parent) as images:
            for i in range(NUM_GRADIENTS):
                path = Path(images) / "train" / str(i % NUM_GRADIENT_CLASSES) / f"{i}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encoded.getvalue())
            with ThreadPoolExecutor(1) as executor:
                pack(images, target, executor=executor)
        return {}

    packed = folder / "data" / "gradient"
    make_once(packed, make)
    return lay_out(ShardSet.open(packed), "train", folder, workers=None)


def bytes_of(folder: Path) -> int:
    """Of all files below."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
