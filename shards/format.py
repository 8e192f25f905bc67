"""The on-disk format of a packed dataset. File names are defined only here.

    DIR/dataset.json              classes, splits, per shard: file, samples, bytes, sha256; how it was made
    DIR/train-000000.tar, .idx    members 000000000.cls + 000000000.jpg (or .ppm: `ppm`), as WebDataset readers expect
    DIR/train.samples.npy         the sample table: one SAMPLE_DTYPE row per sample, in shard order
    DIR/train.sources.txt         line i: the original file name of sample i, for people

`dataset.json` is written last, so a directory that has one is complete. If it has a `url`, the tars are at that URL.
"""

import hashlib
import os
import platform
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from penstock.shards.description import DAMAGED as DAMAGED
from penstock.shards.description import ClassInfo as ClassInfo
from penstock.shards.description import ShardInfo as ShardInfo
from penstock.shards.description import description_json, read_description
from penstock.shards.description import key_name as key_name
from penstock.shards.program import SHARD_TOOLS

INFO_FILE = "dataset.json"
CHECKED_ROWS = 1 << 14
SAMPLE_DTYPE = np.dtype(
    [("shard", "<u4"), ("offset", "<u8"), ("size", "<u4"), ("label", "<i4"), ("height", "<u2"), ("width", "<u2")]
)
Samples = NDArray[np.void]  # (num_samples,) SAMPLE_DTYPE


@dataclass(frozen=True)
class Split:
    """One split: its shards and its memory-mapped sample table."""

    name: str
    root: Path
    shards: tuple[ShardInfo, ...]
    samples: Samples  # read-only
    url: str = ""  # where the shards are, if not in `root`
    dataset_bytes: int = 0  # the shards of all splits of the dataset

    def __len__(self) -> int:
        return len(self.samples)

    def rows(self, sample_ids: NDArray[np.int64]) -> Samples:
        """(n,) ids → (n,) SAMPLE_DTYPE, a copy. Fancy indexing gives the same but takes twenty times as long."""
        return np.asarray(self.samples.take(sample_ids))

    def shard_path(self, shard: int) -> Path:
        return self.root / self.shards[shard].file

    def index_path(self, shard: int) -> Path:
        return index_path(self.shard_path(shard))

    def source_name(self, sample_id: int) -> str:
        """The original file name of one sample; "?" if the names were not kept, or if the id is -1 (a quarantined
        sample). Reads the list of names up to that line."""
        if sample_id < 0:
            return "?"
        try:
            with open(self.root / sources_file(self.name), encoding="utf-8", errors="surrogateescape") as lines:
                return unescape(next(islice(lines, sample_id, None)).rstrip("\n"))
        except (OSError, StopIteration):
            return "?"

    def source_names(self) -> list[str]:
        """The original file name of each sample; an empty list if the names were not kept."""
        try:
            text = (self.root / sources_file(self.name)).read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            return []
        return [unescape(line) for line in text.split("\n")[: len(self)]]

    def where(self, sample_id: int) -> str:
        """`TAR at byte OFFSET (SOURCE NAME)`, which identifies one sample in messages."""
        row = self.samples[sample_id]
        path = self.shard_path(int(row["shard"]))
        place = f"{self.url}/{path.name}" if self.url else path
        return f"{place} at byte {row['offset']} ({self.source_name(sample_id)})"


@dataclass(frozen=True)
class ShardSet:
    """A packed dataset. `open` checks that its files agree with each other but does not read the shards."""

    root: Path
    classes: tuple[ClassInfo, ...]
    splits: dict[str, Split]
    made: dict[str, object]
    fingerprint: str  # sha256 of dataset.json: identifies this dataset in checkpoints
    files: dict[str, str] = field(default_factory=dict)  # table or source list → sha256
    intact: bool = True  # dataset.json is unchanged since it was written
    url: str = ""  # the dataset's URL, if `root` is only a local copy of its tables

    @classmethod
    def open(
        cls, root: str | os.PathLike[str], cache_dir: str | os.PathLike[str] = "", timeout_s: float = 60.0
    ) -> "ShardSet":
        """Open a packed dataset in a directory or at a URL. For a URL, the tables are downloaded to `cache_dir`.

        Raises:
            ValueError: there is no dataset at `root`, or its files contradict each other; the message names the file.
                Or the store at a URL does not answer for `timeout_s`.
        """
        url = ""
        if "://" in str(root):
            from penstock.shards.remote import Store, mirror

            url = str(root).rstrip("/")
            root = mirror(Store(url, timeout_s), INFO_FILE, cache_dir)
        root = Path(root)
        path = inside(root, INFO_FILE)
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise ValueError(
                f"{root}: no packed dataset here ({INFO_FILE}: {error.strerror}); "
                f"make one with: {SHARD_TOOLS} pack SOURCE OUT"
            ) from None
        try:
            found = read_description(raw)
        except DAMAGED as error:
            what = f"key {error} is missing" if isinstance(error, KeyError) else error
            raise ValueError(f"{path}: not a dataset description ({what}); pack the dataset again") from None
        classes = found.classes
        splits = {name: _open_split(root, name, infos, len(classes)) for name, infos in found.shards.items()}
        if at := found.url or url:
            shards = [info for infos in found.shards.values() for info in infos]
            for info in shards:
                if not re.fullmatch("[0-9a-f]{64}", info.sha256):  # the cache uses it as a file name
                    raise ValueError(
                        f"{path}: {info.sha256!r} is not a valid sha256 for {info.file}; pack the dataset again"
                    )
            size = sum(info.bytes for info in shards)
            splits = {name: replace(split, url=at, dataset_bytes=size) for name, split in splits.items()}
        return cls(root, classes, splits, found.made, hashlib.sha256(raw).hexdigest(), found.files, found.intact, url)

    @property
    def place(self) -> str:
        """The dataset's location as the user knows it: its URL or its directory."""
        return self.url or str(self.root)

    def split(self, name: str) -> Split:
        """One split by name. Raises ValueError with the names of the existing splits."""
        if name not in self.splits:
            raise ValueError(f"{self.place}: no split {name!r}; it has {', '.join(sorted(self.splits))}")
        return self.splits[name]

    def check_on_disk(self) -> None:
        """Raises ValueError if the shards are not in `root`."""
        for split in self.splits.values():
            if split.url:
                raise ValueError(
                    f"{self.place}: its shards are at {split.url}, but this command reads local disks only; copy the "
                    "shards to a disk and index them there"
                )


def inside(root: Path, name: str) -> Path:
    """The path of a dataset's file; the file need not exist.

    Raises:
        ValueError: `name` is not a plain file name, or it is a link to a place outside `root`, or not a regular file.
    """
    path = root / os.path.basename(name)
    try:
        plain = name == path.name and name != ".." and "\0" not in name and os.fsencode(name) != b""
        mode = path.stat().st_mode if plain and os.path.lexists(path) else stat.S_IFREG
        leaves = plain and path.is_symlink() and not path.resolve().is_relative_to(root.resolve())
    except UnicodeError:
        plain = False
    except (OSError, RuntimeError):  # unreachable (opening it will report that), or a loop of links
        return path
    if not plain:
        raise ValueError(f"{root / INFO_FILE}: {name!r} is not a plain file name; pack the dataset again")
    if leaves:
        raise ValueError(f"{path}: is a link to {path.resolve()}, outside the dataset; put the file itself here")
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path}: is not a regular file; pack the dataset again")
    return path


def _open_split(root: Path, name: str, shards: tuple[ShardInfo, ...], num_classes: int) -> Split:
    for file in (name, sources_file(name), *(shard.file for shard in shards)):
        inside(root, file)
    path = inside(root, table_file(name))
    try:
        samples = np.lib.format.open_memmap(path, mode="r")  # unlike np.load, it reads neither archives nor pickles
    except Exception as error:  # the header parser can raise anything that Python's tokenizer and the dtypes raise
        raise ValueError(f"{path}: cannot read the sample table ({error}); pack the dataset again") from None
    expected = sum(shard.samples for shard in shards)
    if samples.dtype != SAMPLE_DTYPE or samples.shape != (expected,):
        raise ValueError(
            f"{path}: has shape {samples.shape} and dtype {samples.dtype}, but {INFO_FILE} lists {expected} samples; "
            "pack the dataset again"
        )
    sizes = np.array([shard.bytes for shard in shards], dtype=np.uint64)
    for start in range(0, expected, CHECKED_ROWS):  # in pieces that the cache holds
        _check_rows(path, samples[start : start + CHECKED_ROWS], start, sizes, num_classes)
    return Split(name, root, shards, samples)


def _check_rows(path: Path, rows: Samples, first: int, shard_sizes: NDArray[np.uint64], num_classes: int) -> None:
    if rows["shard"].max() >= len(shard_sizes):
        raise ValueError(f"{path}: refers to shard {rows['shard'].max()}, but there are only {len(shard_sizes)} shards")
    sizes = shard_sizes[rows["shard"]]
    beyond = (rows["size"] > sizes) | (rows["offset"] > sizes - rows["size"])  # their sum could overflow
    if beyond.any():
        raise ValueError(f"{path}: sample {first + int(beyond.argmax())} is beyond the end of its shard")
    if rows["label"].min() < 0 or rows["label"].max() >= num_classes:
        raise ValueError(f"{path}: a label is outside 0…{num_classes - 1}")
    if min(rows["height"].min(), rows["width"].min(), rows["size"].min()) == 0:
        raise ValueError(f"{path}: a sample has no pixels or no bytes")


def shard_file(split: str, shard: int) -> str:
    return f"{split}-{shard:06d}.tar"


def index_path(shard_path: Path) -> Path:
    return shard_path.with_suffix(".idx")


def table_file(split: str) -> str:
    return f"{split}.samples.npy"


def sources_file(split: str) -> str:
    return f"{split}.sources.txt"


def escape(name: str) -> str:
    """Escape a file name so that it fits on one line; `unescape` is the inverse."""
    return name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")


def unescape(line: str) -> str:
    parts = line.split("\\\\")
    return "\\".join(part.replace("\\n", "\n").replace("\\r", "\r") for part in parts)


def tsv_line(*cells: str) -> bytes:
    """One line of a .tsv file; tabs and line ends inside a cell are escaped."""
    return ("\t".join(escape(cell).replace("\t", "\\t") for cell in cells) + "\n").encode("utf-8", "surrogateescape")


def write_split(
    root: Path, name: str, samples: Samples | Iterable[Samples], sources: Iterable[str] | Iterable[bytes]
) -> dict[str, str]:
    """Write a split's table and source names; returns file → sha256 for `write_info`.

    Args:
        samples: (num_samples,) SAMPLE_DTYPE in shard order, or an iterable of consecutive pieces.
        sources: one name per sample, or consecutive pieces of the file as bytes (escaped lines).
    """
    with atomic_write(root / table_file(name)) as stream:
        count = 0
        _table_header(stream, count)
        for piece in [samples] if isinstance(samples, np.ndarray) else samples:
            stream.write(piece.astype(SAMPLE_DTYPE, copy=False).tobytes())
            count += len(piece)
        stream.seek(0)
        _table_header(stream, count)
    with atomic_write(root / sources_file(name)) as stream:
        for source in sources:
            line = source if isinstance(source, bytes) else f"{escape(source)}\n".encode("utf-8", "surrogateescape")
            stream.write(line)
    return {file: file_sha256(root / file) for file in (table_file(name), sources_file(name))}


def _table_header(stream: BinaryIO, count: int) -> None:
    """Write the .npy header. NumPy pads it, so its length stays the same as the count grows."""
    header = {"descr": SAMPLE_DTYPE.descr, "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(stream, header)


def file_sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_info(
    root: Path,
    classes: Iterable[ClassInfo],
    splits: Mapping[str, Iterable[ShardInfo]],
    made: dict[str, object],
    files: dict[str, str],
    url: str = "",
) -> None:
    """Write `dataset.json`, the last file of a dataset. `files`: the results of the `write_split` calls. `url`: the
    location of the shards, if they are not in `root`."""
    with atomic_write(root / INFO_FILE) as stream:
        stream.write(description_json(classes, splits, made, files, url))


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a binary file that appears under its name only when it is complete and synced to disk."""
    temporary = path.with_name(f".{path.name}.{platform.node()}-{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.filename == str(temporary):
            error.filename = str(path)  # the name that the user knows
        raise
    finally:
        with suppress(OSError):  # a read-only directory raises this even for missing files
            temporary.unlink()
