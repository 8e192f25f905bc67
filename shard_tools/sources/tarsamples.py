"""The samples of one WebDataset tar: its members grouped by key, and which of them hold the image and the label.

A sample is a run of members that share a key: the path up to the first dot of the file name; what follows is a member's
field ("jpg", "input.jpg", "cls"). The order of the members does not matter.
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
FIRST = 100  # samples of a tar that show which fields there are
LABEL_KEYS = ("label", "cls")  # of a .json
NO_LABEL = "its sample has no label"


@dataclass(frozen=True)
class Fields:
    """Which fields hold the image and the label, as `--image-field` and `--label-field` say; "" finds out.

    Each may name several, separated by ";": the first that a sample has is taken. A label's may be a .json and a key of
    its object: "json.fine_label".
    """

    image: str = ""
    label: str = ""


FIND_OUT = Fields()


class Unlabelled(ValueError):
    """A sample has no label; says why, without its name."""


def _in_junk(directory: str) -> bool:
    """Whether a member's directory is a system's own, or lies in one."""
    return any(is_junk(part) for part in directory.split("/") if part not in ("", "."))


def iterate_samples(path: Path, ignored: Ignored) -> Iterator[list[Member]]:
    """The members of each sample, grouped as webdataset and DALI's wds2idx do. Raises what `iterate_tar` does."""
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
    """Raises ValueError where none of a tar's first samples has a field that is asked for; names those there are."""
    samples = list(islice(iterate_samples(path, Ignored()), FIRST)) if fields != FIND_OUT else []
    for option, names in (("--image-field", fields.image), ("--label-field", fields.label)):
        if names and samples and not any(any(_named(sample, names)) for sample in samples):
            there = ", ".join(sorted({member.extension for sample in samples for member in sample}))
            raise ValueError(f"{path}: {option} {names}: its samples have no such field; they have {there}")


def image_of(sample: list[Member], path: Path, fields: Fields = FIND_OUT) -> Member | None:
    """The image among the members, None if there is none. Raises ValueError if there are several to choose from."""
    if fields.image:
        return next((member for member, key in _named(sample, fields.image) if not key), None)
    images = [member for member in sample if f".{member.extension.lower()}".endswith(EXTENSIONS)]
    if len(images) > 1:
        names = " and ".join(member.name for member in images[:2])
        raise ValueError(
            f"{path}: {names} are images of one sample, whose name ends at the first dot; choose one with "
            f"--image-field ({_list(images)}), or, if they are samples of their own, rename them"
        )
    return images[0] if images else None


def no_image(sample: list[Member], fields: Fields = FIND_OUT) -> str:
    """Why `image_of` gives none."""
    named = f" called {fields.image}" if fields.image else ""
    return f"its sample has no image{named} (fields {_list(sample)}); --image-field names it"


def read_label(
    sample: list[Member], stream: BinaryIO, path: Path, fields: Fields = FIND_OUT
) -> tuple[int | str, dict[str, object]]:
    """The label, a number or a class as text, and what the sample's .json says besides ({} without one).

    Found out, it is the content of the one field that is or ends in "cls", or else "label" or "cls" of a .json.

    Raises:
        Unlabelled: it has none. ValueError: it has several to choose from.
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
                f"{path}: {names} are labels of one sample; choose one with --label-field ({_list(labels)})"
            )
        jsons = [m for m in sample if m.extension.lower() == "json"]
        member, key = next(iter(exact or labels or jsons), None), ""
    value = None if member is None else _value(member, key, stream)
    label = as_label(value)
    if label is None:
        raise Unlabelled(_no_label(sample, about, fields, value))
    return label, about


def as_label(value: object) -> int | str | None:
    """A number from 0, as text or as a float ("7", "007", 7.0), or a class's name; None if it is neither."""
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
    """The members that have one of the names, in their order, and the key in a .json's object, "" for all of it."""
    fields = {member.extension.lower(): member for member in reversed(sample)}
    for name in (name.strip().removeprefix(".") for name in names.split(";")):
        if name.lower() in fields:
            yield fields[name.lower()], ""
        for extension, member in fields.items():
            if f".{extension}".endswith(".json") and name.lower().startswith(f"{extension}."):
                yield member, name[len(extension) + 1 :]


def _value(member: Member, key: str, stream: BinaryIO) -> object:
    """What a member holds as a label. key: of its object."""
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
    """{} where it is none."""
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
    of_json = f"; of its .json: {', '.join(keys)}" if keys else ""
    alone = "; members of one sample follow each other in a tar, and a tar of class directories has to be unpacked"
    return (
        f"{NO_LABEL}{named}{was} (fields {_list(sample)}{of_json}); one is a number from 0 or a name, in a .cls, as "
        f'"label" in a .json, or in the field that --label-field names (json.KEY in a .json)'
        f"{alone if len(sample) == 1 else ''}"
    )


def _list(sample: list[Member]) -> str:
    more = [f"{len(sample) - 10} more"] if len(sample) > 10 else []
    return ", ".join([member.extension for member in sample[:10]] + more)
