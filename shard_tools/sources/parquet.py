"""Read Hugging Face's image-classification files, and other Parquet tables with one image per row.

`parquet_layout` finds the files, `parquet_columns` reads the columns, `parquet_classes` interprets the labels. The
shuffle needs random access to images, but Parquet does not allow access to single rows. So the image bytes of each file
are first copied to a file in the work directory, `STEM-….images`. `STEM-….sizes` (one int64 per row) is written when
the copy is complete, so a killed run resumes with the next file. A row without bytes refers to a file by its path:
absolute, relative to the Parquet file, or relative to the source. A split without any label is skipped, unless it is
the first.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray

from penstock.shard_tools.sources.base import Place, Source, SourceImage, Unusable
from penstock.shard_tools.sources.labels import without_label
from penstock.shard_tools.sources.locate import TRIED, Found, Locator
from penstock.shard_tools.sources.parquet_classes import ClassMap, FileLabels, map_classes
from penstock.shard_tools.sources.parquet_columns import (
    Columns,
    Label,
    choose_columns,
    image_bytes,
    labels,
    no_label,
    pyarrow,
    texts,
)
from penstock.shard_tools.sources.parquet_layout import LAYOUT as LAYOUT
from penstock.shard_tools.sources.parquet_layout import find_files, part_of
from penstock.shard_tools.sources.parquet_layout import recognise as recognise
from penstock.shards.format import atomic_write

if TYPE_CHECKING:
    from pyarrow import Array, RecordBatch  # type: ignore[import-untyped]
    from pyarrow.parquet import ParquetFile  # type: ignore[import-untyped]

BATCH_ROWS = 64  # rows in memory at once, in addition to what pyarrow keeps of a row group
NO_BYTES = -1


@dataclass(frozen=True)
class _File:
    """One file, as the pass over the labels found it. name: its relative path, for messages."""

    split: str
    path: Path
    name: str
    num_rows: int
    columns: Columns
    labels: FileLabels


@dataclass
class Parquet(Source):
    """The `Source`. A column name "" is detected from the schema. opened: opens a file that is not on this disk."""

    root: Path
    image_column: str = ""
    label_column: str = ""
    opened: Callable[[Path], Path | BinaryIO] = lambda path: path
    format: str = "parquet"
    explained: str = field(init=False)
    _classes: ClassMap = field(default_factory=lambda: ClassMap([], {}))
    _notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        pyarrow()
        splits = self._files[1]
        size = sum(path.stat().st_size for paths in splits.values() for path in paths)
        named = ", ".join(f"{split} ({len(paths)})" for split, paths in splits.items())
        self.explained = (
            f"Parquet files: {named}; the images inside them are copied to the work directory first and kept until "
            f"packing is done (about {size / 1e9:.1f} GB)"
        )

    @cached_property
    def _files(self) -> tuple[Path, dict[str, list[Path]]]:
        return find_files(self.root)

    def images(self, work: Path) -> Iterator[SourceImage | Unusable]:
        """Yield images by split, file and row. Copies the image bytes of each file just before its first image."""
        self._notes = []
        files = self._survey()
        self._classes = map_classes([file.labels for file in files])
        for file, keys in zip(files, self._classes.keys, strict=True):
            with self._reading(file.path) as reader:
                yield from self._rows(file, keys, reader, work)

    def class_names(self) -> dict[str, str]:
        return self._classes.names

    def fixed_classes(self) -> list[str] | None:
        return self._classes.fixed_classes()

    def notes(self) -> list[str]:
        return self._notes + self._classes.notes

    def _survey(self) -> list[_File]:
        """The files with their labels, without splits that have no labels. Reads only the label columns."""
        folder, splits = self._files
        kept: list[_File] = []
        for split, paths in splits.items():
            files: list[_File] = []
            for path in paths:
                with self._reading(path) as reader:
                    known = (kept + files)[0].columns if kept + files else None
                    files.append(self._look_at(split, path, path.relative_to(folder).as_posix(), reader, known))
            num_rows = sum(file.num_rows for file in files)
            if not num_rows:
                self._notes.append(f"{split}: skipped, because it has no rows")
                continue
            if kept and not any(file.labels.is_labelled() for file in files):
                self._notes.append(f"{split}: skipped, because none of its {num_rows:,} rows has a label")
                continue
            for file in files:
                if not file.columns.label:
                    with self._reading(file.path) as reader:
                        raise ValueError(no_label(reader.schema_arrow, self.label_column))
            kept += files
        if any(file.name.startswith("partial-") for file in kept):  # Hugging Face converts only a part of a large set
            self._notes.append(
                f"{self.root}: has only a part of the dataset (partial-…); download the original files for all of it"
            )
        part = part_of(self.root) if self.root.is_file() else None
        if part is not None and part[2] > 1:
            self._notes.append(f"{self.root.name} is one of {part[2]} files; give the directory to read all of them")
        return kept

    def _look_at(self, split: str, path: Path, name: str, reader: "ParquetFile", known: Columns | None) -> _File:
        """Read the columns and labels of one file. known: the columns of the first file, used again if they exist."""
        first_rows: dict[Label | None, int] = {}
        schema = reader.schema_arrow
        image_column = self.image_column or (known.image if known and known.image in schema.names else "")
        label_column = self.label_column or (known.label if known and known.label in schema.names else "")
        columns = choose_columns(schema, image_column, label_column)
        if columns.label:
            batches = reader.iter_batches(batch_size=1 << 16, columns=[columns.label])
            for row, label in enumerate(label for batch in batches for label in labels(batch.column(columns.label))):
                first_rows.setdefault(label, row)
        found = FileLabels(str(path), split, columns.names, first_rows)
        return _File(split, path, name, reader.metadata.num_rows, columns, found)

    def _rows(
        self, file: _File, keys: dict[Label | None, str | None], reader: "ParquetFile", work: Path
    ) -> Iterator[SourceImage | Unusable]:
        columns = file.columns
        spool, sizes = Path(), np.full(file.num_rows, NO_BYTES)
        if columns.image_bytes:
            spool = self._spool(reader, file, work)
            sizes = np.memmap(spool.with_suffix(".sizes"), np.int64) if file.num_rows else sizes
            if len(sizes) != file.num_rows:
                raise ValueError(
                    f"{spool}: has {len(sizes)} rows, but {file.path} has {file.num_rows}; remove {spool.parent}"
                )
        files = Locator([file.path.parent, *([self.root] if self.root.is_dir() else [])])
        rows = _labels_and_paths(reader, columns)
        first_rows = list(islice(rows, TRIED))
        files.look_around([inner for size, (_, inner) in zip(sizes, first_rows, strict=False) if inner and size < 0])
        offset = 0
        for row, (label, inner) in enumerate(chain(first_rows, rows)):
            key, size, name = keys[label], int(sizes[row]), f"{file.name}/{row:07d}" + (f"/{inner}" if inner else "")
            found = files.find(inner) if size == NO_BYTES and inner else "has no image (null)"
            if key is None:
                yield Unusable(file.split, name, without_label(label))
            elif size != NO_BYTES or isinstance(found, Found):
                place = Place("stored", str(spool), offset, size)
                if isinstance(found, Found):
                    place, size = Place("file", found.file), found.size_bytes
                yield SourceImage(file.split, key, name, size, place)
            else:
                yield Unusable(file.split, name, f"has no bytes and no usable path ({found})" if inner else found, key)
            offset += max(0, int(sizes[row]))

    @contextmanager
    def _reading(self, path: Path) -> Iterator["ParquetFile"]:
        """Open a file with pyarrow. Errors about the file, also inside the `with` block, become one-line messages."""
        arrow = pyarrow()
        try:
            # pre_buffer=True, the default, keeps all data read from a column: 488 MB for a 500 MB file, instead of 20
            with arrow.parquet.ParquetFile(self.opened(path), pre_buffer=False) as reader:
                yield reader
        except (arrow.ArrowException, OSError) as error:
            if getattr(error, "errno", None) is not None:
                raise
            why = str(error).partition("\n")[0]
            raise ValueError(f"{path}: is damaged or not a Parquet file ({why}); get a new copy") from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def _spool(self, reader: "ParquetFile", file: _File, work: Path) -> Path:
        """Copy the image bytes of one Parquet file, unless the copy exists; returns the path of the copy."""
        path, column = file.path, file.columns.image_bytes
        folder = work / "parquet"  # the name below differs for a changed file or another column
        stat = path.stat()
        digest = hashlib.sha256(f"{path.absolute()}\0{column}\0{stat.st_size}\0{stat.st_mtime_ns}".encode()).hexdigest()
        spool = folder / f"{path.stem}-{digest[:16]}.images"
        if spool.with_suffix(".sizes").is_file():
            return spool
        sizes: list[NDArray[np.int64]] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for left_by_a_killed_run in folder.glob(f".{spool.name}.*.tmp"):
                left_by_a_killed_run.unlink()
            with atomic_write(spool) as stream:
                for batch in reader.iter_batches(batch_size=BATCH_ROWS, columns=[column]):
                    rows = image_bytes(_inner(batch, file.columns.image, column))
                    sizes.append(np.array([NO_BYTES if data is None else len(data) for data in rows], np.int64))
                    for data in rows:
                        stream.write(data or b"")
            with atomic_write(spool.with_suffix(".sizes")) as stream:
                stream.write(np.concatenate(sizes or [np.empty(0, np.int64)]).tobytes())
        except OSError as error:
            if error.errno is None:  # pyarrow's own error, about the file that it reads
                raise
            raise ValueError(
                f"cannot copy its images to {folder} ({error.strerror}); free some space and run the same command again"
            ) from None
        return spool


def _inner(batch: "RecordBatch", column: str, inner: str) -> "Array":
    """A column of a batch, or the field `inner` (`column.field`) of a struct column."""
    array = batch.column(column)
    return array if inner == column else pyarrow().compute.struct_field(array, inner.removeprefix(f"{column}."))


def _labels_and_paths(reader: "ParquetFile", columns: Columns) -> Iterator[tuple[Label | None, str | None]]:
    """(label, path) of every row."""
    wanted = [columns.label] + ([columns.image_path] if columns.image_path else [])
    for batch in reader.iter_batches(batch_size=1 << 12, columns=wanted):
        values = labels(batch.column(columns.label))
        if columns.image_path:
            yield from zip(values, texts(_inner(batch, columns.image, columns.image_path)), strict=True)
        else:
            yield from ((value, None) for value in values)
