"""Make one shard: a stretch of the shuffled listing → a tar, its index, and a part file that records its content.

`write_shard` is a pure function of its `ShardJob` and the images' bytes, so any executor can run it anywhere. The part
file is written after the tar is complete, so a killed run leaves either a finished shard or nothing that counts as one.
"""

import hashlib
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from penstock.pipeline.permutation import permute, philox_key
from penstock.shard_tools.encode import BadImage, EncodeConfig, Encoded, encode, pixels_of
from penstock.shard_tools.listing import Listing
from penstock.shard_tools.part import HASH_BYTES, Part, read_part, write_part
from penstock.shard_tools.records import CHUNK, Images, Listed
from penstock.shard_tools.sources.base import ByteReader, printable
from penstock.shard_tools.tarindex import Member, index_line, write_index
from penstock.shard_tools.tarwriter import TarWriter, member_bytes
from penstock.shard_tools.upload import remove_uploaded, upload_shard
from penstock.shards.format import ShardInfo, atomic_write, escape, index_path, shard_file
from penstock.shards.ppm import EXTENSION, to_ppm

WORK_DIR = ".pack"  # in OUT, until OUT is complete
LISTING_DIR = "listing"  # in WORK_DIR
ROW = struct.Struct("<IQIiHH16s")  # a PART_DTYPE


@dataclass(frozen=True)
class ShardJob:
    """The description of one shard: positions first…first+count-1 of the shuffled split. Small and picklable."""

    out: Path  # absolute; other machines use the same path
    split: str
    shard: int
    first: int
    count: int
    size_bytes: int  # of the source files
    num_images: int  # of the split
    seed: int
    encode: EncodeConfig
    url: str = ""  # the shard moves to this URL when it is finished; empty: it stays in `out`

    @property
    def part_path(self) -> Path:
        return self.out / WORK_DIR / f"{self.split}-{self.shard:06d}.part"

    def images(self) -> Iterator[Listed]:
        """Its images, in order."""
        positions = np.arange(self.first, self.first + self.count)
        with Images(self.out / WORK_DIR / LISTING_DIR, self.split) as images:
            for position in shuffled(positions, self.num_images, self.seed, self.split):
                yield images[int(position)]

    def as_pixels(self) -> NDArray[np.bool_]:
        """(count,) bool: which of its images are stored as pixels. Exactly the share `encode.pixels` of the split is,
        after rounding. A larger share includes all images of a smaller one."""
        positions = np.arange(self.first, self.first + self.count)
        places = permute(positions, self.num_images, philox_key(self.seed, 0, f"pixels {self.split}"))
        return places < round(self.encode.pixels * self.num_images)


def shuffled(positions: NDArray[np.int64], num_images: int, seed: int, split: str) -> NDArray[np.int64]:
    """Map positions in the shuffled split to positions in the listing, both (n,)."""
    return permute(positions, num_images, philox_key(seed, 0, f"pack {split}"))


def plan_shards(
    out: Path,
    listing: Listing,
    split: str,
    samples_per_shard: int,
    shard_size: int,
    seed: int,
    config: EncodeConfig,
    url: str = "",
) -> list[ShardJob]:
    """Cut a shuffled split into shards. A shard is full if the next image would exceed the number or the bytes."""
    sizes, total = listing.sizes(split), listing.num_images[split]
    jobs: list[ShardJob] = []
    first = count = size = source = 0

    def close() -> None:
        jobs.append(ShardJob(out, split, len(jobs), first, count, source, total, seed, config, url))

    for start in range(0, total, CHUNK):
        chunk = sizes[shuffled(np.arange(start, min(start + CHUNK, total)), total, seed, split)].astype(np.int64)
        source_ends = np.concatenate([[0], np.cumsum(chunk)])
        ends = np.concatenate([[0], np.cumsum(member_bytes(1) + (chunk + 512 + -chunk % 512))])
        at = 0
        while at < len(chunk):
            fits = int(np.searchsorted(ends, ends[at] + shard_size - size, side="right")) - 1 - at
            take = min(fits, samples_per_shard - count, len(chunk) - at)
            if take < 1 and count == 0:
                take = 1  # a shard has at least one image, however large
            if take < 1:
                close()
                first, count, size, source = first + count, 0, 0, 0
                continue
            count += take
            size += int(ends[at + take] - ends[at])
            source += int(source_ends[at + take] - source_ends[at])
            at += take
    close()
    return jobs


def write_shard(job: ShardJob) -> None:
    """Write OUT/SPLIT-SHARD.tar, then .idx, then the part file. With a URL, upload tar and index before the part file.

    Raises:
        ValueError: a source cannot be read or changed since it was listed, or the output cannot be written.
    """
    tar_path = job.out / shard_file(job.split, job.shard)
    try:
        with atomic_write(tar_path) as stream:
            content = _write_tar(job, stream)
        info, index_bytes = None, 0
        if content.index:
            info = ShardInfo(tar_path.name, len(content.index), content.size_bytes, content.sha256)
            index_bytes = write_index(index_path(tar_path), content.index)
            if job.url:
                upload_shard(job.url, tar_path)
        else:
            tar_path.unlink()
        kinds = dict(sorted(content.kinds.items()))
        part = Part(info, index_bytes, len(content.index), kinds, content.bad, content.unturned)
        write_part(job.part_path, part, bytes(content.rows), "".join(content.names).encode("utf-8", "surrogateescape"))
        if job.url and info:
            remove_uploaded(job.out, info)
    except OSError as error:
        raise ValueError(
            f"{tar_path}: cannot be written ({error.strerror}); correct this and run the same command again, "
            "which keeps finished shards"
        ) from None


@dataclass
class _Content:
    """The images that were written to a tar, and those that were rejected."""

    rows: bytearray = field(default_factory=bytearray)  # PART_DTYPE
    names: list[str] = field(default_factory=list)  # of the sources, a line each
    index: list[str] = field(default_factory=list)  # the lines of the .idx
    kinds: Counter[str] = field(default_factory=Counter)
    unturned: int = 0
    bad: list[tuple[str, str]] = field(default_factory=list)  # name, reason
    size_bytes: int = 0  # of the tar
    sha256: str = ""


def _write_tar(job: ShardJob, stream: BinaryIO) -> _Content:
    """Write the job's images in order, except the bad ones."""
    content, tar = _Content(), TarWriter(stream)
    with closing(ByteReader()) as reader:
        for position, (image, as_pixels) in enumerate(zip(job.images(), job.as_pixels(), strict=True), job.first):
            data = _read(reader, image)
            try:
                encoded = encode(data, job.encode)
                extension, stored = _stored(encoded, as_pixels)
            except BadImage as error:
                content.bad.append((image.name, str(error)))
                continue
            label = str(image.label).encode()
            label_name, image_name = f"{position:09d}.cls", f"{position:09d}.{extension}"
            label_member = Member("cls", tar.add(label_name, label), len(label), label_name)
            offset = tar.add(image_name, stored)
            content.index.append(index_line([label_member, Member(extension, offset, len(stored), image_name)]))
            digest = hashlib.sha256(data).digest()[:HASH_BYTES]
            content.rows += ROW.pack(0, offset, len(stored), image.label, encoded.height, encoded.width, digest)
            content.names.append(f"{escape(image.name)}\n")
            content.kinds[encoded.kind] += 1
            content.unturned += encoded.unturned
    tar.close()
    content.size_bytes, content.sha256 = tar.size_bytes, tar.sha256.hexdigest()
    return content


def _stored(encoded: Encoded, as_pixels: np.bool_) -> tuple[str, bytes]:
    """The member's extension and content. Raises BadImage like `pixels_of`."""
    return (EXTENSION, to_ppm(pixels_of(encoded))) if as_pixels else ("jpg", encoded.jpeg)


def finished_part(job: ShardJob) -> Part | None:
    """The part of a finished shard; None if the shard must be made, or made again."""
    try:
        part = read_part(job.part_path)
        if part.info is not None and not job.url:
            tar_path = job.out / part.info.file
            if (tar_path.stat().st_size, index_path(tar_path).stat().st_size) != (part.info.bytes, part.index_bytes):
                return None
        return part if part.samples + len(part.bad) == job.count else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _read(reader: ByteReader, image: Listed) -> bytes:
    try:
        return reader.read(image.name, image.place, image.size_bytes)
    except OSError as error:
        raise ValueError(
            f"{printable(image.place.file)}: cannot be read ({error.strerror}); "
            "make it readable or remove it, and pack again"
        ) from None
