"""Recognise paths that are not a source, or only a part of one, and suggest in one line what to give instead."""

import os
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from penstock.shard_tools.sources import ilsvrc, kaggle, parquet, tiny_imagenet, webdataset
from penstock.shard_tools.sources.findlayout import find_layout
from penstock.shard_tools.sources.layout import holds_images, visible
from penstock.shard_tools.sources.links import is_dir
from penstock.shard_tools.sources.naming import few_of

PUBLISHED = (kaggle, ilsvrc, tiny_imagenet)  # layouts that file names alone identify
ARCHIVES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.lz4", ".zip", ".7z", ".rar")
SAVED, SAVED_SPLITS = "state.json", "dataset_dict.json"  # datasets.save_to_disk writes them beside its .arrow files
FILES = {
    ".tfrecord": "TFRecord", ".tfrecords": "TFRecord", ".beton": "FFCV", ".rec": "MXNet", ".mdb": "LMDB",
    ".h5": "HDF5", ".hdf5": "HDF5", ".npz": "NumPy", ".npy": "NumPy",
}  # fmt: skip
LOOKED_AT = 1000  # number of directory entries to examine


def instead(path: Path) -> str:
    """What to give instead of `path`, if no other kind of source recognises it; "" if it may be a directory tree."""
    if path.is_file():
        return _of_files(path, [path])
    if part := _part_of_kaggle(path):
        return part
    dirs = [path / name for name, entry in visible(path).items() if is_dir(entry)]
    for inner in islice(dirs, LOOKED_AT):
        if any(kind.recognise(inner) for kind in PUBLISHED):
            return f"{path}: the dataset is in a subdirectory; give {inner}"
    inner, alone = path, dirs
    while len(alone) == 1:
        inner = alone[0]
        containers = () if holds_images(inner) else (parquet, webdataset)  # a class may contain a table of its images
        if any(kind.recognise(inner) for kind in (*PUBLISHED, *containers)):
            return f"{path}: the dataset is in a subdirectory; give {inner}"
        alone = [inner / name for name, entry in visible(inner).items() if is_dir(entry)]
    if holds_images(path):
        return ""
    files = [entry for folder in (path, *dirs[:LOOKED_AT]) for entry in islice(sorted(folder.iterdir()), LOOKED_AT)]
    return _of_files(path, files)


def is_tree(path: Path) -> bool:
    """Whether it can be read as a directory tree of several classes."""
    if not path.is_dir():
        return False
    try:
        layout = find_layout(path)
    except ValueError:
        return False
    return len(layout.class_dirs(path, layout.splits[0])) > 1


def _part_of_kaggle(path: Path) -> str:
    here = Path(os.path.abspath(path))  # without resolving links, which may lead out of the layout
    for root in here.parents[:4]:
        images = root / kaggle.IMAGES
        if kaggle.is_sorted(root):
            continue
        if here in (images, *images.parents, images / "val", images / "test") and images.is_dir():
            if missing := [name for name in (kaggle.SOLUTION, kaggle.MAPPING) if not (root / name).is_file()]:
                return (
                    f"{path}: is a part of Kaggle's ImageNet; put {' and '.join(missing)} into {root} and give {root}"
                )
            return (
                f"{path}: is a part of Kaggle's ImageNet; give {root} ({kaggle.SOLUTION} there has the labels of val)"
            )
    return ""


def _of_files(path: Path, files: Iterable[Path]) -> str:
    """The message if the images are in files of an unsupported kind; "" for others."""
    names = [str(file.relative_to(path)) if file != path else file.name for file in files if file.is_file()]
    kinds = {name: kind for name in names for ending, kind in FILES.items() if name.lower().endswith(ending)}
    archives = [name for name in names if name.lower().endswith(ARCHIVES)]
    arrow = [name for name in names if name.lower().endswith(".arrow")]
    where = path.parent if path.is_file() else path
    if arrow or (where / SAVED_SPLITS).is_file():
        saved = (where / SAVED).is_file() or (where / SAVED_SPLITS).is_file()
        read = f"load_from_disk({str(where)!r})" if saved else f"Dataset.from_file({str(where / arrow[0])!r})"
        write = "d.to_parquet('DIR/train.parquet')"
        if (where / SAVED_SPLITS).is_file():
            write = "for split in d: d[split].to_parquet(f'DIR/{split}.parquet')"
        return (
            f"{path}: Arrow files, as datasets.save_to_disk writes them, are not supported; write Parquet files in "
            f"Python, d = datasets.{read} and then {write}, and give DIR"
        )
    if archives:
        return (
            f"{path}: compressed archives ({few_of(archives)}) cannot be read in place; decompress WebDataset shards "
            "(gunzip), unpack others (tar -xf, unzip), and give the directory"
        )
    if kinds:
        kind = next(iter(kinds.values()))
        return (
            f"{path}: {kind} files ({few_of(list(kinds))}) are not supported; give the original images, or convert "
            "the files to WebDataset tars or Parquet"
        )
    if path.suffix == ".tar":
        return f"{path}: is a single tar; if it is a WebDataset shard, give its directory {path.parent}, or unpack it"
    return ""
