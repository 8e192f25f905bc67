"""The content of `dataset.json`: classes, shards of each split, how they were made. JSON → `Description`, and back."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

FORMAT = "penstock-1"
DAMAGED = (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError)  # what its JSON may raise


@dataclass(frozen=True)
class ClassInfo:
    """One class; its label is its place in `ShardSet.classes`. `wnid` is its key, also where that is no wnid: the field
    is called as in dataset.json and in checkpoints."""

    wnid: str
    name: str


def key_name(classes: Iterable[ClassInfo]) -> str:
    """What the field of these classes' keys is called in JSON for people: "wnid" if all are WordNet ids, else "class".

    One name for all of a dataset's classes, so that a reader of the JSON needs no more than one.
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
    """The content of `dataset.json`. made: how the dataset was made, which no reader depends on: whoever takes
    something of it looks whether it is there, and what it is."""

    classes: tuple[ClassInfo, ...]
    shards: dict[str, tuple[ShardInfo, ...]]  # of each split
    made: dict[str, object]
    files: dict[str, str]  # table or source list → sha256
    intact: bool  # it is as it was written
    url: str = ""  # under which the shards lie, where that is not beside dataset.json


def read_description(raw: bytes, for_repair: bool = False) -> Description:
    """`dataset.json` parsed. for_repair: also where another format or no checksum stands in it.

    Raises:
        DAMAGED: one of these, where it is not like that.
    """
    info = json.loads(raw)
    if not for_repair and info["format"] != FORMAT:
        raise ValueError(f"format is {info['format']!r}, this version reads {FORMAT!r}")
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
        raise ValueError(f"{url!r} is no URL of shards")
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
    """What `read_description` reads."""
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
