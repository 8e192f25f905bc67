"""Pack to a URL: make shards in a local directory and move them to the store one by one, and `dataset.json` last.

The local directory holds what an interrupted run needs to resume, and never more tars than there are workers. `pack`
works in it as in any other output directory; only the start and the end differ. The store's own listing, not the local
directory, decides which shards already exist.
"""

import hashlib
import re
from contextlib import suppress
from pathlib import Path

from penstock.shards.cache import cache_root
from penstock.shards.format import INFO_FILE, ShardInfo, ShardSet, index_path
from penstock.shards.remote import Store

ATTEMPTS = 5  # for each part of a file, before the whole file is sent again


def staging_dir(url: str, staging: Path | None) -> tuple[Path, ShardSet | None]:
    """The local directory for packing to `url`, and the dataset that is already complete at the URL, if any.

    The local directory is in `staging`, or in the user's cache.

    Raises:
        ValueError: the store is unreachable or read-only, or it holds files that do not belong to this directory's run.
    """
    if url.startswith(("http://", "https://")):
        raise ValueError(f"{url}: is read-only; pack to a directory, or to s3:// or gs://")
    if url.startswith("hf://"):  # each file would be a commit
        name = re.sub("hf://(datasets/)?", "", url)
        raise ValueError(
            f"{url}: cannot pack to the Hub directly; pack to a directory DIR, then run: "
            f"hf upload {name} DIR --repo-type dataset"
        )
    store = Store(url)
    name = f"{re.sub(r'[^A-Za-z0-9.-]+', '_', url)}-{hashlib.sha256(store.url.encode()).hexdigest()[:8]}"
    local = (staging or cache_root() / "packing").absolute() / name
    present = store.files()
    if INFO_FILE in present:
        complete = ShardSet.open(url)
        _check_all_there(complete, present, "remove the dataset at the URL")
        return local, complete
    if present and not (local.is_dir() and any(local.iterdir())):
        raise ValueError(
            f"{url}: not empty (it has {min(present)}), and {local} has no unfinished run for it; choose an empty URL, "
            "or give the --staging of the run that began it"
        )
    return local, None


def is_lost(present: dict[str, int], info: ShardInfo, index_bytes: int | None = None) -> bool:
    """Whether a shard or its index is missing from the files of a store, or has another size than it was made with."""
    index = present.get(index_path(Path(info.file)).name)
    return present.get(info.file) != info.bytes or index is None or index_bytes not in (None, index)


def upload_shard(url: str, tar_path: Path) -> None:
    """Upload a tar and its index. Raises ValueError if the store fails for too long."""
    store = Store(url, attempts=ATTEMPTS)
    for path in (tar_path, index_path(tar_path)):
        store.upload(path, path.name)


def remove_uploaded(out: Path, info: ShardInfo) -> None:
    for path in (out / info.file, index_path(out / info.file)):
        path.unlink(missing_ok=True)


def publish(url: str, local: Path) -> ShardSet:
    """Upload the dataset's other files after its shards, then remove the local files; returns the dataset.

    Raises:
        ValueError: a shard is no longer at the URL, or the store fails for too long.
    """
    store, complete = Store(url, attempts=ATTEMPTS), ShardSet.open(local)
    _check_all_there(complete, store.files(), f"remove {local}", url)
    files = sorted(path for path in local.iterdir() if path.is_file() and path.name != INFO_FILE)
    for path in [*files, local / INFO_FILE]:
        store.upload(path, path.name)
    clean(local)
    return ShardSet.open(url)


def clean(local: Path) -> None:
    """Remove the local files of an upload."""
    for path in local.iterdir() if local.is_dir() else ():
        if path.is_file():
            path.unlink()
    with suppress(OSError):  # `pack` removes its own files later
        local.rmdir()


def _check_all_there(complete: ShardSet, present: dict[str, int], remedy: str, url: str = "") -> None:
    for info in (info for split in complete.splits.values() for info in split.shards):
        if is_lost(present, info):
            raise ValueError(
                f"{url or complete.url}/{info.file}: is missing or has another size; {remedy} and pack again"
            )
