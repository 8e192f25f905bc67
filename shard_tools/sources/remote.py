"""A source at a URL (hf://, s3://, gs:// …): download its files to the work directory, then read them as usual.

The kind of source is detected from the file names alone, before any download: we open a tree of empty files with these
names. The shuffle can need any image at any time, so all files are kept until packing is done. Parquet files are not
downloaded but read at the URL, because their images are copied out of them anyway (`parquet`).
"""

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

from penstock.shard_tools.sources.base import Source, SourceImage, Unusable
from penstock.shard_tools.sources.naming import is_image, is_junk
from penstock.shard_tools.sources.parquet import Parquet
from penstock.shards.remote import PART_BYTES, Store

THREADS = 16  # simultaneous downloads
BLOCK_BYTES = 1 << 20  # minimum size of one read from a Parquet file
FILES, TABLES = (".parquet", ".zip"), (".csv", ".tsv")  # sources that are a single file


class RemoteFile(io.RawIOBase):
    """A file of a store, read with byte ranges."""

    def __init__(self, store: Store, file: str, size: int) -> None:
        self._store, self._file, self._size, self._at = store, file, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = self._store.read(self._file, self._at, max(self._at, min(self._at + len(buffer), self._size)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


@dataclass
class RemoteSource(Source):
    """The `Source`. opened: opens the source at a path, with the user's options.

    Raises:
        ValueError: there are no files at the URL, or no kind of source recognises them.
    """

    url: str
    opened: Callable[[Path], Source]
    format: str = field(init=False)
    explained: str = field(init=False)
    _sizes: dict[str, int] = field(init=False)  # sizes of the files, by their paths below the store's URL
    _root: Path = field(init=False)  # the local directory that currently stands for the URL
    _source: Source = field(init=False)
    _stopped: bool = False  # whether downloads must stop

    def __post_init__(self) -> None:
        self.url = self.url.rstrip("/")
        folder, _, name = self.url.rpartition("/")
        if name.lower().endswith(TABLES):
            raise ValueError(f"{self.url}: tables are read from local disks only; download it together with its images")
        self._file = name if name.lower().endswith(FILES) else ""
        self._store = Store(folder if self._file else self.url)
        files = self._store.tree()
        names = [self._file] if self._file else list(filter(_is_plain, files))
        self._sizes = {file: files[file] for file in names if file in files}
        if not self._sizes:
            raise ValueError(f"{self.url}: there are no files; check the URL")
        with TemporaryDirectory() as folder:
            self._open(Path(folder), self._sizes)
        self.format, self.explained = self._source.format, self._source.explained
        if fetched := sum(self._sizes[file] for file in self._wanted()):
            how = f"{fetched / 1e9:.1f} GB are downloaded to the work directory first and kept until packing is done"
            self.explained = f"{how}; {self.explained}"

    def fetch(self, work: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Download all files that are read in place to `work`; keep those that an earlier call has downloaded.

        `progress` is called with the bytes downloaded so far and the total.

        Raises:
            ValueError: the store fails for too long. OSError: `work` cannot be written.
        """
        listed = json.dumps([self.url, self._sizes])
        root = work / f"remote-{hashlib.sha256(listed.encode()).hexdigest()[:16]}"
        for other in work.glob("remote-*"):  # downloads of an earlier state of the URL
            if other != root:
                shutil.rmtree(other)
        wanted, done = self._wanted(), 0
        total = sum(self._sizes[file] for file in wanted)
        with ThreadPoolExecutor(THREADS) as pool:
            try:
                for size in pool.map(self._fetch_one, wanted, [root] * len(wanted)):
                    progress(done := done + size, total)
            except BaseException:
                self._stopped = True
                pool.shutdown(cancel_futures=True)
                raise
        self._open(root, set(self._sizes) - set(wanted))

    def images(self, work: Path) -> Iterator[SourceImage | Unusable]:
        """Download the files, then yield the images of the detected source."""
        self.fetch(work)
        with self._told_of_the_url():
            yield from self._source.images(work)

    def class_names(self) -> dict[str, str]:
        return self._source.class_names()

    def fixed_classes(self) -> list[str] | None:
        return self._source.fixed_classes()

    def notes(self) -> list[str]:
        return [self._of_the_url(line) for line in self._source.notes()]

    @property
    def ignored(self) -> Sequence[str]:  # type: ignore[override]
        return self._source.ignored

    def _wanted(self) -> list[str]:
        """The files to download: all, or, beside Parquet files, only images that their paths may refer to."""
        return [file for file in self._sizes if self.format != "parquet" or is_image(file)]

    def _fetch_one(self, file: str, root: Path) -> int:
        path, size = root / file, self._sizes[file]
        part = path.with_name(f".{path.name}.part")
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(part, "wb") as stream:
                for start in range(0, size, PART_BYTES):
                    if self._stopped:
                        return 0
                    stream.write(self._store.read(file, start, min(start + PART_BYTES, size)))
            part.replace(path)
        return size

    def _open(self, root: Path, empty: dict[str, int] | set[str]) -> None:
        """Open the source in `root`, after creating the files `empty` with the right sizes but without content."""
        for file in empty:
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            with open(root / file, "ab") as stream:
                stream.truncate(self._sizes[file])
        self._root = root
        with self._told_of_the_url():
            self._source = self.opened(root / self._file)
        if isinstance(self._source, Parquet):
            self._source.opened = self._read

    def _read(self, path: Path) -> BinaryIO:
        file = path.relative_to(self._root).as_posix()
        return io.BufferedReader(RemoteFile(self._store, file, self._sizes[file]), BLOCK_BYTES)

    @contextmanager
    def _told_of_the_url(self) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            file, _, why = self._of_the_url(str(error)).partition(": ")
            # errors of the store already name the file
            raise ValueError(why if why.startswith(f"{file}: ") else f"{file}: {why}") from None

    def _of_the_url(self, text: str) -> str:
        return text.replace(str(self._root), self._store.url)


def _is_plain(file: str) -> bool:
    """Whether a source may read the file at this path: it is not hidden, not junk, and not outside its folder."""
    return all(part and not is_junk(part) for part in file.split("/"))
