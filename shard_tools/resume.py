"""What makes a run repeatable: OUT/.pack/job.json says what is being made, so that an interrupted run can go on.

A directory with a `dataset.json` is complete, one with a `.pack` is unfinished, and neither is ever mixed with
another job's files. `.pack` is locked while a run uses it.
"""

import errno
import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shard_tools.format import INFO_FILE, ShardSet, atomic_write, escape
from shard_tools.shard import WORK_DIR
from shard_tools.sources.imagefolder import Source

JOB_FILE = "job.json"


def describe(source: Source, samples_per_shard: int, shard_size: int, seed: int, max_pixels: int) -> dict[str, Any]:
    """What the output is a function of: equal descriptions give equal bytes. No paths, times or worker counts."""
    digest = hashlib.sha256()
    for split, images in source.splits.items():
        digest.update(f"{split}\0{len(images)}\0".encode())
        for image in images:
            digest.update(image.name.encode("utf-8", "surrogateescape"))
            digest.update(f"\0{image.label}\0{image.size_bytes}\0".encode())
    return {
        "source": source.format,
        "num_classes": len(source.classes),
        "images": {split: len(images) for split, images in source.splits.items()},
        "source_bytes": {split: sum(image.size_bytes for image in images) for split, images in source.splits.items()},
        "fingerprint": digest.hexdigest(),  # of the images' names, labels and sizes
        "seed": seed,
        "samples_per_shard": samples_per_shard,
        "shard_size": shard_size,
        "max_pixels": max_pixels,
    }


def complete(out: Path, made: dict[str, Any]) -> ShardSet | None:
    """The dataset in `out`, if there is one. Raises ValueError if it is another than the one to be made."""
    if not (out / INFO_FILE).exists():
        return None
    existing = ShardSet.open(out)
    _check_same(out, "holds another dataset", existing.made, made, "choose another directory or remove this one")
    shutil.rmtree(out / WORK_DIR, ignore_errors=True)  # killed right before this
    return existing


def _check_same(out: Path, what: str, old: dict[str, Any], new: dict[str, Any], remedy: str) -> None:
    changed = [f"{key} was {old.get(key)!r}, is {value!r}" for key, value in new.items() if old.get(key) != value]
    if len(changed) > 1:  # the counts or settings say more than the hash
        changed = [line for line in changed if not line.startswith("fingerprint")]
    elif changed and changed[0].startswith("fingerprint"):
        changed = ["the images' names, labels or sizes differ"]
    if changed:
        raise ValueError(f"{out}: {what} ({'; '.join(changed)}); {remedy}")


@contextmanager
def work_dir(out: Path, made: dict[str, Any]) -> Iterator[None]:
    """OUT/.pack, locked, for the run that `made` describes; removed if the run completes."""
    work = out / WORK_DIR
    try:
        work.mkdir(parents=True, exist_ok=True)
        with open(work / "lock", "wb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"{out}: another process is packing into it") from None
            except OSError as error:  # a file system without locks
                if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                    raise
            _prepare(out, work, made)
            yield
            shutil.rmtree(work)
    except OSError as error:
        raise ValueError(f"{error.filename or out}: cannot be written ({error.strerror})") from None


def _prepare(out: Path, work: Path, made: dict[str, Any]) -> None:
    if (work / JOB_FILE).exists():
        try:
            old = dict(json.loads((work / JOB_FILE).read_bytes()))
        except (ValueError, TypeError):
            raise ValueError(f"{work / JOB_FILE}: not readable; remove {out} and pack again") from None
        remedy = "run the command that it was begun with, or remove it"
        _check_same(out, "holds an unfinished run of something else", old, made, remedy)
        for leftover in [*out.glob(".*.tmp"), *work.glob(".*.tmp")]:  # of the killed run
            leftover.unlink(missing_ok=True)
        return
    foreign = sorted(entry.name for entry in out.iterdir() if entry.name != WORK_DIR)
    if foreign:
        (work / "lock").unlink()
        work.rmdir()
        raise ValueError(f"{out}: not empty (it has {escape(foreign[0])}); choose a new or empty directory")
    with atomic_write(work / JOB_FILE) as stream:
        stream.write(json.dumps(made, indent=1).encode())
