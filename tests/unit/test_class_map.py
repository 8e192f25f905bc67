"""The network output of each class of a dataset: by key, by a file, by ImageNet's list."""

import json
from pathlib import Path

import pytest

from penstock.commands.class_map import map_classes, read_class_map
from penstock.shard_tools.sources.imagenet import imagenet_classes
from penstock.shard_tools.sources.naming import numbered_keys
from penstock.shards.format import ClassInfo

IMAGENET = [ClassInfo(*item) for item in imagenet_classes().items()]
NUMBERS = [ClassInfo(key, str(int(key))) for key in numbered_keys(1000)]


def of(*keys: str) -> list[ClassInfo]:
    return [ClassInfo(key, key) for key in keys]


def named(*names: str) -> list[ClassInfo]:
    """Classes that are numbers, as those of Hugging Face's tables."""
    return [ClassInfo(f"{number:06d}", name) for number, name in enumerate(names)]


@pytest.mark.parametrize(
    ("network", "dataset", "labels"),
    [
        (of("a", "b", "c"), of("a", "b", "c"), [0, 1, 2]),
        (of("a", "b", "c"), of("c", "a"), [2, 0]),
        (of("a", "b"), of("a", "x", "b"), [0, -1, 1]),
        (of("000000", "000001", "000010"), of("10", "1"), [2, 1]),
        (of("1", "10", "2"), of("000002", "000010"), [2, 1]),
        (of("1", "01"), of("01", "1"), [1, 0]),
        (NUMBERS, IMAGENET[5:8], [5, 6, 7]),
        (NUMBERS, [*IMAGENET[5:8], ClassInfo("other", "other")], [5, 6, 7, -1]),
        (IMAGENET, NUMBERS, list(range(1000))),
        (IMAGENET[3:6], NUMBERS, [-1] * 3 + [0, 1, 2] + [-1] * 994),
        ([ClassInfo(f"{i:06d}", IMAGENET[i].name) for i in range(700)], IMAGENET[10:12], [10, 11]),  # named as there
        (IMAGENET, [ClassInfo("000010", "Brambling"), ClassInfo("000011", "11")], [10, 11]),
        ([ClassInfo(f"{i:06d}", f"bird {i}") for i in range(1000)], IMAGENET[:2], [-1, -1]),  # other thousand classes
        (NUMBERS[:999], IMAGENET[:2], [-1, -1]),  # nothing says that they are ImageNet's
        (NUMBERS, of("a", "b"), [-1, -1]),
        (named("ant", "bee"), named("bee", "ant"), [1, 0]),  # the same numbers for other classes
        (named("ant", "bee"), named("bee", "cow"), [1, -1]),
        (named("ant", "bee"), of("bee"), [1]),
        (named("church", "tench"), [IMAGENET[0], IMAGENET[497]], [1, 0]),
    ],
)
def test_by_key_or_imagenets_list(network: list[ClassInfo], dataset: list[ClassInfo], labels: list[int]) -> None:
    found = map_classes(network, dataset)
    assert found.labels.tolist() == labels
    assert bool(found.how) == (network != dataset)


MAPS = {
    "lines": "# network dataset\n\n10 n01530575\n000011 n01531178\n",
    "tabs": "10\tn01530575\n11\tn01531178\n",
    "json": '{"10": "n01530575", "000011": ["n01531178"]}',
    "more": "10 n01530575\n11 n01531178\n12 n01532829\n",
}


def test_numbers_that_are_other_classes_are_said() -> None:
    network, dataset = named("ant", "bee"), named("bee", "ant")
    assert map_classes(network, dataset).how == "by name"
    for other in (named("ant", "bee"), named("ant", "wasp")):  # of a wasp `lines` tells
        assert map_classes(network, other).how == ""


@pytest.mark.parametrize("name", MAPS)
def test_files(name: str, tmp_path: Path) -> None:
    path = tmp_path / "map"
    path.write_text(MAPS[name])
    found = map_classes(NUMBERS[:20], IMAGENET[10:12], path)
    assert found.labels.tolist() == [10, 11]
    assert str(path) in found.how


def test_several_classes_as_one_and_keys_with_spaces(tmp_path: Path) -> None:
    network, dataset = of("big cat", "dog"), of("dog", "lion", "sea lion", "tiger")
    for text in ("big cat\tlion\nbig cat\ttiger\n", json.dumps({"big cat": ["lion", "tiger"]})):
        (tmp_path / "map").write_text(text)
        found = map_classes(network, dataset, tmp_path / "map")
        assert found.labels.tolist() == [1, 0, -1, 0]
        assert "1 of them by key" in found.how


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a x y\n", "line 1: 'a x y' is not a pair of keys"),
        ("\na\n", "line 2: 'a' is not a pair"),
        ("z x\n", "line 1: the network has no class 'z'; it has 'a', 'b'"),
        ("x a\n", "line 1: 'x' is a class of the dataset. Write the network's class first: a x"),
        ("a x\nb x\n", "line 2: 'x' is mapped to two of the network's classes"),
        ("a q\n", "names none of the dataset's classes"),
        ('{"a": 1.5}', "Give class keys"),
        ("{", "is not a JSON object"),
    ],
)
def test_files_that_are_no_maps(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "map").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_class_map(tmp_path / "map", of("a", "b"), of("x", "y"))
    assert str(tmp_path / "map") in str(caught.value)
    assert "\n" not in str(caught.value)
