"""Classes of two lists matched by key, by name, or by ImageNet's numbers, which are checked with torchvision's list."""

import pytest
from torchvision.models._meta import _IMAGENET_CATEGORIES

from penstock.shard_tools.class_match import ClassMatch, match_classes
from penstock.shard_tools.sources.imagenet import imagenet_classes
from penstock.shards.format import ClassInfo

WNIDS = list(imagenet_classes())


def keyed(*keys: str) -> list[ClassInfo]:
    return [ClassInfo(key, key) for key in keys]


def numbered(names: dict[int, str], width: int = 6) -> list[ClassInfo]:
    return [ClassInfo(f"{number:0{width}d}", name) for number, name in names.items()]


IMAGENET = [ClassInfo(wnid, name) for wnid, name in imagenet_classes().items()]
NUMBERED = numbered(dict(enumerate(_IMAGENET_CATEGORIES)))
BARE = numbered({number: f"{number:06d}" for number in range(1000)})
SOME = {7: "cock", 455: "bottlecap", 999: "toilet tissue"}


@pytest.mark.parametrize(
    ("classes", "others", "labels"),
    [
        (keyed("a", "b", "c"), keyed("a", "b", "c"), (0, 1, 2)),
        (keyed("a", "c"), keyed("c", "b", "a"), (2, 0)),
        (keyed("a", "d"), keyed("a", "b"), (0, None)),
        ([ClassInfo("a", "one name")], [ClassInfo("a", "another name")], (0,)),  # a word is a key that says enough
        (IMAGENET, NUMBERED, tuple(range(1000))),
        (NUMBERED, IMAGENET, tuple(range(1000))),
        (numbered(SOME, width=1), IMAGENET, tuple(SOME)),  # a part of the set, whose numbers stayed
        (keyed(*[WNIDS[number] for number in SOME]), NUMBERED, tuple(SOME)),
        (numbered({0: "tench, Tinca tinca", 1: "goldfish"}), IMAGENET, (0, 1)),
        (BARE, IMAGENET, (None,) * 1000),
        (
            numbered({0: "cat", 1: "dog"}),
            numbered({0: "zero", 1: "one"}),
            (None, None),
        ),  # the same numbers, other names
        (numbered({0: "cat", 1: "dog"}), numbered({0: "dog", 1: "cat"}), (1, 0)),
        (numbered({0: "cat", 1: "dog"}), keyed("cat", "cow", "dog"), (0, 2)),
        (numbered({0: "crane", 1: "crane"}), keyed("crane"), (None, None)),  # which of them?
        (numbered({0: "church", 1: "tench", 2: "fish"}), IMAGENET, (497, 0, None)),  # ImageNet's names in another order
        ([IMAGENET[497], IMAGENET[1]], numbered({0: "tench", 1: "church"}), (1, None)),
        ([ClassInfo("a", "one"), ClassInfo("000000", "one")], keyed("a"), (0, None)),
    ],
)
def test_labels(classes: list[ClassInfo], others: list[ClassInfo], labels: tuple[int | None, ...]) -> None:
    assert match_classes(classes, others) == ClassMatch(labels)


@pytest.mark.parametrize(
    ("classes", "others", "labels"),
    [
        (keyed("0", "1", "2"), keyed("000000", "000001", "000002"), (0, 1, 2)),
        (numbered({0: "cat", 2: "dog"}), keyed("0", "1", "2"), (0, 2)),
        (keyed("2", "3"), numbered({0: "0", 1: "1", 2: "2"}), (2, None)),
        (BARE, NUMBERED, tuple(range(1000))),
    ],
)
def test_numbers_alone_are_said(
    classes: list[ClassInfo], others: list[ClassInfo], labels: tuple[int | None, ...]
) -> None:
    assert match_classes(classes, others) == ClassMatch(labels, by_number=True)
