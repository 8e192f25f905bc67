"""Shared by the tests of the sources: unique JPEGs, and a reader of packed datasets that uses only webdataset."""

import io
import tarfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from penstock.shard_tools.sources import open_source
from penstock.shard_tools.sources.base import Source, read_bytes
from penstock.shard_tools.writer import pack
from penstock.shards.format import ShardSet

WNIDS = ("n01440764", "n02119789", "n03888257", "n15075141")  # tench, kit fox, parachute, toilet tissue
Labelled = dict[bytes, tuple[str, str]]  # content of an image file → split, class key


def jpeg(number: int, format: str = "JPEG") -> bytes:
    """An image file that is different for each number."""
    rng = np.random.default_rng(number)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (12 + number % 5, 16, 3), dtype=np.uint8)).save(buffer, format)
    return buffer.getvalue()


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def listed(source: Source, work: Path) -> Labelled:
    """The images that a source lists, read from their places."""
    images = list(source.images(work))
    assert len({(image.split, image.name) for image in images}) == len(images)
    splits = [image.split for image in images]
    assert sum(a != b for a, b in pairwise(splits)) == len(set(splits)) - 1  # grouped
    return {read_bytes(i.name, i.place, i.size_bytes): (i.split, i.key) for i in images}


def packed(path: Path, out: Path) -> tuple[Labelled, ShardSet]:
    """Read the packed source with webdataset. A label is its position among the sorted class keys."""
    with ThreadPoolExecutor(1) as executor:
        shard_set = pack(path, out, executor=executor).shard_set
    keys = [info.wnid for info in shard_set.classes]
    assert keys == sorted(keys)
    found: Labelled = {}
    for name, split in shard_set.splits.items():
        urls = [str(split.shard_path(shard)) for shard in range(len(split.shards))]
        for sample in webdataset.WebDataset(urls, shardshuffle=False):
            found[sample["jpg"]] = name, keys[int(sample["cls"])]
    return found, shard_set


def one_line(path: Path, work: Path, match: str, source: Source | None = None) -> None:
    """Check that listing the source fails with one line that contains `match` and names the place."""
    with pytest.raises(ValueError, match=match) as caught:
        list((source or open_source(path)).images(work))
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
