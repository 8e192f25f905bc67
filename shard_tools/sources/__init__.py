"""The registry of source kinds, and `open_source`, which finds the right one for a path or URL.

To add a kind: a module here with `recognise(path)` and a `Source`, and a line in `SOURCES`.
"""

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

from penstock.shard_tools.option import Option
from penstock.shard_tools.sources import csv, ilsvrc, imagefolder, kaggle, parquet, tiny_imagenet, webdataset
from penstock.shard_tools.sources.base import Source
from penstock.shard_tools.sources.elsewhere import instead, is_tree
from penstock.shard_tools.sources.layout import LAYOUT as TREE
from penstock.shard_tools.sources.remote import RemoteSource
from penstock.shard_tools.sources.tarsamples import Fields
from penstock.shards.remote import is_url


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """What the user can specify about a source; "" means that the source detects it."""

    image_column: Annotated[str, Option("csv, parquet: Column with the paths or images (csv: name or number).")] = ""
    label_column: Annotated[str, Option("csv, parquet: Column with the classes.")] = ""
    split_column: Annotated[str, Option("csv: Column with the splits.")] = ""
    image_field: Annotated[
        str, Option("webdataset: Extension of the member with the image, e.g. input.jpg.", metavar="EXT")
    ] = ""
    label_field: Annotated[
        str,
        Option(
            "webdataset: Extension of the member with the label, e.g. output.cls, or json.KEY for a key in a .json.",
            metavar="EXT",
        ),
    ] = ""
    split_dirs: Annotated[
        str,
        Option(
            'imagefolder: Directories of the splits, e.g. "train=Training_Set,val=Val"; '
            '"none" if every directory is a class.',
            metavar="SPLIT=DIR,…",
        ),
    ] = ""


@dataclass(frozen=True)
class SourceKind:
    """How one kind of source is recognised and opened.

    recognise: a cheap test that looks at names, not contents. open: raises ValueError in one line with file, value and
        remedy. layout: a description for messages. options: the fields of `SourceOptions` that it supports.
    """

    recognise: Callable[[Path], bool]
    open: Callable[[Path, SourceOptions], Source]
    layout: str
    options: tuple[str, ...] = ()


SOURCES: dict[str, SourceKind] = {  # `auto` uses the first kind that recognises the path: specific kinds come first
    "ilsvrc": SourceKind(ilsvrc.recognise, lambda path, options: ilsvrc.Ilsvrc(path), ilsvrc.LAYOUT),
    "kaggle": SourceKind(kaggle.recognise, lambda path, options: kaggle.Kaggle(path), kaggle.LAYOUT),
    "tiny-imagenet": SourceKind(
        tiny_imagenet.recognise, lambda path, options: tiny_imagenet.TinyImageNet(path), tiny_imagenet.LAYOUT
    ),
    "parquet": SourceKind(
        parquet.recognise,
        lambda path, options: parquet.Parquet(path, options.image_column, options.label_column),
        parquet.LAYOUT,
        ("image_column", "label_column"),
    ),
    "webdataset": SourceKind(
        webdataset.recognise,
        lambda path, options: webdataset.WebDataset(path, Fields(options.image_field, options.label_field)),
        webdataset.LAYOUT,
        ("image_field", "label_field"),
    ),
    "csv": SourceKind(
        csv.recognise,
        lambda path, options: csv.Csv(path, options.image_column, options.label_column, options.split_column),
        csv.LAYOUT,
        ("image_column", "label_column", "split_column"),
    ),
    "imagefolder": SourceKind(
        imagefolder.recognise,
        lambda path, options: imagefolder.ImageFolder(path, options.split_dirs),
        TREE,
        ("split_dirs",),
    ),
}


def open_source(
    path: str | os.PathLike[str],
    format: str = "auto",
    options: SourceOptions = SourceOptions(),
) -> Source:
    """Open the source at `path` or at a URL, as the kind `format` or as the first kind that recognises it.

    Raises:
        ValueError: there is nothing at `path`, no kind recognises it, or it contradicts itself.
    """
    if is_url(path):
        return RemoteSource(str(path), partial(open_source, format=format, options=options))
    path = Path(path)
    if format not in ("auto", *SOURCES):
        raise ValueError(f"format {format!r} is not one of auto, {', '.join(SOURCES)}")
    try:
        if not path.exists():
            raise ValueError(f"{path}: no such file or directory")
        if format == "auto":
            format = next((name for name, kind in SOURCES.items() if kind.recognise(path)), "")
            if format in ("", "imagefolder") and not options.split_dirs and (line := instead(path)):
                raise ValueError(line)
            if format == "webdataset" and is_tree(path):
                raise ValueError(
                    f"{path}: has both tars and directories of images; choose which to read with "
                    "--format webdataset or --format imagefolder"
                )
            if not format:
                raise ValueError(f"{path}: not a supported kind of directory or file; give {_layouts()}")
        kind = SOURCES[format]
        for name, value in asdict(options).items():
            if value and name not in kind.options:
                option = f"--{name.replace('_', '-')}"
                raise ValueError(f"{path}: is read as {format}, which does not support {option} ({value!r}); omit it")
        return kind.open(path, options)
    except OSError as error:
        raise ValueError(f"{error.filename or path}: cannot be read ({error.strerror})") from None


def _layouts() -> str:
    return "; or ".join(f"{kind.layout} ({name})" for name, kind in SOURCES.items())
