"""Find the Parquet files of a dataset, their splits, and the configuration that they belong to.

    SPLIT-00000-of-000NN[-HASH].parquet, SPLIT.parquet      in the directory, in data/, or in CONFIG/
    SPLIT/*.parquet                                         in the directory, in data/, or in CONFIG/

A word of `SPLIT_WORDS` in a folder or file name determines the split; files without one belong to train.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from penstock.shard_tools.sources.links import is_dir
from penstock.shard_tools.sources.naming import SPLIT_WORDS, few_of, is_image, split_of, split_rank

LAYOUT = (
    "a .parquet file, or a directory with SPLIT-00000-of-000NN.parquet or SPLIT/*.parquet (directly, in data/, or in "
    "one other directory), with the columns image and label"
)


def recognise(path: Path) -> bool:
    if path.is_file():
        return _is_parquet(path.name)
    return path.is_dir() and any(True for _ in _all_files(path))


def find_files(source: Path) -> tuple[Path, dict[str, list[Path]]]:
    """The folder that file names are relative to, and split → its files, sorted by name; train, val, test.

    Raises:
        ValueError: there are no files, a numbered part is missing, or there are several configurations.
    """
    if not source.is_dir():
        return source.parent, {split_of(source.stem): [source]}
    configs: dict[str, dict[str, list[Path]]] = {}
    for path in sorted(_all_files(source)):
        config, split = _place(path.relative_to(source))
        configs.setdefault(config, {}).setdefault(split, []).append(path)
    if not configs:
        raise ValueError(f"{source}: has no .parquet files; give {LAYOUT}")
    if len(configs) > 1:
        raise ValueError(
            f"{source}: has Parquet files of {len(configs)} configurations ({few_of(sorted(configs))}); give one of "
            "these directories, or one file"
        )
    config, splits = configs.popitem()
    _check_parts([path for paths in splits.values() for path in paths])
    return source / config, dict(sorted(splits.items(), key=lambda item: split_rank(item[0])))


def part_of(path: Path) -> tuple[str, int, int] | None:
    """(name, number, count) of a numbered file, such as train-00003-of-00010-abc.parquet; None for any other."""
    match = re.search(r"^(.*?)-(\d+)-of-(\d+)", path.stem)
    return (match[1], int(match[2]), int(match[3])) if match else None


def _all_files(root: Path) -> Iterator[Path]:
    """Yield the files in `root`, in its folders, and in split folders inside those. Lists each folder once.

    Folders with images are skipped unless they have a usual name, because a class may have a table beside its images.
    A file beside a tar of the same name is skipped: img2dataset writes such files about its tars.
    """
    files, folders = _look(root)
    yield from (root / name for name in _tables(files))
    for folder in folders:
        files, inner = _look(root / folder)
        if folder == "data" or _split_word(folder) or not any(map(is_image, files)):
            yield from (root / folder / name for name in _tables(files))
        for split in filter(_split_word, inner):
            yield from (root / folder / split / name for name in _tables(_look(root / folder / split)[0]))


def _look(folder: Path) -> tuple[list[str], list[str]]:
    """The names of files and of directories in a folder, without hidden ones."""
    files: list[str] = []
    folders: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith("."):
                (folders if is_dir(entry) else files).append(entry.name)
    return files, folders


def _tables(files: list[str]) -> list[str]:
    tars = {Path(name).stem for name in files if name.endswith(".tar")}
    return [name for name in files if _is_parquet(name) and Path(name).stem not in tars]


def _is_parquet(name: str) -> bool:
    return name.lower().endswith(".parquet")


def _split_word(name: str) -> bool:
    return any(word in SPLIT_WORDS for word in re.findall("[a-z]+", name.lower()))


def _place(path: Path) -> tuple[str, str]:
    """(folder of the configuration, split) of a file, from its path relative to the source."""
    folders = list(path.parent.parts)
    of_split = folders.pop() if folders and _split_word(folders[-1]) else ""
    named = path.stem if _split_word(path.stem) else of_split
    return "/".join(folders) or ".", split_of(named)


def _check_parts(paths: list[Path]) -> None:
    """Raises ValueError if a numbered file is missing."""
    parts: dict[tuple[Path, str, int], set[int]] = {}
    for path in paths:
        if part := part_of(path):
            parts.setdefault((path.parent, part[0], part[2]), set()).add(part[1])
    for (folder, name, count), there in parts.items():
        if missing := sorted(set(range(count)) - there):
            raise ValueError(
                f"{folder}: {len(missing)} of the {count} files of {name} are missing, "
                f"first {name}-{missing[0]:05d}-of-{count:05d}; add them"
            )
