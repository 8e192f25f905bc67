"""Index WebDataset tars made by others: the shards stay as they are, and what training needs is written beside them.

Input: a directory with *.tar. Output, there: .idx files as DALI's wds2idx writes them, sample tables, source names and
dataset.json (see `format`), whose `made` says {"indexed": true, "image_extensions": […], …}. Samples, labels and splits
are told as `sources.webdataset` tells them. An ordinary JPEG is checked by its header, and `verify --decode` checks the
rest; what DALI may decode otherwise than Pillow is decoded by both (`trainable`).
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import ExitStack, nullcontext
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np

from shard_tools.format import (
    DAMAGED,
    INFO_FILE,
    SAMPLE_DTYPE,
    ClassInfo,
    ShardInfo,
    ShardSet,
    atomic_write,
    escape,
    inside,
    tsv_line,
    write_info,
    write_split,
)
from shard_tools.scan import Scanned, scan_shard
from shard_tools.sources.imagenet import imagenet_names
from shard_tools.sources.naming import numbered_key
from shard_tools.sources.webdataset import check_label, names_beside, tars
from shard_tools.workers import LOST, num_cpus, process_pool

REJECTED_FILE = "rejected.tsv"


class Findings(ValueError):
    """Some images cannot be used and `on_bad` is "fail"."""


def index(
    directory: Path,
    *,
    on_bad: str = "fail",
    workers: int | None = None,
    executor: Executor | None = None,
    progress: Callable[[int, int], None] = lambda done, shards: None,
) -> ShardSet:
    """Write what training needs beside the tars in `directory`. Doing it again gives the same files.

    `on_bad`: "fail", or "skip" to leave unusable images out of the tables and list them in rejected.tsv. `executor`
    scans the shards; without one, `workers` processes do. `progress` is told shards done and shards in all.

    Raises:
        Findings: `on_bad` is "fail" and there are some. ValueError: these are no shards, or cannot be read or written.
    """
    if on_bad not in ("fail", "skip"):
        raise ValueError(f'on_bad is {on_bad!r}; it can be "fail" or "skip"')
    directory = Path(directory)
    try:
        found = tars(directory)
    except OSError as error:
        raise ValueError(f"{directory}: cannot be read ({error.strerror})") from None
    splits = {split: [path for path in paths if path.parent == directory] for split, paths in found.items()}
    paths = [path for split in splits.values() for path in split]
    if not paths:
        raise ValueError(f"{directory}: has no .tar files; give a directory of WebDataset shards")
    if (directory / INFO_FILE).exists() and not _is_indexed(directory):
        raise ValueError(
            f"{directory}: is a packed dataset, which has its index; check it with: python -m shard_tools verify"
        )
    workers = min(workers or num_cpus(), len(paths))
    try:
        with nullcontext(executor) if executor else process_pool(workers) as pool:
            return _write(directory, splits, pool.map(scan_shard, paths), on_bad, progress)
    except LOST:
        raise ValueError(
            f"{directory}: a worker process died (out of memory?); try again with fewer --workers"
        ) from None
    except OSError as error:
        raise ValueError(
            f"{error.filename or directory}: {error.strerror}; nothing was changed in the shards"
        ) from None


def _is_indexed(directory: Path) -> bool:
    try:
        return bool(json.loads(inside(directory, INFO_FILE).read_bytes())["made"]["indexed"])
    except DAMAGED:
        return False


def _write(
    directory: Path,
    splits: dict[str, list[Path]],
    scans: Iterator[Scanned],
    on_bad: str,
    progress: Callable[[int, int], None],
) -> ShardSet:
    """Merge the scans into tables, then write dataset.json."""
    names = names_beside(directory)
    kinds: Counter[str] = Counter()
    extensions: set[str] = set()
    bad: list[tuple[str, str]] = []
    ignored = unturned = 0
    label_kinds: dict[type, str] = {}
    texts: dict[str, int] = {}  # class → number as met
    tables: dict[str, np.ndarray] = {}
    infos: dict[str, list[ShardInfo]] = {}
    done, shards = 0, sum(map(len, splits.values()))
    with ExitStack() as stack:
        sources = {split: stack.enter_context(TemporaryFile("w+b")) for split in splits}
        for split, paths in splits.items():
            parts = [np.empty(0, SAMPLE_DTYPE)]
            for _ in paths:
                scanned = next(scans)
                rows = scanned.rows
                for text in scanned.texts:
                    check_label(text, label_kinds, f"{directory}/{scanned.names[0]}", [])
                    texts.setdefault(text, len(texts))
                if scanned.numbered:
                    check_label(int(rows["label"].max()), label_kinds, f"{directory}/{scanned.numbered}", list(names))
                elif len(rows):
                    rows["label"] = np.array([texts[text] for text in scanned.texts])[rows["label"]]
                rows["shard"] = len(infos.setdefault(split, []))
                infos[split].append(scanned.info)
                parts.append(rows)
                kinds += scanned.kinds
                unturned += scanned.unturned
                extensions |= scanned.extensions
                bad += scanned.bad
                ignored += len(scanned.ignored)
                sources[split].writelines(
                    f"{escape(name)}\n".encode("utf-8", "surrogateescape") for name in scanned.names
                )
                done += 1
                progress(done, shards)
            tables[split] = np.concatenate(parts)
        _reject(directory, bad, on_bad)
        classes = _classes(tables, texts, names)
        files: dict[str, str] = {}
        for split, table in tables.items():
            if not len(table):
                raise ValueError(f"{directory}: none of the images of {split} can be used (see {REJECTED_FILE})")
            sources[split].seek(0)
            files |= write_split(directory, split, table, sources[split])
    made = {
        "indexed": True,
        "image_extensions": sorted(extensions),
        "kinds": dict(sorted(kinds.items())),
        "unturned": unturned,
        "rejected": len(bad),
        "ignored": ignored,
    }
    write_info(directory, classes, infos, made, files)
    return ShardSet.open(directory)


def _classes(tables: dict[str, np.ndarray], texts: dict[str, int], names: dict[str, str]) -> list[ClassInfo]:
    """The classes by label. Labels that are text become positions in the sorted texts; numbers stay as they are."""
    if texts:
        keys = sorted(texts)
        position = np.empty(len(keys), np.int32)
        position[[texts[key] for key in keys]] = np.arange(len(keys))
        for table in tables.values():
            table["label"] = position[table["label"]]
        return [ClassInfo(key, imagenet_names(keys).get(key, key)) for key in keys]
    if names:
        return [ClassInfo(key, name) for key, name in names.items()]
    count = 1 + max((int(table["label"].max()) for table in tables.values() if len(table)), default=-1)
    return [ClassInfo(numbered_key(label), str(label)) for label in range(count)]


def _reject(directory: Path, bad: list[tuple[str, str]], on_bad: str) -> None:
    """List the bad images, and stop if they are not to be skipped."""
    path = directory / REJECTED_FILE
    if not bad:
        path.unlink(missing_ok=True)
        return
    with atomic_write(path) as stream:
        stream.writelines(tsv_line(*cells) for cells in [("name", "reason"), *bad])
    if on_bad == "fail":
        lines = "\n  ".join(f"{escape(name)}: {reason}" for name, reason in bad[:10])
        more = f"\n  … {len(bad) - 10} more in {path}" if len(bad) > 10 else ""
        raise Findings(
            f"{len(bad)} image(s) cannot be used:\n  {lines}{more}\n"
            "leave them out of the tables with --on-bad skip, or pack the directory, which converts what it can"
        )
