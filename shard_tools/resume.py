"""Resume an interrupted run: OUT/.pack/job.json records what is being made.

A directory with a `dataset.json` is complete, and one with a `.pack` is unfinished. Neither is ever mixed with the
files of another job. `.pack` is locked while a run uses it.
"""

import errno
import fcntl
import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from penstock.shard_tools.shard import LISTING_DIR, WORK_DIR, ShardJob, finished_part
from penstock.shard_tools.upload import is_lost
from penstock.shards.format import INFO_FILE, ShardSet, atomic_write, escape
from penstock.shards.remote import Store

JOB_FILE = "job.json"
SOURCE_DIR = "source"  # in WORK_DIR, for files that a source has to unpack


class Locked(ValueError):
    """Another process uses the directory."""


@contextmanager
def work_dir(out: Path) -> Iterator[Path]:
    """Make and lock OUT/.pack. It is removed when the `with` block succeeds, or fails before `begin`."""
    work = out / WORK_DIR
    try:
        _check_foreign(out)
        existed = out.exists()
        (work / SOURCE_DIR).mkdir(parents=True, exist_ok=True)
        try:
            with open(work / "lock", "wb") as lock:
                _lock(lock.fileno(), out)
                yield work
                shutil.rmtree(work)
        except Locked:
            raise
        except BaseException:
            if not (work / JOB_FILE).exists():
                _remove_unused(out, existed)
            raise
    except OSError as error:
        raise ValueError(
            f"{error.filename or out}: cannot be written ({error.strerror}); "
            "correct this and run the same command again, which keeps finished shards"
        ) from None


def _check_foreign(out: Path) -> None:
    if out.exists() and not (out / INFO_FILE).exists() and not (out / WORK_DIR / JOB_FILE).exists():
        foreign = sorted(entry.name for entry in out.iterdir() if entry.name != WORK_DIR)
        if foreign:
            raise ValueError(f"{out}: not empty (it has {escape(foreign[0])}); choose a new or empty directory")


def _lock(descriptor: int, out: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Locked(f"{out}: another process is packing into it") from None
    except OSError as error:  # a file system without locks
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise


def _remove_unused(out: Path, existed: bool) -> None:
    """Remove everything except the files that a source has unpacked; the next attempt can use them."""
    work = out / WORK_DIR
    shutil.rmtree(work / LISTING_DIR, ignore_errors=True)
    with suppress(OSError):
        (work / SOURCE_DIR).rmdir()
        (work / "lock").unlink(missing_ok=True)
        work.rmdir()
        if not existed:
            out.rmdir()


def complete(out: Path, made: dict[str, object], at_url: ShardSet | None = None) -> ShardSet | None:
    """The complete dataset in `out`, or at the target URL, if there is one.

    Raises ValueError if it is a different dataset than the one to be made.
    """
    existing = at_url or (ShardSet.open(out) if (out / INFO_FILE).exists() else None)
    if existing:
        where, remedy = existing.url or str(out), "choose another OUT or remove this dataset"
        _check_same(where, "holds another dataset", existing.made, made, remedy)
    return existing


def forget_lost(url: str, jobs: Iterable[ShardJob]) -> None:
    """Forget shards that an earlier run moved to the URL but that are no longer there, so they are made again."""
    present = Store(url).files()
    for job in jobs:
        part = finished_part(job)
        if part and part.info and is_lost(present, part.info, part.index_bytes):
            job.part_path.unlink()


def begin(out: Path, made: dict[str, object]) -> None:
    """Record what is being made, or check that the unfinished run in `out` was making the same."""
    path = out / WORK_DIR / JOB_FILE
    if not path.exists():
        with atomic_write(path) as stream:
            stream.write(json.dumps(made, indent=1).encode())
        return
    try:
        old = dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError, RecursionError):
        raise ValueError(f"{path}: cannot be read; remove {out} and pack again") from None
    remedy = "run the command that began it, or remove this directory"
    _check_same(str(out), "holds an unfinished run with other settings or images", old, made, remedy)
    for leftover in [*out.glob(".*.tmp"), *path.parent.glob(".*.tmp")]:  # of the killed run
        leftover.unlink(missing_ok=True)


def _check_same(where: str, what: str, old: dict[str, object], new: dict[str, object], remedy: str) -> None:
    old, new = _flat(old), _flat(new)
    names = [name for name in [*new, *(set(old) - set(new))] if name in new or name.partition(".")[0] in new]
    changed = {
        name: f"{name} was {old.get(name)}, is {new.get(name)}"
        for name in names
        if (old.get(name) or None) != (new.get(name) or None)  # an option that an earlier version lacked was off
    }
    if "class_names" in changed:
        changed["class_names"] = "the classes' readable names differ"
    if len(changed) > 1:  # the counts or settings are more informative than the hash
        changed.pop("fingerprint", None)
    elif "fingerprint" in changed:
        changed["fingerprint"] = "the images' names, labels or sizes differ"
    if changed:
        raise ValueError(f"{where}: {what} ({'; '.join(changed.values())}); {remedy}")


def _flat(made: dict[str, object]) -> dict[str, object]:
    """Flatten nested settings to dotted names: {"encode": {"quality": 90}} → {"encode.quality": 90}."""
    flat: dict[str, object] = {}
    for name, value in made.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{inner}": v for inner, v in value.items()}
        else:
            flat[name] = value
    return flat
