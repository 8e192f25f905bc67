"""Match the classes of one list to those of another, e.g. to reuse the rows of a network's head for another dataset.

Classes match by their keys. If the keys are numbers, which mean nothing by themselves, classes match by their names. A
list that is numbered like ImageNet-1k's labels and has ImageNet's names matches by wnids. Classes that are still
unmatched then match by their names.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from penstock.shard_tools.sources.imagenet import NAME_AGREEMENT, imagenet_classes
from penstock.shards.format import ClassInfo


class ClassMatch(NamedTuple):
    """labels: for each class, its label in the other list, or None if that list lacks the class. by_number: the classes
    matched only by their numbers, because at least one list has no names."""

    labels: tuple[int | None, ...]
    by_number: bool = False


def match_classes(classes: Sequence[ClassInfo], others: Sequence[ClassInfo]) -> ClassMatch:
    """Find the label in `others` of each of `classes`. Leading zeros of numbers do not count."""
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
    """Name → label, for names that exactly one class has: matches wnids in one list to numbers in the other."""
    names = [_first(info.name) if _is_named(info) else "" for info in classes]
    counts = Counter(names)
    return {name: label for label, name in enumerate(names) if name and counts[name] == 1}


def _identities(classes: Sequence[ClassInfo]) -> list[str]:
    """A unique identity for each class; if names repeat, the keys alone."""
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
    """The first name of "tench, Tinca tinca", in lower case."""
    return name.partition(",")[0].strip().lower().replace("_", " ")
