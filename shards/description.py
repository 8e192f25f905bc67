"""Read and write the content of `dataset.json`: the classes, the shards of each split, and how they were made."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

FORMAT = "penstock-1"
DAMAGED = (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError)  # what its JSON may raise


@dataclass(frozen=True)
class ClassInfo:
    """One class; its label is its index in `ShardSet.classes`. `wnid` is the class key, even if that is not a WordNet
    id: the field has the name that dataset.json and checkpoints use."""

    wnid: str
    name: str


def key_name(classes: Iterable[ClassInfo]) -> str:
    """The name of the class-key field in JSON output: "wnid" if all keys are WordNet ids, otherwise "class".

    All classes of a dataset use the same name, so readers of the JSON need to handle only one.
    """
    return "wnid" if all(re.fullmatch(r"n[0-9]{8}", info.wnid) for info in classes) else "class"


@dataclass(frozen=True)
class ShardInfo:
    """One tar file as `dataset.json` records it."""

    file: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Description:
    """The content of `dataset.json`. made: how the dataset was made. Its entries are optional: code that uses one must
    check that it exists and has the right type."""

    classes: tuple[ClassInfo, ...]
    shards: dict[str, tuple[ShardInfo, ...]]  # of each split
    made: dict[str, object]
    files: dict[str, str]  # table or source list → sha256
    intact: bool  # the file is unchanged since it was written
    url: str = ""  # the location of the shards, if they are not beside dataset.json


def read_description(raw: bytes, for_repair: bool = False) -> Description:
    """Parse `dataset.json`. for_repair: accept another format version and a missing checksum.

    Raises:
        DAMAGED: one of these exceptions, if the content is not valid.
    """
    info = json.loads(raw)
    if not for_repair and info["format"] != FORMAT:
        raise ValueError(f"format is {info['format']!r}, but this version reads {FORMAT!r}")
    classes = tuple(ClassInfo(str(c["wnid"]), str(c["name"])) for c in info["classes"])
    splits = {
        str(name): tuple(
            ShardInfo(str(s["file"]), int(s["samples"]), int(s["bytes"]), str(s["sha256"])) for s in split["shards"]
        )
        for name, split in info["splits"].items()
    }
    for shard in (shard for shards in splits.values() for shard in shards):
        if not (0 <= shard.samples < 1 << 63 and 0 <= shard.bytes < 1 << 63):
            raise ValueError(f"{shard.file!r} has {shard.samples} samples in {shard.bytes} bytes")
    made = {str(name): value for name, value in dict(info["made"]).items()}
    files = {str(name): str(digest) for name, digest in info["files"].items()}
    url = str(info.get("url", ""))
    if url and "://" not in url:
        raise ValueError(f"{url!r} is not a URL of shards")
    checksum = info.pop("checksum", None) if for_repair else info.pop("checksum")
    return Description(classes, splits, made, files, checksum == _checksum(info), url)


def _checksum(info: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(info, sort_keys=True).encode()).hexdigest()


def description_json(
    classes: Iterable[ClassInfo],
    splits: Mapping[str, Iterable[ShardInfo]],
    made: dict[str, object],
    files: dict[str, str],
    url: str = "",
) -> bytes:
    """Return the bytes of `dataset.json`, in the form that `read_description` reads."""
    info: dict[str, object] = {
        "format": FORMAT,
        "classes": [asdict(c) for c in classes],
        "splits": {
            name: {"samples": sum(s.samples for s in shards), "shards": [asdict(s) for s in shards]}
            for name, shards in ((name, list(shards)) for name, shards in splits.items())
        },
        "files": files,
        "made": made,
    }
    if url:
        info["url"] = url
    info["checksum"] = _checksum(info)
    return json.dumps(info, indent=1, ensure_ascii=False).encode() + b"\n"
