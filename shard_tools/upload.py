"""Packing to a URL: shards are made in a local directory and moved to the store one by one; `dataset.json` goes last.

The local directory holds what an interrupted run needs to go on, and never more tars than there are workers. It is the
one that `pack` works in; only what is there at the beginning and what happens to it at the end differ.
"""

import re
import shutil
from contextlib import suppress
from pathlib import Path

from shard_tools.cache import cache_root
from shard_tools.format import INFO_FILE, ShardInfo, ShardSet, index_path
from shard_tools.remote import Store


def staging_dir(url: str, staging: Path | None) -> Path:
    """The local directory for packing to `url`; `staging`, or one in the user's cache.

    What is complete at the URL gets its description copied there, for `pack` to compare.

    Raises:
        ValueError: the store cannot be reached or only be read; or it holds something else than what this directory
            knows of.
    """
    if url.startswith(("http://", "https://")):
        raise ValueError(f"{url}: can only be read; pack to a directory, or to s3:// or gs://")
    store = Store(url)
    local = (staging or cache_root() / "packing").absolute() / re.sub(r"[^A-Za-z0-9.-]+", "_", url)
    present = store.files()
    if INFO_FILE in present:
        try:
            shutil.copytree(ShardSet.open(url).root, local, dirs_exist_ok=True)
        except OSError as error:
            raise ValueError(f"{local}: cannot be written ({error}); choose another --staging") from None
    elif present and not (local.is_dir() and any(local.iterdir())):
        raise ValueError(
            f"{url}: not empty (it has {min(present)}), and there is no unfinished run of it in {local}; choose an "
            "empty URL, or the --staging that it was begun with"
        )
    return local


def upload_shard(url: str, tar_path: Path) -> None:
    """Raises ValueError if the store fails for too long."""
    store = Store(url)
    for path in (tar_path, index_path(tar_path)):
        store.upload(path, path.name)


def remove_uploaded(out: Path, info: ShardInfo) -> None:
    for path in (out / info.file, index_path(out / info.file)):
        path.unlink(missing_ok=True)


def publish(url: str, local: Path) -> ShardSet:
    """Upload what belongs to the dataset besides its shards, then remove the local files; returns the dataset."""
    store = Store(url)
    if INFO_FILE not in store.files():
        files = sorted(path for path in local.iterdir() if path.is_file() and path.name != INFO_FILE)
        for path in [*files, local / INFO_FILE]:
            store.upload(path, path.name)
    shard_set = ShardSet.open(url)
    for path in local.iterdir():
        if path.is_file():
            path.unlink()
    with suppress(OSError):  # `pack` removes what it still has in there
        local.rmdir()
    return shard_set
