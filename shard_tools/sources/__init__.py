"""Where images come from: the registry of source kinds, and `open_source`, which finds the right one for a path.

To add a kind: a module here with `recognise(path)` and `open(path, options)`, and a line in `SOURCES`.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shard_tools.sources import ilsvrc, kaggle, parquet, tiny_imagenet, webdataset
from shard_tools.sources.base import Source


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """What the user may say about a source; "" lets the source find out. Columns are names, or numbers from 1."""

    image_column: str = ""  # csv: of paths; parquet: of the images
    label_column: str = ""
    split_column: str = ""  # csv only


@dataclass(frozen=True)
class SourceKind:
    """How one kind of source is told apart and opened.

    recognise: cheap (names, not contents), never raises ValueError. open: raises ValueError in one line with file,
    value and remedy. layout: what it looks like, for messages: "a directory with train/CLASS/IMAGE …".
    """

    recognise: Callable[[Path], bool]
    open: Callable[[Path, SourceOptions], Source]
    layout: str


SOURCES: dict[str, SourceKind] = {  # `auto` takes the first that recognises the path: specific ones first
    "ilsvrc": SourceKind(ilsvrc.recognise, lambda path, options: ilsvrc.Ilsvrc(path), ilsvrc.LAYOUT),
    "kaggle": SourceKind(kaggle.recognise, lambda path, options: kaggle.Kaggle(path), kaggle.LAYOUT),
    "tiny-imagenet": SourceKind(
        tiny_imagenet.recognise, lambda path, options: tiny_imagenet.TinyImageNet(path), tiny_imagenet.LAYOUT
    ),
    "parquet": SourceKind(
        parquet.recognise,
        lambda path, options: parquet.Parquet(path, options.image_column, options.label_column),
        parquet.LAYOUT,
    ),
    "webdataset": SourceKind(
        webdataset.recognise, lambda path, options: webdataset.WebDataset(path), webdataset.LAYOUT
    ),
}


def open_source(path: str | os.PathLike[str], format: str = "auto", options: SourceOptions | None = None) -> Source:
    """The source at `path`, of the kind `format` or of the first kind that recognises it.

    Raises:
        ValueError: there is nothing at `path`, no kind recognises it, or it contradicts itself.
    """
    path = Path(path)
    if format not in ("auto", *SOURCES):
        raise ValueError(f"format {format!r} is not one of auto, {', '.join(SOURCES)}")
    if not path.exists():
        raise ValueError(f"{path}: no such file or directory; give {_layouts()}")
    try:
        for kind in SOURCES.values() if format == "auto" else [SOURCES[format]]:
            if format != "auto" or kind.recognise(path):
                return kind.open(path, options or SourceOptions())
    except OSError as error:
        raise ValueError(f"{error.filename or path}: cannot be read ({error.strerror})") from None
    raise ValueError(f"{path}: no known layout; give {_layouts()}")


def _layouts() -> str:
    return "; ".join(f"{name}: {kind.layout}" for name, kind in SOURCES.items())
