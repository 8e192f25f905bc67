"""Packing to a URL: shards are made in a local directory and moved to the store one by one; `dataset.json` goes last.

The local directory holds what an interrupted run needs to go on, and never more tars than there are workers. It is the
one that `pack` works in; only what is there at the beginning and what happens to it at the end differ. What
is there already is what the store lists, whatever this directory remembers.
"""

import hashlib
import re
from contextlib import suppress
from pathlib import Path

from penstock.shards.cache import cache_root
from penstock.shards.format import INFO_FILE, ShardInfo, ShardSet, index_path
from penstock.shards.remote import Store

ATTEMPTS = 5  # of each part of a file, before the whole of it is sent again


def staging_dir(url: str, staging: Path | None) -> tuple[Path, ShardSet | None]:
    """The local directory for packing to `url`, `staging` or one in the user's cache; and what is complete at the URL.

    Raises:
        ValueError: the store cannot be reached or only be read; or it holds something else than what this directory
            knows of.
    """
    if url.startswith(("http://", "https://")):
        raise ValueError(f"{url}: can only be read; pack to a directory, or to s3:// or gs://")
    if url.startswith("hf://"):  # where each file would be a commit
        name = re.sub("hf://(datasets/)?", "", url)
        raise ValueError(f"{url}: pack to a directory DIR, then: hf upload {name} DIR --repo-type dataset")
    store = Store(url)
    name = f"{re.sub(r'[^A-Za-z0-9.-]+', '_', url)}-{hashlib.sha256(store.url.encode()).hexdigest()[:8]}"
    local = (staging or cache_root() / "packing").absolute() / name
    present = store.files()
    if INFO_FILE in present:
        complete = ShardSet.open(url)
        _check_all_there(complete, present, "remove what is there")
        return local, complete
    if present and not (local.is_dir() and any(local.iterdir())):
        raise ValueError(
            f"{url}: not empty (it has {min(present)}), and there is no unfinished run of it in {local}; choose an "
            "empty URL, or the --staging that it was begun with"
        )
    return local, None


def is_lost(present: dict[str, int], info: ShardInfo, index_bytes: int | None = None) -> bool:
    """Whether a shard, or its index, is not among the files of a store, or not as long as it was made."""
    index = present.get(index_path(Path(info.file)).name)
    return present.get(info.file) != info.bytes or index is None or index_bytes not in (None, index)


def upload_shard(url: str, tar_path: Path) -> None:
    """Raises ValueError if the store fails for too long."""
    store = Store(url, attempts=ATTEMPTS)
    for path in (tar_path, index_path(tar_path)):
        store.upload(path, path.name)


def remove_uploaded(out: Path, info: ShardInfo) -> None:
    for path in (out / info.file, index_path(out / info.file)):
        path.unlink(missing_ok=True)


def publish(url: str, local: Path) -> ShardSet:
    """Upload what belongs to the dataset besides its shards, then remove the local files; returns the dataset.

    Raises:
        ValueError: a shard is not at the URL any more, or the store fails for too long.
    """
    store, complete = Store(url, attempts=ATTEMPTS), ShardSet.open(local)
    _check_all_there(complete, store.files(), f"remove {local}", url)
    files = sorted(path for path in local.iterdir() if path.is_file() and path.name != INFO_FILE)
    for path in [*files, local / INFO_FILE]:
        store.upload(path, path.name)
    clean(local)
    return ShardSet.open(url)


def clean(local: Path) -> None:
    """Remove what was on its way to a URL."""
    for path in local.iterdir() if local.is_dir() else ():
        if path.is_file():
            path.unlink()
    with suppress(OSError):  # `pack` removes what it still has in there
        local.rmdir()


def _check_all_there(complete: ShardSet, present: dict[str, int], remedy: str, url: str = "") -> None:
    for info in (info for split in complete.splits.values() for info in split.shards):
        if is_lost(present, info):
            raise ValueError(
                f"{url or complete.url}/{info.file}: is not there, or of another length; {remedy} and pack again"
            )
