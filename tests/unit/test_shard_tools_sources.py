"""Listing: directory trees and tables as sources, selection, shuffling, and division into shards."""

import csv
import os
from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from penstock.shard_tools.classes import class_infos, keys_with_file, read_class_file
from penstock.shard_tools.encode import EncodeConfig
from penstock.shard_tools.listing import Listing, write_listing
from penstock.shard_tools.records import CHUNK, Images
from penstock.shard_tools.rejected import BadImages
from penstock.shard_tools.shard import plan_shards, shuffled
from penstock.shard_tools.sources import SOURCES, SourceOptions, open_source
from penstock.shard_tools.sources.base import ByteReader, Place, Source, SourceImage
from penstock.shard_tools.subset import Subset, parse_fractions
from penstock.shards.format import ClassInfo, key_name


def make(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * len(name))
    return root


def listed(source, work: Path, subset: Subset | None = None, seed: int = 0) -> tuple[Listing, dict[str, list]]:
    """A listing of a path or a `Source`, and its content: split → (name, class key) of each image."""
    source = open_source(source) if isinstance(source, Path) else source
    work.mkdir(exist_ok=True)
    listing = write_listing(work / "listing", source, work, subset or Subset(), seed, "here")
    found = {}
    for split, count in listing.num_images.items():
        with Images(listing.root, split) as images:
            found[split] = [(images[i].name, listing.keys[images[i].label]) for i in range(count)]
    return listing, found


class Made(Source):
    """A source of `splits[name][key]` images that do not exist."""

    format, explained = "made", "made up"

    def __init__(self, splits: dict[str, dict[str, int]], size: int = 1000):
        self.splits, self.size = splits, size

    def images(self, work):
        for split, classes in self.splits.items():
            for key, count in classes.items():
                for i in range(count):
                    name = f"{split}/{key}/{i}.jpg"
                    yield SourceImage(split, key, name, self.size, Place("file", f"/nowhere/{name}"))


def test_splits_classes_and_order(tmp_path):
    root = make(tmp_path / "s", "train/b/2.JPG", "train/b/deep/er/1.jpeg", "train/a/x.PNG", "val/b/z.bmp")
    make(root, "train/a/notes.txt", "train/a/.hidden.jpg", "train/.cache/a.jpg", "README", "train/stray.jpg")
    (root / "train/a").joinpath(os.fsdecode(b"caf\xe9\n.jpg")).write_bytes(b"12345")
    source = open_source(root)
    assert source.format == "imagefolder"
    listing, found = listed(source, tmp_path / "work")
    assert found == {
        "train": [
            (os.fsdecode(b"train/a/caf\xe9\n.jpg"), "a"),
            ("train/a/x.PNG", "a"),
            ("train/b/2.JPG", "b"),
            ("train/b/deep/er/1.jpeg", "b"),
        ],
        "val": [("val/b/z.bmp", "b")],
    }
    assert listing.size_bytes["train"] == 5 + len("train/a/x.PNG") + len("train/b/2.JPG") + len(
        "train/b/deep/er/1.jpeg"
    )
    assert sorted(source.ignored) == ["README", "train/a/notes.txt", "train/stray.jpg"]
    with Images(listing.root, "train") as images:
        image = images[0]
        assert ByteReader().read(image.name, image.place, image.size_bytes) == b"12345"


def test_a_flat_tree_is_one_split_even_with_a_class_called_train_if_the_user_says_so(tmp_path):
    make(tmp_path / "s", "plane/1.jpg", "train/2.jpg", "car/3.jpg")
    with pytest.raises(
        ValueError, match=r"'train/' can be splits by name, but 'car', 'plane' cannot.*--split-dirs none"
    ):
        open_source(tmp_path / "s")
    source = open_source(tmp_path / "s", options=SourceOptions(split_dirs="none"))
    listing, found = listed(source, tmp_path / "work")
    assert list(found) == ["train"]
    assert listing.keys == ("car", "plane", "train")


def test_other_names_of_splits_and_a_directory_loop(tmp_path):
    make(tmp_path / "s", "training/a/1.jpg", "valid/a/2.jpg")
    (tmp_path / "s/training/a/loop").symlink_to(tmp_path / "s/training")
    found = listed(tmp_path / "s", tmp_path / "work")[1]
    assert list(found) == ["train", "val"]
    assert 1 <= len(found["train"]) <= 2


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "no images"),
        (["a.jpg", "b.jpg"], "no images"),
        (["train/a/1.jpg", "val/b/2.jpg"], "class 'b' of val is not in train"),
        (["train/Cat/1.jpg", "val/cat/2.jpg"], "class 'cat' of val is spelled 'Cat' in train; rename one"),
        (["train/caf\xe9/1.jpg", "val/cafe\u0301/2.jpg"], r"'cafe.u0301' of val is spelled 'caf.xe9' in train"),
        (
            ["train/01/1.jpg", "train/02/1.jpg", "val/1/2.jpg", "val/2/2.jpg"],
            "class '1' of val is spelled '01' in train",
        ),
        (["train/a/1.jpg", "val/2.jpg"], "images without class directories .no file here seems to have their labels"),
        (["train/a/1.jpg", "val/2.jpg", "LOC_val_solution.csv"], "seem to be in .*LOC_val_solution.csv"),
        (["train/a/1.jpg", "train/b/1.txt"], "no images, .* in 'train/b'"),
        (["train/a/1.jpg", "val/a/1.txt"], "no images .* in its class directories"),
        (["train/a/1.jpg", "val/a/1.jpg", "valid/a/1.jpg"], "'val', 'valid' all mean val"),
    ],
)
def test_what_does_not_fit_is_one_clear_error(tmp_path, files, message):
    (tmp_path / "s").mkdir()
    make(tmp_path / "s", *files)
    with pytest.raises(ValueError, match=message) as caught:
        listed(open_source(tmp_path / "s", "imagefolder"), tmp_path / "work")
    assert "\n" not in str(caught.value)


def test_unknown_sources_are_told_what_is_known(tmp_path):
    make(tmp_path, "file")
    with pytest.raises(ValueError, match="no such file or directory"):
        open_source(tmp_path / "none")
    with pytest.raises(ValueError, match="not a supported kind of directory or file") as caught:
        open_source(tmp_path / "file")
    assert all(name in str(caught.value) for name in SOURCES)
    with pytest.raises(ValueError, match="which does not support --split-column"):
        open_source(tmp_path, "imagefolder", SourceOptions(split_column="x"))


def test_a_changed_file_is_noticed(tmp_path):
    make(tmp_path, "a")
    reader = ByteReader()
    for size in (0, 5):
        with pytest.raises(ValueError, match="when packing began"):
            reader.read("a", Place("file", str(tmp_path / "a")), size)


ROWS = [
    ("a/1.jpg", "cat", "train"),
    ("b/2, 3.jpg", "dog", "validation"),
    ("a/ü.jpg", "cat", "dev"),
    ("4.jpg", "dog", "train"),
]


@pytest.mark.parametrize(
    ("name", "header", "options"),
    [
        ("t.csv", ("path", "label", "split"), {}),
        ("t.TSV", ("Filename", "Class", "Set"), {}),
        ("t.csv", None, {}),
        ("t.csv", ("Bild", "Tier", "Teil"), {"image_column": "Bild", "label_column": "tier", "split_column": "3"}),
        ("t.tsv", None, {"image_column": "1", "label_column": "2", "split_column": "3"}),
    ],
)
def test_tables(tmp_path, name, header, options):
    make(tmp_path / "s", *(row[0] for row in ROWS))
    with open(tmp_path / "s" / name, "w", encoding="utf-8-sig", newline="") as stream:
        writer = csv.writer(stream, delimiter="\t" if name.lower().endswith("tsv") else ",")
        writer.writerows(([header] if header else []) + ROWS)
    source = open_source(tmp_path / "s" / name, options=SourceOptions(**options))
    assert source.format == "csv"
    listing, found = listed(source, tmp_path / "work")
    assert listing.keys == ("cat", "dog")
    assert found == {
        "train": [("a/1.jpg", "cat"), ("4.jpg", "dog")],
        "val": [("b/2, 3.jpg", "dog"), ("a/ü.jpg", "cat")],
    }


def test_numbers_as_labels_keep_their_order(tmp_path):
    make(tmp_path, *(f"{i}.jpg" for i in range(12)))
    (tmp_path / "t.csv").write_text("path,label\n" + "".join(f"{i}.jpg,{i}\n" for i in reversed(range(12))))
    listing, found = listed(tmp_path / "t.csv", tmp_path / "work")
    assert [int(key) for _, key in found["train"]] == list(reversed(range(12)))
    assert [int(key) for key in listing.keys] == list(range(12))


@pytest.mark.parametrize(
    ("keys", "note"),
    [("0 1 2", ""), ("0 1 10 2", "the label of '10' is 2"), ("1 2", "the label of '1' is 0"), ("1 a", "")],
)
def test_class_directories_that_are_numbers_are_sorted_as_text_with_a_line(tmp_path, keys, note):
    make(tmp_path / "s", *(f"train/{key}/1.jpg" for key in keys.split()))
    listing, _ = listed(tmp_path / "s", tmp_path / "w")
    assert listing.keys == tuple(keys.split())
    lines = (
        [f"the class names are numbers, but labels follow their order as text (as in torchvision): {note}"]
        if note
        else []
    )
    assert list(listing.notes) == lines


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("path,label\n1.jpg,cat\nnone.jpg,dog\n", "1 of 2 image.s. cannot be used:\n  none.jpg: line 3: no such file"),
        ("path,label\n1.jpg,cat\n1.jpg,\n", "1.jpg: line 3: has no label"),
        ("path,label\n1.jpg,cat\n\n1.jpg\n", "1.jpg: line 4: has no label"),
        (
            "path,label\n1.jpg,cat\n1.jpg,7\n",
            "line 3: numbers and names are mixed: the label 7, but 'cat' before .line 2.",
        ),
        ("path,name\n1.jpg,cat\n", "no column for the label in its first line path, name; .*--label-column"),
        ("path,split,name\n1.jpg,train,cat\n", "no column for the label"),
        ('path,label\n"1.jpg,cat\n', "line 2 is malformed"),
        ("path,label,split\n1.jpg,cat,../x\n", "split name '../x'"),
        ("path,label,split\n1.jpg,cat,train\n1.jpg,dog,val\n", "class 'dog' of val is not in train"),
    ],
)
def test_what_is_wrong_with_a_table_is_one_clear_error(tmp_path, text, message):
    make(tmp_path, "1.jpg")
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        listed(tmp_path / "t.csv", tmp_path / "work")
    assert "\n" not in str(caught.value) or isinstance(caught.value, BadImages)


def test_a_split_is_stratified_seeded_and_whole(tmp_path):
    source = Made(
        {
            "train": {"a": 100, "b": 57, "c": 3, "d": 1, "e": 5, "f": 5, "g": 5, "h": 4}
            | dict.fromkeys("ijklmnopqrst", 1)
        }
    )
    subset = Subset(fractions=parse_fractions("train=0.8, val=0.1,test=0.1"))
    found = listed(source, tmp_path / "a", subset)[1]
    assert sorted(chain(*found.values())) == sorted(listed(source, tmp_path / "b")[1]["train"])
    assert list(found) == ["train", "val", "test"]
    for split, fraction in subset.fractions:
        counts = Counter(key for _, key in found[split])
        for key, count in source.splits["train"].items():
            assert abs(counts[key] - count * fraction) <= 1, (split, key)
        assert abs(len(found[split]) - 192 * fraction) <= 3
    assert {key for _, key in found["train"]} == set("abcdefghijklmnopqrst")
    assert listed(source, tmp_path / "c", subset)[1] == found
    assert listed(source, tmp_path / "d", subset, seed=1)[1]["val"] != found["val"]
    with pytest.raises(ValueError, match="already has the splits train, val"):
        listed(Made({"train": {"a": 1}, "val": {"a": 1}}), tmp_path / "e", subset)


@pytest.mark.parametrize(
    "text", ["train=0.8", "train=0.5,val=0.6", "train", "a=0.5,a=0.5", "a/b=0.5,c=0.5", "a=1.5,b=-0.5"]
)
def test_no_such_split(text):
    with pytest.raises(ValueError, match="split: "):
        Subset(fractions=parse_fractions(text))


def test_subsets(tmp_path):
    source = Made({"train": {"a": 50, "b": 3, "c": 50}, "val": {"a": 10, "b": 10}})
    everything = listed(source, tmp_path / "w")[1]
    listing, found = listed(source, tmp_path / "w", Subset(per_class=5))
    assert Counter(key for _, key in found["train"]) == {"a": 5, "b": 3, "c": 5}
    assert Counter(key for _, key in found["val"]) == {"a": 5, "b": 5}
    assert all(set(found[split]) <= set(everything[split]) for split in found)
    assert found["train"][:5] != everything["train"][:5]  # drawn, not the first
    listing, found = listed(source, tmp_path / "w", Subset(limit=7))
    assert (listing.num_images, listing.size_bytes) == ({"train": 7, "val": 7}, {"train": 7000, "val": 7000})
    assert listing.keys == ("a", "b", "c")  # labels do not depend on the limit
    listing, found = listed(source, tmp_path / "w", Subset(only_classes=frozenset("ca"), limit=30))
    assert listing.keys == ("a", "c")
    assert {key for _, key in found["train"]} == {"a", "c"}
    with pytest.raises(ValueError, match="no class 'x'"):
        listed(source, tmp_path / "w", Subset(only_classes=frozenset("ax")))


def test_fixed_classes_keep_their_labels(tmp_path):
    """In the source's order, with or without images. The chosen classes are numbered from 0 again."""
    source = Made({"train": {"c": 2, "a": 1}, "val": {"a": 1, "d": 3}})
    source.fixed_classes = lambda: ["d", "c", "b", "a"]
    listing, found = listed(source, tmp_path / "w")
    assert listing.keys == ("d", "c", "b", "a")
    assert [key for _, key in found["train"]] == ["c", "c", "a"]
    assert [key for _, key in found["val"]] == ["a", "d", "d", "d"]
    assert listing.notes == (
        "1 of 4 classes have no images but keep their labels: 'b'",
        "1 class(es) have images in val but none in train: 'd'",
    )
    listing, found = listed(source, tmp_path / "w", Subset(only_classes=frozenset("ad"), per_class=2))
    assert listing.keys == ("d", "a")
    assert Counter(key for _, key in found["val"]) == {"d": 2, "a": 1}
    assert "labels are renumbered 0 … 1 ('d', 'a')" in listing.notes[0]
    source.splits = {"train": {"c": 7, "a": 5}}
    listing, found = listed(source, tmp_path / "w", Subset(fractions=parse_fractions("train=0.6,val=0.4")))
    assert listing.keys == ("d", "c", "b", "a")
    assert Counter(key for split in found.values() for _, key in split) == {"c": 7, "a": 5}


def test_a_listing_longer_than_its_chunks(tmp_path):
    """Chosen rows, sizes and shards across the border of a chunk, against plain Python."""
    source = Made({"train": {"b": CHUNK - 10, "a": 30}}, size=700)
    listing, found = listed(source, tmp_path / "w", Subset(per_class=CHUNK - 20))
    assert Counter(key for _, key in found["train"]) == {"b": CHUNK - 20, "a": 30}
    assert (listing.sizes("train") == 700).all()
    total = CHUNK + 10
    few = listed(source, tmp_path / "few", Subset(per_class=25))[1]
    assert Counter(key for _, key in few["train"]) == {"b": 25, "a": 25}
    jobs = plan_shards(tmp_path, listing, "train", 10_000, 50_000 * 2560, 3, EncodeConfig())
    assert [job.count for job in jobs] == [10_000] * (total // 10_000) + [total % 10_000]
    assert [job.first for job in jobs] == list(range(0, total, 10_000))
    assert sum(job.size_bytes for job in jobs) == 700 * total
    order = shuffled(np.arange(total), total, 3, "train")
    assert sorted(order) == list(range(total))
    assert not np.array_equal(order, shuffled(np.arange(total), total, 4, "train"))
    assert not np.array_equal(order, shuffled(np.arange(total), total, 3, "val"))


def test_shards_are_cut_as_one_would_by_hand(tmp_path):
    source = Made({"train": {"a": 500}})
    rng = np.random.default_rng(0)
    listing = listed(source, tmp_path / "w")[0]
    sizes = rng.integers(1, 5000, 500).astype("<u4")
    sizes.tofile(listing.root / "train.sizes")
    by_position = sizes[shuffled(np.arange(500), 500, 0, "train")].tolist()
    for samples, size in ((64, 1 << 30), (10**6, 20_000), (7, 12_000), (10**6, 1)):
        expected, count, used = [], 0, 0
        for image in by_position:
            added = 1024 + 512 + -(-image // 512) * 512  # .cls, header, blocks
            if count and (count == samples or used + added > size):
                expected.append(count)
                count = used = 0
            count, used = count + 1, used + added
        jobs = plan_shards(tmp_path, listing, "train", samples, size, 0, EncodeConfig())
        assert [job.count for job in jobs] == [*expected, count]


@pytest.mark.parametrize(
    ("keys", "lines", "names"),
    [
        (3, "1 star\n2 stars\n3 stars", ["1 star", "2 stars", "3 stars"]),
        (4, "2 euro\n1 euro\n3 euro\n0 euro", ["2 euro", "1 euro", "3 euro", "0 euro"]),
        (3, "500 Fiat\n911 Porsche\n2 CV", ["500 Fiat", "911 Porsche", "2 CV"]),
        (3, "2019\n2020\n2021", ["2019", "2020", "2021"]),
        (4, "8\n9\nA\nB", ["8", "9", "A", "B"]),
        (3, "2 cat\n0 ant\n1 bee", ["ant", "bee", "cat"]),
        (4, "id name\n1,cat\n3,ant\n2,bee", [None, "cat", "bee", "ant"]),
        (["hot", "hot dog"], "hot heat\nhot dog Hot Dog!", ["heat", "Hot Dog!"]),
        (["hot", "hot dog"], "hot dog\thot dog sandwich", [None, "hot dog sandwich"]),
    ],
)
def test_lines_of_a_class_file(tmp_path: Path, keys: int | list[str], lines: str, names: list[str | None]) -> None:
    (tmp_path / "names.txt").write_text(lines)
    known = [f"{label:06d}" for label in range(keys)] if isinstance(keys, int) else keys
    assert keys_with_file(known, tmp_path / "names.txt") == known
    found = read_class_file(tmp_path / "names.txt", known)
    assert [found.get(key) for key in known] == names


def test_names_of_classes(tmp_path):
    keys = ("000007", "n01440764", "other")
    (tmp_path / "names.txt").write_text("# key name\nn01440764 Schleie, Tinca\n7  seven\n\nmore x\n")
    given = read_class_file(tmp_path / "names.txt", keys)
    assert [info.name for info in class_infos(keys, {"other": "theirs"}, given)] == [
        "seven",
        "Schleie, Tinca",
        "theirs",
    ]
    assert [info.name for info in class_infos(keys, {}, {})] == ["000007", "tench", "other"]
    (tmp_path / "names.json").write_text('{"other": "mine"}')
    assert read_class_file(tmp_path / "names.json", keys) == {"other": "mine"}
    for text, message in (("[1]", "names none of the classes"), ('{"other": 1}', "is not text"), ("{", "not a JSON")):
        (tmp_path / "bad").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_class_file(tmp_path / "bad", keys)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (["n01440764", "n15075141"], "wnid"),
        (["n01440764", "unknown"], "class"),
        (["000010"], "class"),
        (["n0144076"], "class"),
        (["n014407641"], "class"),
        (["n0144076\u0664"], "class"),
    ],
)
def test_only_wordnet_ids_are_called_wnids(keys, expected):
    assert key_name([ClassInfo(key, "a name") for key in keys]) == expected
