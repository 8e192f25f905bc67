"""Map the classes of a dataset to the outputs of a network: by key, by a file from the user, or by ImageNet's list.

Input: the classes of both, and optionally a file. Output: the dataset with the network's labels, and lines to print.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from penstock.shard_tools.class_match import match_classes
from penstock.shard_tools.classes import plain_key
from penstock.shard_tools.sources.imagenet import NAME_AGREEMENT, imagenet_classes
from penstock.shard_tools.sources.naming import few_of
from penstock.shards.format import ClassInfo, ShardSet

Classes = Sequence[ClassInfo]


@dataclass(frozen=True)
class ClassMap:
    """labels: (num_classes of the dataset,) the network's label of each class, −1 for none. how: a description, "" if
    both have the same classes in the same order."""

    labels: np.ndarray
    how: str


def map_classes(network: Classes, dataset: Classes, file: Path | None = None) -> ClassMap:
    """Map the dataset's classes to the network's.

    `file` takes precedence. Classes that it does not name are mapped by key; numbers may have leading zeros. If keys
    are numbers and the names show that they belong to other classes, names are used instead. If classes remain
    unmapped, and one side has ImageNet's wnids and the other its numbers, ImageNet's list connects them.

    Raises ValueError if the file is not a class map.
    """
    known = _Known(network)
    labels, how = np.array([known.label(info.wnid) for info in dataset], np.int64), "by key"
    match = match_classes(dataset, network)
    matched = np.array([-1 if label is None else label for label in match.labels], np.int64)
    if not match.by_number and ((matched >= 0) & (matched != labels)).any():
        labels, how = matched, "by name"
    if file:
        named = read_class_map(file, network, dataset)
        labels = np.array([named.get(info.wnid, label) for info, label in zip(dataset, labels, strict=True)], np.int64)
        num_others = int((labels >= 0).sum()) - len(named)
        return ClassMap(labels, f"by {file}" + (f" and {num_others:,} of them {how}" if num_others else ""))
    if len(network) == len(dataset) and (labels == np.arange(len(network))).all():
        return ClassMap(labels, how if [info.wnid for info in network] != [info.wnid for info in dataset] else "")
    if (labels < 0).any():
        for numbers, others, whose in ((network, dataset, "the network"), (dataset, network, "the dataset")):
            wnid_of = _imagenet_numbers(numbers)
            if wnid_of and any(info.wnid in imagenet_classes() for info in others):
                translated = [replace(info, wnid=wnid_of.get(info.wnid, info.wnid)) for info in network]
                known = _Known(translated)
                labels = np.array([known.label(wnid_of.get(info.wnid, info.wnid)) for info in dataset], np.int64)
                return ClassMap(labels, f"by ImageNet's list of wnids, in which {whose}'s numbers are positions")
    return ClassMap(labels, how)


class _Known:
    """The classes of one side by key."""

    def __init__(self, classes: Classes) -> None:
        self._plain = {plain_key(info.wnid): label for label, info in enumerate(classes)}
        self._exact = {info.wnid: label for label, info in enumerate(classes)}

    def label(self, key: str) -> int:
        """−1 if there is no such class."""
        return self._exact.get(key, self._plain.get(plain_key(key), -1))


def _imagenet_numbers(classes: Classes) -> dict[str, str]:
    """Key → wnid if the keys are the numbers of ImageNet-1k's classes; {} otherwise.

    The class names decide, or the number of classes if there are no names.
    """
    wnids, names = list(imagenet_classes()), list(imagenet_classes().values())
    if not all(re.fullmatch("[0-9]{1,6}", info.wnid) and int(info.wnid) < len(wnids) for info in classes):
        return {}
    named = [info for info in classes if plain_key(info.name) != plain_key(info.wnid)]
    agree = sum(_word(info.name) == _word(names[int(info.wnid)]) for info in named)
    if agree < NAME_AGREEMENT * len(named) or (not named and len(classes) != len(wnids)):
        return {}
    return {info.wnid: wnids[int(info.wnid)] for info in classes}


def _word(name: str) -> str:
    """The first of a class's names, for comparing."""
    return name.partition(",")[0].strip().lower().replace("_", " ")


def relabelled(dataset: ShardSet, split: str, network: Classes, found: ClassMap, checkpoint: Path) -> ShardSet:
    """Return the dataset with the network's labels in `split`.

    Raises ValueError if the split has images of classes that the network does not have.
    """
    samples = dataset.split(split).samples
    labels = found.labels[samples["label"]]
    if (labels < 0).any():
        unknown = [dataset.classes[label].wnid for label in np.unique(samples["label"][labels < 0])]
        raise ValueError(
            f"{dataset.url or dataset.root}: {split} has images of {len(unknown):,} classes that {checkpoint} does not "
            f"have: {few_of(unknown)}; it has {len(network):,}: {few_of([info.wnid for info in network])}. Pack "
            "without them (--only-classes), or map them with --class-map FILE"
        )
    return _with_labels(dataset, split, labels)


def only_classes_of(dataset: ShardSet, split: str) -> tuple[np.ndarray, ShardSet]:
    """For a relabelled dataset: the labels that have images in `split`, sorted, and the dataset with labels replaced
    by their positions in that list."""
    kept, places = np.unique(dataset.split(split).samples["label"], return_inverse=True)
    return kept.astype(np.int64), _with_labels(dataset, split, places)


def _with_labels(dataset: ShardSet, split: str, labels: np.ndarray) -> ShardSet:
    samples = np.array(dataset.split(split).samples)
    samples["label"] = labels
    return replace(dataset, splits=dataset.splits | {split: replace(dataset.split(split), samples=samples)})


def lines(network: Classes, dataset: ShardSet, split: str, found: ClassMap, only: bool = False) -> Iterator[str]:
    """Lines to print about the mapping; none if both have the same classes with the same names. only: only the outputs
    of classes with images in the split are scored."""
    counts = np.bincount(dataset.split(split).samples["label"], minlength=len(dataset.classes))
    num_classes = int((counts > 0).sum())
    if found.how or only:
        over = f"those {num_classes:,} of them" if only else "all of them"
        yield (
            f"classes mapped {found.how or 'as they are'}: {split} has images of {num_classes:,} classes, the network "
            f"has {len(network):,} outputs, top-1 is over {over}"
        )
    pairs = [(network[label], info) for label, info in zip(found.labels, dataset.classes, strict=True) if label >= 0]
    pairs = [(a, b) for a, b in pairs if a.wnid.isdecimal() and b.wnid.isdecimal()]
    other = [(a, b) for a, b in pairs if _word(a.name) != _word(b.name) and not _is_bare(a) and not _is_bare(b)]
    if other:
        a, b = other[0]
        yield (
            f"{len(other):,} of {len(pairs):,} class numbers have different names: {a.wnid} is {a.name!r} in the "
            f"network and {b.name!r} in the dataset. If these are different classes, give --class-map FILE"
        )


def _is_bare(info: ClassInfo) -> bool:
    return plain_key(info.name) == plain_key(info.wnid)


def read_class_map(path: Path, network: Classes, dataset: Classes) -> dict[str, int]:
    """Read a file that maps the dataset's class keys to the network's labels.

    The file has lines `KEY-of-the-network KEY-of-the-dataset`, or JSON `{"KEY": "KEY"}`. Keys with spaces need a tab
    between them. Blank lines and lines that start with # are skipped. Several of the dataset's classes may map to one
    of the network's; in JSON a list does that. Classes that the dataset does not have are ignored.

    Raises ValueError if the file cannot be read, contradicts itself, or names classes that the network does not have.
    """
    ours, theirs, found = _Known(network), _Known(dataset), dict[str, int]()
    for where, key, other in _pairs(path):
        label, place = ours.label(key), theirs.label(other)
        if label < 0:
            if ours.label(other) >= 0 and theirs.label(key) >= 0:
                raise ValueError(
                    f"{where}: {key!r} is a class of the dataset. Write the network's class first: {other} {key}"
                )
            raise ValueError(
                f"{where}: the network has no class {key!r}; it has {few_of([info.wnid for info in network])}"
            )
        if place >= 0 and found.setdefault(dataset[place].wnid, label) != label:
            raise ValueError(f"{where}: {other!r} is mapped to two of the network's classes. Remove one of them")
    if not found:
        keys = few_of([info.wnid for info in dataset])
        raise ValueError(
            f"{path}: names none of the dataset's classes ({keys}). Its lines must be KEY-of-the-network "
            "KEY-of-the-dataset"
        )
    return found


def _pairs(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield (place in the file, the network's key, the dataset's key) for each pair."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeError) as error:
        raise ValueError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if text.lstrip().startswith("{"):
        try:
            items = dict(json.loads(text))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: is not a JSON object ({error})") from None
        for key, value in items.items():
            for other in value if isinstance(value, list) else [value]:
                if isinstance(other, bool) or not isinstance(other, str | int):
                    raise ValueError(
                        f'{path}: {key!r} has {other!r}. Give class keys, such as {{"000010": "n01530575"}}'
                    )
                yield str(path), key, str(other)
        return
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        words = [word.strip() for word in line.split("\t")] if "\t" in line.strip() else line.split()
        if len(words) != 2 or not all(words):
            raise ValueError(
                f"{path}: line {number}: {line.strip()[:60]!r} is not a pair of keys, the network's and the dataset's. "
                "If keys contain spaces, put a tab between the two"
            )
        yield f"{path}: line {number}", words[0], words[1]
