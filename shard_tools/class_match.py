"""Which classes of one list are those of another: for a network's head, whose rows are classes of other data.

A class is known by its key. Where the key is a number, which says nothing by itself, it is known by its name; and lists
numbered as ImageNet-1k's labels are, with ImageNet's names, by their wnids. What that leaves over is known by its name.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from penstock.shard_tools.sources.imagenet import NAME_AGREEMENT, imagenet_classes
from penstock.shards.format import ClassInfo


class ClassMatch(NamedTuple):
    """labels: for each class its label in the other list, None where that has no such class. by_number: they agree in
    nothing but their numbers, as one list or both have no names."""

    labels: tuple[int | None, ...]
    by_number: bool = False


def match_classes(classes: Sequence[ClassInfo], others: Sequence[ClassInfo]) -> ClassMatch:
    """For each of `classes` its label in `others`. Leading zeros of numbers do not count."""
    known, theirs = _identities(classes), _identities(others)
    numbered = all(info.wnid.isdecimal() for info in (*classes, *others))
    if numbered and not (any(map(_is_named, classes)) and any(map(_is_named, others))):
        numbers = {int(info.wnid): label for label, info in enumerate(others)}
        return ClassMatch(tuple(numbers.get(int(info.wnid)) for info in classes), by_number=True)
    label_of = {identity: label for label, identity in enumerate(theirs)}
    labels = [label_of.get(identity) for identity in known]
    ours, named = _by_name(classes), _by_name(others)
    for name in ours.keys() & named.keys():
        if labels[ours[name]] is None and named[name] not in labels:
            labels[ours[name]] = named[name]
    return ClassMatch(tuple(labels))


def _by_name(classes: Sequence[ClassInfo]) -> dict[str, int]:
    """Name → label, of the names that one class has: of wnids in one list and numbers in the other."""
    names = [_first(info.name) if _is_named(info) else "" for info in classes]
    counts = Counter(names)
    return {name: label for label, name in enumerate(names) if name and counts[name] == 1}


def _identities(classes: Sequence[ClassInfo]) -> list[str]:
    """What each class is known by, all different; their keys alone where names repeat."""
    wnids, names = list(imagenet_classes()), [*imagenet_classes().values()]
    named = {info for info in classes if info.wnid.isdecimal() and _is_named(info)}
    numbers = {info: int(info.wnid) for info in classes if info.wnid.isdecimal()}
    if named and max(numbers.values()) < len(wnids):
        agree = sum(_first(info.name) == _first(names[numbers[info]]) for info in named)
        if agree >= NAME_AGREEMENT * len(named):
            return [wnids[numbers[info]] if info in numbers else info.wnid for info in classes]
    found = [info.name if info in named else info.wnid for info in classes]
    return found if len(set(found)) == len(found) else [info.wnid for info in classes]


def _is_named(info: ClassInfo) -> bool:
    return info.name not in ("", info.wnid) and not info.name.isdecimal()


def _first(name: str) -> str:
    """Of "tench, Tinca tinca" the first name."""
    return name.partition(",")[0].strip().lower().replace("_", " ")
