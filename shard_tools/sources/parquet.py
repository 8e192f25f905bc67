"""Hugging Face's image-classification files: SPLIT-00000-of-000NN….parquet in a directory, or in its data/.

A row has an image, `{bytes, path}` or bytes alone, and a label: a number, whose name the schema's metadata gives, or
text. Rows of a Parquet file cannot be fetched one by one, and the shuffle needs that, so each file's image bytes are
first copied, one after another, into a file of the work directory: `STEM.images`, with `STEM.sizes` (int64 a row) when
it is whole, so that a killed run goes on with the next file. A row whose bytes are null names a file by its path.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from shard_tools.format import atomic_write
from shard_tools.sources.base import Place, Source, SourceImage
from shard_tools.sources.naming import Ignored, numbered_classes, numbered_key, split_of, split_rank

LAYOUT = "a directory with SPLIT-00000-of-000NN.parquet files (or in data/), columns image and label"
BATCH_ROWS = 64  # rows in memory at once, besides what pyarrow keeps of a row group
NO_BYTES = -1


def recognise(path: Path) -> bool:
    return any(any(folder.glob("*.parquet")) for folder in (path, path / "data"))


def _pyarrow() -> Any:
    try:
        import pyarrow  # type: ignore[import-untyped]
        import pyarrow.parquet  # type: ignore[import-untyped]
    except ImportError:
        raise ValueError(
            "reading Parquet needs pyarrow, which is not installed; install the extra: pip install '.[parquet]'"
        ) from None
    return pyarrow


@dataclass
class Parquet(Source):
    """The `Source`. Column names "" are found in the schema."""

    root: Path
    image_column: str = ""
    label_column: str = ""
    format: str = "parquet"
    explained: str = field(init=False)
    _classes: dict[str, str] = field(default_factory=dict)
    _ignored: Ignored = field(default_factory=Ignored)

    def __post_init__(self) -> None:
        _pyarrow()
        size = sum(path.stat().st_size for paths in self._files.values() for path in paths)
        splits = ", ".join(f"{split} ({len(paths)})" for split, paths in self._files.items())
        self.explained = (
            f"Hugging Face Parquet files: {splits}; their images are copied into the work directory first, "
            f"about {size / 1e9:.1f} GB, until packing is done"
        )

    @cached_property
    def _files(self) -> dict[str, list[Path]]:
        """Split → its files by name. A set with a part missing is an error."""
        folder = self.root if any(self.root.glob("*.parquet")) else self.root / "data"
        splits: dict[str, list[Path]] = {}
        parts: dict[tuple[str, int], set[int]] = {}
        for path in sorted(folder.glob("*.parquet")):
            splits.setdefault(split_of(path.stem), []).append(path)
            if match := re.search(r"^(.*?)-(\d+)-of-(\d+)", path.stem):
                parts.setdefault((match[1], int(match[3])), set()).add(int(match[2]))
        if not splits:
            raise ValueError(f"{self.root}: has no .parquet files; give {LAYOUT}")
        for (name, count), there in parts.items():
            if missing := sorted(set(range(count)) - there):
                raise ValueError(
                    f"{folder}: {len(missing)} of the {count} files of {name} are missing, "
                    f"first {name}-{missing[0]:05d}-of-{count:05d}; get them"
                )
        return dict(sorted(splits.items(), key=lambda item: split_rank(item[0])))

    def images(self, work: Path) -> Iterator[SourceImage]:
        """By split, file and row; copies the images of a file when it comes to it."""
        self._ignored = Ignored()
        for split, paths in self._files.items():
            for path in paths:
                try:
                    yield from self._file(split, path, work)
                except (_pyarrow().ArrowException, OSError) as error:
                    if getattr(error, "errno", None) is not None:
                        raise
                    line = str(error).splitlines()[0]
                    raise ValueError(f"{path}: not a whole Parquet file ({line}); get it again") from None

    def class_names(self) -> dict[str, str]:
        return self._classes

    def ignored(self) -> list[str]:
        return self._ignored

    def _file(self, split: str, path: Path, work: Path) -> Iterator[SourceImage]:
        # pre_buffer, the default, keeps what it has read of a column: 488 MB of a file of 500 MB, instead of 20
        with _pyarrow().parquet.ParquetFile(path, pre_buffer=False) as file:
            image, label, names = self._columns(file.schema_arrow, path)
            nested = hasattr(file.schema_arrow.field(image).type, "fields")
            spool = self._spool(file, path, f"{image}.bytes" if nested else image, work)
            sizes = (
                np.memmap(spool.with_suffix(".sizes"), np.int64) if file.metadata.num_rows else np.empty(0, np.int64)
            )
            if len(sizes) != file.metadata.num_rows:
                raise ValueError(
                    f"{spool}: has {len(sizes)} rows, {path} {file.metadata.num_rows}; remove {spool.parent}"
                )
            keys = list(numbered_classes(names))
            self._classes |= numbered_classes(names)
            columns = [label, f"{image}.path"] if nested else [label]
            row, offset = 0, 0
            for batch in file.iter_batches(batch_size=1 << 12, columns=columns):
                labels = batch.column(label).to_pylist()
                paths = batch.column(image).field("path").to_pylist() if nested else [None] * len(labels)
                for value, inner in zip(labels, paths, strict=True):
                    size = int(sizes[row])
                    name = f"{path.name}/{row:07d}" + (f"/{inner}" if inner else "")
                    row += 1
                    if value is None or value == -1:
                        self._ignored.append(f"{name} (no label)")
                    else:
                        place = Place("stored", str(spool), offset, size)
                        if size == NO_BYTES:
                            place, size = self._outside(path, name, inner)
                        yield SourceImage(split, _key(value, keys, path, name), name, size, place)
                    offset += max(0, int(sizes[row - 1]))

    def _outside(self, path: Path, name: str, inner: str | None) -> tuple[Place, int]:
        """The place of an image that is not in the file, and its bytes."""
        outside = path.parent / (inner or "")
        if not outside.is_file():
            raise ValueError(f"{path}: row {name} has no bytes, and {outside} is no file; embed the images")
        return Place("file", str(outside)), outside.stat().st_size

    def _spool(self, file: Any, path: Path, column: str, work: Path) -> Path:
        """Copy the image bytes of one Parquet file, unless that is done; returns the copy."""
        stat = path.stat()
        folder = work / "parquet"  # a changed file gets another name, and its images are copied anew
        spool = folder / f"{path.stem}-{stat.st_size}-{stat.st_mtime_ns}.images"
        if spool.with_suffix(".sizes").is_file():
            return spool
        sizes: list[np.ndarray] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for left_by_a_killed_run in folder.glob(f".{spool.name}.*.tmp"):
                left_by_a_killed_run.unlink()
            with atomic_write(spool) as stream:
                for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=[column]):
                    rows = batch.column(0).to_pylist()
                    if column.endswith(".bytes"):
                        rows = [row and row["bytes"] for row in rows]
                    sizes.append(np.array([NO_BYTES if data is None else len(data) for data in rows], np.int64))
                    for data in rows:
                        stream.write(data or b"")
            with atomic_write(spool.with_suffix(".sizes")) as stream:
                stream.write(np.concatenate(sizes or [np.empty(0, np.int64)]).tobytes())
        except OSError as error:
            if error.errno is None:  # pyarrow's, about what it reads
                raise
            raise ValueError(
                f"{folder}: the images of {path.name} cannot be copied there ({error.strerror}); "
                "make room and run the same command again"
            ) from None
        return spool

    def _columns(self, schema: Any, path: Path) -> tuple[str, str, list[str]]:
        """Names of the image and the label column, and of the classes by label (none if unknown)."""
        try:
            features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
            kinds = {name: feature.get("_type") for name, feature in features.items() if isinstance(feature, dict)}
        except (ValueError, KeyError, TypeError, AttributeError):
            features, kinds = {}, {}
        chosen = []
        for given, kind, usual, option in (
            (self.image_column, "Image", ("image", "img"), "image-column"),
            (self.label_column, "ClassLabel", ("label", "labels"), "label-column"),
        ):
            of_kind = [name for name in schema.names if kinds.get(name) == kind]
            likely = [given] if given else of_kind if len(of_kind) == 1 else [n for n in usual if n in schema.names]
            if not likely or likely[0] not in schema.names:
                raise ValueError(
                    f"{path}: which column is the {kind}? it has {', '.join(schema.names)}; name one with --{option}"
                )
            chosen.append(likely[0])
        names = features.get(chosen[1], {}).get("names", []) if kinds.get(chosen[1]) == "ClassLabel" else []
        if isinstance(names, dict):  # older files: {"0": name}
            names = [names[number] for number in sorted(names, key=int)]
        return chosen[0], chosen[1], [str(name) for name in names or []]


def _key(value: object, keys: list[str], path: Path, name: str) -> str:
    if isinstance(value, str) and value:
        return value
    if not isinstance(value, int) or isinstance(value, bool) or value < 0 or (keys and value >= len(keys)):
        known = f"one of the {len(keys)} classes that its schema names" if keys else "a class number or name"
        raise ValueError(f"{path}: row {name} has label {value!r}, which is not {known}; correct the file")
    return keys[value] if keys else numbered_key(value)
