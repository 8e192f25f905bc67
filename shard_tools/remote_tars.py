"""Index WebDataset tars at a URL one at a time: download each to OUT/.index, scan it there, and remove it.

The disk therefore never holds more tars than there are workers. Finished scans are kept in OUT/.index until all tars
are done. After a failure, or after bad images, `index` continues with the missing tars.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from penstock.shard_tools.scan import Scanned, scan_shard
from penstock.shard_tools.sources.classnames import NamesMet
from penstock.shard_tools.sources.naming import Ignored, split_of, split_rank
from penstock.shard_tools.sources.tarsamples import Fields, check_fields
from penstock.shard_tools.sources.webdataset import CLASS_FILES
from penstock.shards.format import INFO_FILE, SAMPLE_DTYPE, ShardInfo, atomic_write, index_path
from penstock.shards.remote import Store

WORK = ".index"  # in OUT


def tars_at(url: str, out: Path) -> dict[str, list[Path]]:
    """Split → the tars directly under a URL, with the paths that they would have in `out`.

    Also downloads a file of class names beside them.

    Raises:
        ValueError: there are no tars, or `out` contains other files.
    """
    if not (out / INFO_FILE).exists() and not (out / WORK).exists() and out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out}: not empty; choose a new or empty directory for the tables")
    store = _store(url)
    files = store.files()
    if INFO_FILE in files:
        raise ValueError(f"{url}: is a packed dataset and already has an index; train from it with --data {url}")
    names = sorted(name for name in files if name.endswith(".tar") and not name.startswith("."))
    if not names:
        raise ValueError(f"{url}: has no .tar files directly under it; give the URL of a folder of WebDataset shards")
    (out / WORK).mkdir(parents=True, exist_ok=True)
    for name in CLASS_FILES:
        if name in files:
            (out / name).write_bytes(store.read(name))
    splits: dict[str, list[Path]] = {}
    for name in names:
        splits.setdefault(split_of(name.removesuffix(".tar")), []).append(out / name)
    return dict(sorted(splits.items(), key=lambda item: split_rank(item[0])))


def scan_at(path: Path, url: str, fields: Fields, first: Path) -> Scanned:
    """Run `scan_shard` on a tar at the URL. `path` stands for the tar in the directory of the tables, where its .idx is
    written. first: the tar that must have the `fields`."""
    store, work = _store(url), path.parent / WORK
    size = store.size(path.name)
    asked = json.dumps([url, path.name, size, asdict(fields)])
    kept, fetched = work / f"{hashlib.sha256(asked.encode()).hexdigest()}.json", work / path.name
    if index_path(path).exists():
        with suppress(OSError, ValueError, KeyError, TypeError):
            return _from_json(json.loads(kept.read_bytes()))
    try:
        with open(fetched, "wb") as stream:
            store.copy(path.name, size, stream)
        if path == first:
            check_fields(fetched, fields)
        scanned = scan_shard(fetched, fields)
        index_path(fetched).replace(index_path(path))
    finally:
        fetched.unlink(missing_ok=True)
    with atomic_write(kept) as file:
        file.write(json.dumps(_to_json(scanned)).encode())
    return scanned


@cache
def _store(url: str) -> Store:
    """One store per process, because a store remembers its listings."""
    return Store(url)


def _to_json(scanned: Scanned) -> dict[str, Any]:
    """Convert a scan to JSON. Labels may be numbers, which cannot be JSON keys, so names become lists of pairs."""
    said = {key: list(names.items()) for key, names in scanned.class_names.said.items()}
    plain = {name: value for name, value in vars(scanned).items() if name not in ("rows", "class_names", "info")}
    return plain | {
        "info": asdict(scanned.info),
        "rows": scanned.rows.tolist(),
        "extensions": sorted(scanned.extensions),
        "class_names": [said, scanned.class_names.differing],
    }


def _from_json(found: dict[str, Any]) -> Scanned:
    kinds: dict[str, Callable[[Any], Any]] = {
        "info": lambda value: ShardInfo(**value),
        "rows": lambda value: np.array([tuple(row) for row in value], SAMPLE_DTYPE),
        "kinds": Counter,
        "extensions": set,
        "ignored": Ignored,
        "bad": lambda value: [(name, reason) for name, reason in value],
        "class_names": lambda value: NamesMet(
            {key: dict(map(tuple, names)) for key, names in value[0].items()},
            {key: (label, known, name) for key, (label, known, name) in value[1].items()},
        ),
    }
    return Scanned(**{name: kinds.get(name, lambda value: value)(value) for name, value in found.items()})
