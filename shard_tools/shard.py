"""One shard: a list of source images → a tar, its index, and a part file that says what is in it.

`write_shard` is a pure function of its `ShardJob` (and the images' bytes), so any executor may run it anywhere, and
a killed run leaves either a whole shard or nothing that counts: the part file is written after the tar is in place.

The tar is what `webdataset.TarWriter` writes, byte for byte (tested), but written with the standard library's
`tarfile`: importing webdataset imports torch, 5 s and 0.4 GB in every worker.
"""

import hashlib
import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from shard_tools.encode import BadImage, EncodeConfig, encode
from shard_tools.format import SAMPLE_DTYPE, ShardInfo, atomic_write, index_path, shard_file
from shard_tools.sources.imagefolder import SourceImage

WORK_DIR = ".pack"  # in OUT, as long as it is not complete
BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True)
class ShardJob:
    """What one shard is made of. `first` is the position of its first image in the shuffled split."""

    out: Path
    split: str
    shard: int
    first: int
    images: tuple[SourceImage, ...]
    max_pixels: int

    @property
    def size_bytes(self) -> int:
        return sum(image.size_bytes for image in self.images)


@dataclass(frozen=True)
class Part:
    """What came of a `ShardJob`. `info` is None if no image was usable; then there is no tar."""

    info: ShardInfo | None
    index_bytes: int
    rows: list[list[int]]  # offset, size, label, height, width
    sources: list[str]
    kinds: dict[str, int]  # what the images were: "jpeg" or what was converted
    bad: list[list[str]]  # name, reason

    @property
    def samples(self) -> np.ndarray:
        """(num_samples,) SAMPLE_DTYPE with `shard` 0."""
        return np.array([(0, *row) for row in self.rows], dtype=SAMPLE_DTYPE)


def plan_shards(
    out: Path,
    split: str,
    images: list[SourceImage],
    samples_per_shard: int,
    shard_size: int,
    seed: int,
    max_pixels: int,
) -> list[ShardJob]:
    """Shuffle a split and cut it into shards.

    The permutation is the order of raw 64-bit Philox draws: NumPy promises that stream for ever, unlike the methods
    of its Generator.
    """
    words = np.random.Philox(np.random.SeedSequence([seed, *split.encode()])).random_raw(len(images))
    order = np.argsort(words, kind="stable")
    jobs: list[ShardJob] = []
    first = 0
    size = 0
    for position, i in enumerate(order):
        added = member_bytes(1) + member_bytes(images[i].size_bytes)
        if position > first and (position - first == samples_per_shard or size + added > shard_size):
            jobs.append(
                ShardJob(out, split, len(jobs), first, tuple(images[k] for k in order[first:position]), max_pixels)
            )
            first, size = position, 0
        size += added
    jobs.append(ShardJob(out, split, len(jobs), first, tuple(images[k] for k in order[first:]), max_pixels))
    return jobs


def write_shard(job: ShardJob) -> None:
    """Write OUT/SPLIT-SHARD.tar, then .idx, then the part file.

    Raises:
        ValueError: a source cannot be read or changed since it was listed, or the output cannot be written.
    """
    tar_path = job.out / shard_file(job.split, job.shard)
    rows: list[list[int]] = []
    sources: list[str] = []
    index: list[str] = []
    kinds: Counter[str] = Counter()
    bad: list[list[str]] = []
    try:
        with atomic_write(tar_path) as stream:
            hashed = HashingWriter(stream)
            with tarfile.open(fileobj=hashed, mode="w", format=tarfile.USTAR_FORMAT) as tar:  # type: ignore[call-overload]
                for position, image in enumerate(job.images, job.first):
                    data = _read(image)
                    try:
                        encoded = encode(data, EncodeConfig(max_pixels=job.max_pixels))
                    except BadImage as error:
                        bad.append([image.name, str(error)])
                        continue
                    key = f"{position:09d}"
                    index_line = []
                    for extension, payload in (("cls", str(image.label).encode()), ("jpg", encoded.jpeg)):
                        offset = add_member(tar, f"{key}.{extension}", payload)
                        index_line.append(f"{extension} {offset} {len(payload)} {key}.{extension}")
                    rows.append([offset, len(encoded.jpeg), image.label, encoded.height, encoded.width])
                    sources.append(image.name)
                    index.append(" ".join(index_line))
                    kinds[encoded.kind] += 1
        info = None
        index_bytes = 0
        if rows:
            info = ShardInfo(tar_path.name, len(rows), hashed.tell(), hashed.sha256.hexdigest())
            text = "".join(f"{line}\n" for line in (f"v1.2 {len(index)}", *index)).encode()  # as DALI's wds2idx
            index_bytes = len(text)
            with atomic_write(index_path(tar_path)) as stream:
                stream.write(text)
        else:
            tar_path.unlink()
        part = Part(info, index_bytes, rows, sources, dict(sorted(kinds.items())), bad)
        with atomic_write(part_path(job)) as stream:
            stream.write(json.dumps(vars(part) | {"info": vars(info) if info else None}).encode())
    except OSError as error:
        raise ValueError(
            f"{tar_path}: cannot be written ({error.strerror}); finished shards are kept: run the same command again"
        ) from None


def part_path(job: ShardJob) -> Path:
    return job.out / WORK_DIR / f"{job.split}-{job.shard:06d}.json"


def read_part(job: ShardJob) -> Part | None:
    """The part of a finished shard; None if the shard has to be made (again)."""
    try:
        fields: dict[str, Any] = json.loads(part_path(job).read_bytes())
        info = ShardInfo(**fields.pop("info")) if fields["info"] else fields.pop("info")
        part = Part(info, **fields)
        if info is not None:
            tar_path = job.out / info.file
            if (tar_path.stat().st_size, index_path(tar_path).stat().st_size) != (info.bytes, part.index_bytes):
                return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return part if len(part.rows) + len(part.bad) == len(job.images) else None


def member_bytes(size: int) -> int:
    """What one payload takes in a tar, its header included."""
    return BLOCK + (size + BLOCK - 1) // BLOCK * BLOCK


def add_member(tar: tarfile.TarFile, name: str, payload: bytes) -> int:
    """Append a member with fixed metadata (webdataset's); returns the payload's offset in the tar."""
    member = tarfile.TarInfo(name)
    member.size = len(payload)
    member.mode = 0o444
    member.mtime = 0  # an int: a float costs a PAX header of 1 KiB
    member.uname = member.gname = "bigdata"
    offset = int(tar.offset) + BLOCK
    tar.addfile(member, io.BytesIO(payload))
    tar.members.clear()  # type: ignore[attr-defined]  # else it keeps every header in memory
    return offset


class HashingWriter:
    """A write-only file that hashes what passes through."""

    def __init__(self, stream: BinaryIO):
        self.stream = stream
        self.sha256 = hashlib.sha256()
        self.position = 0

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self.position += len(data)
        return self.stream.write(data)

    def tell(self) -> int:
        return self.position


def _read(image: SourceImage) -> bytes:
    try:
        return image.read()
    except OSError as error:
        raise ValueError(
            f"{image.path}: cannot be read ({error.strerror}); make it readable or remove it, and pack again"
        ) from None


def iterate_parts(jobs: list[ShardJob]) -> Iterator[Part]:
    """The parts of finished jobs, one in memory at a time."""
    for job in jobs:
        part = read_part(job)
        if part is None:
            raise ValueError(f"{part_path(job)}: vanished or changed while packing; run the same command again")
        yield part
