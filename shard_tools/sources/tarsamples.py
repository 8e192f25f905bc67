"""Read the samples of one WebDataset tar: group the members by key, and find each sample's image and label.

A sample is a run of members with the same key: the path up to the first dot of the file name. The rest of the file name
is the member's field ("jpg", "input.jpg", "cls"). The order of the members does not matter.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from penstock.shard_tools.sources.labels import read_label as label_of_text
from penstock.shard_tools.sources.naming import EXTENSIONS, Ignored, is_junk, is_text
from penstock.shard_tools.sources.tarmembers import iterate_tar
from penstock.shard_tools.tarindex import Member

MAX_LABEL_BYTES = 1 << 20
FIRST = 100  # number of samples of a tar to search for a field
LABEL_KEYS = ("label", "cls")  # keys of a label in a .json
NO_LABEL = "its sample has no label"


@dataclass(frozen=True)
class Fields:
    """The fields of the image and of the label, from `--image-field` and `--label-field`; "" detects them.

    Each may name several fields, separated by ";"; the first one that a sample has is used. A label field may be a key
    in a .json: "json.fine_label".
    """

    image: str = ""
    label: str = ""


FIND_OUT = Fields()


class Unlabelled(ValueError):
    """A sample has no label; the message gives the reason, without the sample's name."""


def _in_junk(directory: str) -> bool:
    """Whether a member's directory is junk, or inside junk."""
    return any(is_junk(part) for part in directory.split("/") if part not in ("", "."))


def iterate_samples(path: Path, ignored: Ignored) -> Iterator[list[Member]]:
    """Yield each sample's members, grouped as in webdataset and DALI's wds2idx. Raises what `iterate_tar` raises."""
    sample: list[Member] = []
    last = None
    for info in iterate_tar(path):
        directory, slash, file = info.name.rpartition("/")
        stem, dot, extension = file.partition(".")
        if not stem or not dot or not info.isreg() or _in_junk(directory):
            ignored.append(f"{path.name}/{info.name}")
            continue
        key = directory + slash + stem
        if key != last and sample:
            yield sample
            sample = []
        last = key
        sample.append(Member(extension, info.offset_data, info.size, info.name))
    if sample:
        yield sample


def check_fields(path: Path, fields: Fields) -> None:
    """Raises ValueError if none of a tar's first samples has a requested field; the message lists the existing ones."""
    samples = list(islice(iterate_samples(path, Ignored()), FIRST)) if fields != FIND_OUT else []
    for option, names in (("--image-field", fields.image), ("--label-field", fields.label)):
        if names and samples and not any(any(_named(sample, names)) for sample in samples):
            there = ", ".join(sorted({member.extension for sample in samples for member in sample}))
            raise ValueError(f"{path}: its samples have no field {names} ({option}); they have {there}")


def image_of(sample: list[Member], path: Path, fields: Fields = FIND_OUT) -> Member | None:
    """The image among the members, None if there is none. Raises ValueError if there are several to choose from."""
    if fields.image:
        return next((member for member, key in _named(sample, fields.image) if not key), None)
    images = [member for member in sample if f".{member.extension.lower()}".endswith(EXTENSIONS)]
    if len(images) > 1:
        names = " and ".join(member.name for member in images[:2])
        raise ValueError(
            f"{path}: {names} belong to the same sample, because their names are the same up to the first dot; choose "
            f"one with --image-field ({_list(images)}), or rename them if they are different samples"
        )
    return images[0] if images else None


def no_image(sample: list[Member], fields: Fields = FIND_OUT) -> str:
    """Why `image_of` finds no image."""
    named = f" called {fields.image}" if fields.image else ""
    return f"its sample has no image{named} (fields {_list(sample)}); set --image-field to the image's field"


def read_label(
    sample: list[Member], stream: BinaryIO, path: Path, fields: Fields = FIND_OUT
) -> tuple[int | str, dict[str, object]]:
    """Read the label, a number or a class name, and the sample's .json ({} without one).

    Without `fields.label`, it is the content of the only field that is or ends in "cls", or otherwise "label" or "cls"
    in a .json.

    Raises:
        Unlabelled: the sample has no label. ValueError: it has several to choose from.
    """
    about = _json_object(sample, stream)
    if fields.label:
        named = _named(sample, fields.label)
        member, key = next(((m, k) for m, k in named if not k or k in _object(m, stream)), (None, ""))
    else:
        labels = [m for m in sample if f".{m.extension.lower()}".endswith(".cls")]
        exact = [m for m in labels if m.extension.lower() == "cls"]
        if len(labels) > 1 and not exact:
            names = " and ".join(member.name for member in labels[:2])
            raise ValueError(
                f"{path}: {names} are labels of the same sample; choose one with --label-field ({_list(labels)})"
            )
        jsons = [m for m in sample if m.extension.lower() == "json"]
        member, key = next(iter(exact or labels or jsons), None), ""
    value = None if member is None else _value(member, key, stream)
    label = as_label(value)
    if label is None:
        raise Unlabelled(_no_label(sample, about, fields, value))
    return label, about


def as_label(value: object) -> int | str | None:
    """Convert to a number from 0, also from text or float ("7", "007", 7.0), or to a class name; None if neither."""
    if isinstance(value, str):
        try:
            value = int(value) if value.isdecimal() and len(value) < 20 else label_of_text(value)
        except ValueError:
            return None
    elif isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    is_label = is_text(value) if isinstance(value, str) else value >= 0
    return value if is_label else None


def _named(sample: list[Member], names: str) -> Iterator[tuple[Member, str]]:
    """Yield the members with one of the names, in the order of the names, with a key in their .json object or ""."""
    fields = {member.extension.lower(): member for member in reversed(sample)}
    for name in (name.strip().removeprefix(".") for name in names.split(";")):
        if name.lower() in fields:
            yield fields[name.lower()], ""
        for extension, member in fields.items():
            if f".{extension}".endswith(".json") and name.lower().startswith(f"{extension}."):
                yield member, name[len(extension) + 1 :]


def _value(member: Member, key: str, stream: BinaryIO) -> object:
    """The label in a member. key: the key in its .json object, or ""."""
    if not f".{member.extension.lower()}".endswith(".json"):
        return _text(member, stream)
    value = _parsed(member, stream)
    if key:
        return value.get(key) if isinstance(value, dict) else None
    return next((value[k] for k in LABEL_KEYS if k in value), None) if isinstance(value, dict) else value


def _text(member: Member, stream: BinaryIO) -> str:
    stream.seek(member.offset)
    return stream.read(min(member.size, MAX_LABEL_BYTES)).decode("utf-8-sig", "replace").strip()


def _parsed(member: Member, stream: BinaryIO) -> object:
    try:
        value: object = json.loads(_text(member, stream))
        return value
    except (ValueError, RecursionError):
        return None


def _object(member: Member, stream: BinaryIO) -> dict[str, object]:
    """The member's .json object; {} if it is not an object."""
    value = _parsed(member, stream)
    return value if isinstance(value, dict) else {}


def _json_object(sample: list[Member], stream: BinaryIO) -> dict[str, object]:
    for member in sample:
        if f".{member.extension.lower()}".endswith(".json"):
            return _object(member, stream)
    return {}


def _no_label(sample: list[Member], about: dict[str, object], fields: Fields, value: object) -> str:
    named = f" called {fields.label}" if fields.label else ""
    was = "" if value is None else f", but {str(value)[:40]!r}"
    keys = [key for key in about if is_text(key)][:10]
    of_json = f"; keys of its .json: {', '.join(keys)}" if keys else ""
    alone = ". Members of one sample must follow each other in the tar; a tar of class directories must be unpacked"
    return (
        f"{NO_LABEL}{named}{was} (fields {_list(sample)}{of_json}); add a number from 0 or a class name in a .cls or "
        f'as "label" in a .json, or name its field with --label-field (json.KEY for a key in a .json)'
        f"{alone if len(sample) == 1 else ''}"
    )


def _list(sample: list[Member]) -> str:
    more = [f"{len(sample) - 10} more"] if len(sample) > 10 else []
    return ", ".join([member.extension for member in sample[:10]] + more)
