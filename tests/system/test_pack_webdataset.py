"""WebDataset tars from elsewhere: class numbers that are kept, class names, fields, and unusable samples.

`pack` and `index` agree. Packed samples are read back with webdataset.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from click.testing import CliRunner

from penstock.shard_tools.__main__ import main
from penstock.shard_tools.describe import describe, histograms, summary
from penstock.shard_tools.index import index
from penstock.shard_tools.repair import repair
from penstock.shard_tools.sources import SourceOptions, open_source
from penstock.shard_tools.sources.base import SourceImage, Unusable
from penstock.shard_tools.sources.imagenet import imagenet_classes
from penstock.shard_tools.sources.tarsamples import Fields
from penstock.shard_tools.subset import Subset
from penstock.shard_tools.verify import verify
from penstock.shard_tools.writer import PackOptions, pack
from penstock.shards.format import INFO_FILE, ClassInfo, ShardSet, unescape
from tests.common.source_images import jpeg, write_tar

IMAGENET = list(imagenet_classes())
TRAIN, VAL = (10, 388, 700, 10, 2), (10, 388, 3)
Sample = tuple[str, dict[str, bytes]]


def shard(path: Path, *samples: Sample) -> Path:
    return write_tar(path, [(f"{key}.{field}", data) for key, fields in samples for field, data in fields.items()])


def sample(number: int, label: object, **about: object) -> Sample:
    """A sample with a .cls, and a .json with `about`."""
    beside = {"json": json.dumps(about).encode()} if about else {}
    return f"s{number}", {"jpg": jpeg(number), "cls": str(label).encode(), **beside}


def packed(root: Path, out: Path, lines: list[str] | None = None, **settings: Any) -> ShardSet:
    with ThreadPoolExecutor(1) as executor:
        say = (lines if lines is not None else []).append
        return pack(root, out, PackOptions(**settings), executor=executor, say=say).shard_set


def indexed(root: Path, lines: list[str] | None = None, **settings: Any) -> ShardSet:
    with ThreadPoolExecutor(1) as executor:
        return index(root, executor=executor, say=(lines if lines is not None else []).append, **settings)


def both(root: Path, **settings: Any) -> tuple[ClassInfo, ...]:
    """The classes, after checking that `pack` and `index` agree on them."""
    classes = indexed(root, **settings).classes
    assert packed(root, root.with_name("out"), **settings).classes == classes
    return classes


def labels(shard_set: ShardSet) -> dict[bytes, int]:
    """Image → label, as webdataset reads the shards."""
    found = {}
    for split in shard_set.splits.values():
        urls = [str(split.shard_path(i)) for i in range(len(split.shards))]
        found |= {each["jpg"]: int(each["cls"]) for each in webdataset.WebDataset(urls, shardshuffle=False)}
    return found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A dataset of several shards with some of many labels, one of which is in val but not in train."""
    root = tmp_path / "wds"
    shard(root / "train-0.tar", *(sample(i, label) for i, label in enumerate(TRAIN)))
    shard(root / "validation-0.tar", *(sample(i, label) for i, label in enumerate(VAL, 20)))
    return root


def test_numbers_stay_what_they_are(root: Path, tmp_path: Path) -> None:
    notes: list[list[str]] = [[], []]
    shard_sets = packed(root, tmp_path / "out", notes[0]), indexed(root, notes[1])
    expected = {jpeg(i): label for i, label in enumerate(TRAIN)} | {jpeg(i): label for i, label in enumerate(VAL, 20)}
    assert labels(shard_sets[0]) == labels(shard_sets[1]) == expected
    for shard_set, said in zip(shard_sets, notes, strict=True):
        for name, split in shard_set.splits.items():
            assert sorted(split.samples["label"]) == sorted(TRAIN if name == "train" else VAL)
        assert shard_set.classes == tuple(ClassInfo(f"{i:06d}", str(i)) for i in range(701))
        assert any("696 of 701 classes have no images" in line for line in said), said
        assert any("1 class(es) have images in val but none in train: '000003'" in line for line in said), said
        assert verify(shard_set.root, decode=True) == []
        assert "0 to 2 per class" in summary(describe(shard_set))
        assert "697 classes" in histograms(describe(shard_set))
    again = packed(tmp_path / "out", tmp_path / "again")
    assert (labels(again), again.classes) == (expected, shard_sets[0].classes)


@pytest.mark.parametrize("before", ["n01440764 ", "0 ", "\ufeff0 "])
def test_numbers_and_wnids_before_names_beside_the_tars(tmp_path: Path, before: str) -> None:
    shard(tmp_path / "wds/train-0.tar", sample(1, 0))
    (tmp_path / "wds/classes.txt").write_text(f"{before}great tench\n")
    assert both(tmp_path / "wds") == (ClassInfo("000000", "great tench"),)


@pytest.mark.parametrize("where", ["beside", "class file", "json"])
def test_a_thousand_names_are_a_thousand_classes(root: Path, where: str) -> None:
    names = [f"name of {i}" for i in range(1000)]
    settings: dict[str, Any] = {}
    if where == "beside":
        (root / "classes.txt").write_text("\n".join(names))
    else:
        settings["class_file"] = root.with_name("names")
        lines = "\n".join(f"{i} {name}" for i, name in enumerate(names))
        settings["class_file"].write_text(lines if where == "class file" else json.dumps(names))
    assert both(root, **settings) == tuple(ClassInfo(f"{i:06d}", name) for i, name in enumerate(names))
    assert sorted(indexed(root).splits["train"].samples["label"]) == sorted(TRAIN)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["10 ten", "0002\ttwo words"], {2: "two words", 10: "ten", 700: "700"}),
        (["id,name", *(f"{i},the {i}th" for i in range(701))], {0: "the 0th", 10: "the 10th", 700: "the 700th"}),
        (["2: two words", "10;ten"], {2: "two words", 10: "ten"}),
        ([f"the {i}th" for i in range(701)], {2: "the 2th", 10: "the 10th"}),
        ([f"{wnid} {name}, and so on" for wnid, name in imagenet_classes().items()], {10: "brambling, and so on"}),
        (['{"10": ["n01530575", "Bergfink"]}'], {10: "Bergfink"}),
    ],
)
def test_class_files_for_numbers(root: Path, lines: list[str], expected: dict[int, str]) -> None:
    path = root.with_name("names")
    path.write_text("\n".join(lines))
    classes = both(root, class_file=path)
    assert {label: classes[label].name for label in expected} == expected
    assert len(classes) == (1000 if "n01440764" in lines[0] else 701)


@pytest.mark.parametrize(
    ("text", "message"),
    [("cat\ndog\n", "its 2 lines have no numbers"), ("99999999 far\n", "more than 1,000,000 classes")],
)
def test_class_files_that_do_not_fit(root: Path, text: str, message: str) -> None:
    (root / "names").write_text(text)
    result = CliRunner().invoke(main, ["index", str(root), "--workers", "1", "--classes", str(root / "names")])
    assert result.exit_code == 1
    assert message in result.output
    assert str(root / "names") in result.output
    assert not (root / INFO_FILE).exists()


NAMED = [
    ({"class_name": "a ten"}, {"class_name": "a two"}, ("a ten", "a two")),
    ({"name": "a ten"}, {"name": "a two"}, ("a ten", "a two")),
    ({"wnid": IMAGENET[10]}, {"wnid": IMAGENET[2]}, ("brambling", "great white shark")),
    ({"synset": IMAGENET[10], "label_name": "x"}, {"synset": IMAGENET[2]}, ("x", "great white shark")),
    (
        {"filename": f"train/{IMAGENET[10]}_18.JPEG"},
        {"filename": f"{IMAGENET[2]}/{IMAGENET[2]}_1.JPEG"},
        ("brambling", "great white shark"),
    ),
    ({"wnid": "n99999999"}, {"wnid": "n99999998"}, ("n99999999", "n99999998")),
    ({"class_name": "thing", "name": "ten.jpg"}, {"class_name": "thing", "name": "two.jpg"}, ("10", "2")),  # of no use
    ({"wnid": IMAGENET[10]}, {"wnid": IMAGENET[10]}, ("10", "2")),
    ({"class_name": 10}, {"class_name": "\ud800"}, ("10", "2")),
]


@pytest.mark.parametrize(("ten", "two", "names"), NAMED)
def test_names_from_what_the_samples_say(
    tmp_path: Path, ten: dict[str, object], two: dict[str, object], names: tuple[str, str]
) -> None:
    about = {10: ten, 2: two}
    for name, numbers in (("train-0", {1: 10, 2: 2, 3: 10}), ("train-1", {4: 2}), ("val-0", {5: 10})):
        samples = [sample(i, label, **about[label]) for i, label in numbers.items()]
        shard(tmp_path / "wds" / f"{name}.tar", *samples)
    classes = both(tmp_path / "wds")
    assert (classes[10].name, classes[2].name) == names
    assert [info.wnid for info in classes] == [f"{i:06d}" for i in range(11)]


def test_what_differs_within_a_class_is_no_name(tmp_path: Path) -> None:
    """`name` differs between two shards, the wnids in the images' own names agree."""
    root = tmp_path / "wds"
    for number in range(2):
        fields = {"jpg": jpeg(number), "cls": b"10", "json": json.dumps({"name": f"image {number}"}).encode()}
        shard(root / f"train-{number}.tar", (f"{IMAGENET[10]}_{number}", fields))
    lines: list[str] = []
    assert packed(root, tmp_path / "out", lines).classes == indexed(root, lines).classes
    assert indexed(root).classes[10].name == "brambling"
    said = [line for line in lines if "is not used for class names" in line]
    assert len(said) == 2
    assert all("class 10 has both 'image 0' and 'image 1'" in line for line in said)


def test_text_labels_have_names_too(tmp_path: Path) -> None:
    samples = [sample(i, "dax" if i % 2 else "fep", class_name="a dax" if i % 2 else "a fep") for i in range(4)]
    shard(tmp_path / "wds/train-0.tar", *samples)
    assert both(tmp_path / "wds") == (ClassInfo("dax", "a dax"), ClassInfo("fep", "a fep"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [(b"7", 7), (b" 007\n", 7), (b"7.0", 7), (b"+7", 7), (b"\xef\xbb\xbf7", 7), (b"x7", "x7"), (b"1e1", 10)],
)
def test_labels_as_they_are_written(tmp_path: Path, text: bytes, expected: int | str) -> None:
    shard(tmp_path / "wds/train-0.tar", ("a", {"jpg": jpeg(1), "cls": text}))
    classes = both(tmp_path / "wds")
    assert classes[-1].wnid == (f"{expected:06d}" if isinstance(expected, int) else expected)
    assert len(classes) == (expected + 1 if isinstance(expected, int) else 1)


def test_only_some_classes_are_numbered_anew(root: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    shard_set = packed(root, tmp_path / "out", lines, subset=Subset(only_classes=frozenset({"10", "000388"})))
    assert shard_set.classes == (ClassInfo("000010", "10"), ClassInfo("000388", "388"))
    assert labels(shard_set) == {jpeg(0): 0, jpeg(1): 1, jpeg(3): 0, jpeg(20): 0, jpeg(21): 1}
    assert any("labels are renumbered 0 … 1 ('000010', '000388')" in line for line in lines)
    with pytest.raises(ValueError, match="has no class '701'"):
        packed(root, tmp_path / "none", subset=Subset(only_classes=frozenset({"701"})))


FIELDS = {
    "input.jpg": jpeg(1), "target.png": jpeg(2, "PNG"), "img": jpeg(3), "output.cls": b"1", "class.cls": b"2",
    "label.txt": b"three", "meta.json": b'{"y": 4, "label": 5}',
}  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "image", "key"),
    [
        (Fields("input.jpg", "output.cls"), jpeg(1), "000001"),
        (Fields("Target.PNG", "class.cls"), jpeg(2, "PNG"), "000002"),
        (Fields("img", "label.txt"), jpeg(3), "three"),
        (Fields(".img", "meta.json.y"), jpeg(3), "000004"),
        (Fields("png;jpg;input.jpg", "meta.json"), jpeg(1), "000005"),
    ],
)
def test_fields_are_what_is_asked_for(tmp_path: Path, fields: Fields, image: bytes, key: str) -> None:
    root = tmp_path / "wds"
    shard(root / "train-0.tar", ("a", FIELDS))
    shard_set = indexed(root, fields=fields)
    row = shard_set.splits["train"].samples[0]
    with open(root / "train-0.tar", "rb") as stream:
        stream.seek(row["offset"])
        assert stream.read(row["size"]) == image
    assert shard_set.classes[row["label"]].wnid == key
    assert verify(root, decode=True) == []
    found = list(
        open_source(root, options=SourceOptions(**{f"{k}_field": v for k, v in vars(fields).items()})).images(root)
    )
    assert [(each.key, each.place.offset) for each in found if isinstance(each, SourceImage)] == [(key, row["offset"])]


def test_an_index_does_not_change_what_is_packed(tmp_path: Path) -> None:
    root = tmp_path / "wds"
    shard(root / "train-0.tar", ("a", FIELDS))
    assert [info.wnid for info in indexed(root, fields=Fields("img", "label.txt")).classes] == ["three"]
    options = SourceOptions(image_field="img", label_field="output.cls")
    assert [info.wnid for info in packed(root, tmp_path / "out", source_options=options).classes] == [
        "000000",
        "000001",
    ]


def test_mending_keeps_fields_and_names(tmp_path: Path) -> None:
    root = tmp_path / "wds"
    shard(root / "train-0.tar", ("a", FIELDS))
    (tmp_path / "names").write_text("1 one\n3 three\n")
    before = indexed(root, fields=Fields("input.jpg", "output.cls"), class_file=tmp_path / "names")
    (root / "train.samples.npy").unlink()
    repair(root, workers=1)
    after = ShardSet.open(root)
    assert after.classes == before.classes
    assert [info.name for info in after.classes] == ["0", "one", "2", "three"]
    assert np.array_equal(after.splits["train"].samples, before.splits["train"].samples)
    assert verify(root) == []


@pytest.mark.parametrize(
    ("options", "fields", "message"),
    [
        ([], {"input.jpg": jpeg(1), "output.cls": b"1"}, ""),  # plain
        ([], {"a.jpg": jpeg(1), "b.jpg": jpeg(2), "cls": b"1"}, "choose one with --image-field (a.jpg, b.jpg)"),
        ([], {"jpg": jpeg(1), "a.cls": b"1", "b.cls": b"2"}, "choose one with --label-field (a.cls, b.cls)"),
        ([], {"img": jpeg(1), "cls": b"1"}, "no image (fields img, cls); set --image-field to the image's field"),
        ([], {"jpg": jpeg(1), "json": b'{"y": 1}'}, "no label (fields jpg, json; keys of its .json: y); "),
        (["--image-field", "png"], {"jpg": jpeg(1), "cls": b"1"}, "its samples have no field png (--image-field)"),
        (["--label-field", "txt"], {"jpg": jpeg(1), "cls": b"1"}, "they have cls, jpg"),
        (["--label-field", "json.z"], {"jpg": jpeg(1), "json": b'{"y": 1}'}, "no label called json.z"),
        ([], {"jpg": jpeg(1), "cls": b"123456789"}, "train-0.tar/s.jpg: label 123456789 would make more than"),
    ],
)
def test_fields_that_have_to_be_named(
    tmp_path: Path, options: list[str], fields: dict[str, bytes], message: str
) -> None:
    root = tmp_path / "wds"
    shard(root / "train-0.tar", ("s", fields))
    for command in (["pack", str(root), str(tmp_path / "out")], ["index", str(root)]):
        result = CliRunner().invoke(main, [*command, "--workers", "1", *options])
        assert result.exit_code == (1 if message else 0), result.output
        assert message in result.output
        assert "Traceback" not in result.output
        assert result.exception is None or isinstance(result.exception, SystemExit)


def test_the_tables_of_img2dataset_are_no_parquet_set(tmp_path: Path) -> None:
    root = tmp_path / "wds"
    shard(root / "00000.tar", ("0", {"jpg": jpeg(1), "txt": b"a cat", "json": b'{"key": "0", "label": 1}'}))
    (root / "00000.parquet").write_bytes(b"keys, captions, URLs")
    assert [info.wnid for info in both(root)] == ["000000", "000001"]


BAD = {
    "no label": ({"jpg": jpeg(2)}, "its sample has no label (fields jpg)"),
    "alone": ({"jpg": jpeg(2)}, "follow each other in the tar; a tar of class directories must be unpacked"),
    "empty": ({"jpg": jpeg(2), "cls": b""}, "no label, but ''"),
    "hidden": ({"jpg": jpeg(2), "cls": b"-1"}, "no label, but '-1'"),
    "list": ({"jpg": jpeg(2), "json": b"[1]"}, "no label, but '[1]'"),
    "minus": ({"jpg": jpeg(2), "json": b'{"label": -1}'}, "no label, but '-1'"),
    "half a character": ({"jpg": jpeg(2), "json": b'{"label": "\\ud800", "\\ud800": 1}'}, "no label, but '\\ud800'"),
    "fraction": ({"jpg": jpeg(2), "cls": b"7.5"}, "no label, but '7.5'"),
    "list in text": ({"jpg": jpeg(2), "cls": b"[1]"}, "no label, but '[1]'"),
    "bytes": ({"jpg": jpeg(2), "cls": b"\x93NUMPY\x01\x00"}, "no label, but '\ufffdNUMPY\\x01\\x00'"),
    "truth": ({"jpg": jpeg(2), "json": b'{"label": true}'}, "no label, but 'True'"),
    "no image": ({"tif": b"x", "cls": b"1"}, "its sample has no image (fields tif, cls)"),
}


@pytest.mark.parametrize("case", BAD)
def test_samples_that_cannot_be_used(tmp_path: Path, case: str) -> None:
    root, (fields, reason) = tmp_path / "wds", BAD[case]
    shard(root / "train-0.tar", sample(1, 0), ("bad", fields), sample(3, 1))
    _, bad, _ = open_source(root).images(tmp_path)
    assert isinstance(bad, Unusable)
    assert (bad.split, bad.name.partition(".")[0]) == ("train", "train-0")
    assert reason in bad.reason
    assert "bad." not in bad.reason
    result = CliRunner().invoke(main, ["index", str(root), "--workers", "1"])
    assert result.exit_code == 1
    assert reason in result.output
    shard_set = indexed(root, on_bad="skip")
    assert len(shard_set.splits["train"]) == 2
    (line,) = (root / "rejected.tsv").read_text().splitlines()[1:]
    assert unescape(line) == f"{bad.name}\t{bad.reason}"
    assert verify(root, decode=True) == []


def test_a_test_split_without_labels_is_left_out(root: Path, tmp_path: Path) -> None:
    shard(root / "test-0.tar", *(sample(i, -1) for i in (40, 41)))
    notes: list[list[str]] = [[], []]
    for shard_set in packed(root, tmp_path / "out", notes[0]), indexed(root, notes[1]):
        assert set(shard_set.splits) == {"train", "val"}
        assert shard_set.made["rejected"] == 0
    assert all(
        any("test: skipped, because none of its 2 images has a label" in line for line in said) for said in notes
    )
    shard(root / "test-1.tar", sample(42, 1))  # a test split after all
    assert [type(each) for each in open_source(root).images(tmp_path)][-3:] == [Unusable, Unusable, SourceImage]


def test_what_systems_leave_in_tars_is_no_sample(tmp_path: Path) -> None:
    root = tmp_path / "wds"
    left = [("__MACOSX/d/a.jpg", b"x"), ("d/@eaDir/a.jpg", b"x"), ("d/._a.jpg", b"x")]
    write_tar(root / "train-0.tar", [*left, ("d/a.jpg", jpeg(1)), ("d/a.cls", b"0")])
    source = open_source(root)
    assert [each.name for each in source.images(tmp_path)] == ["train-0.tar/d/a.jpg"]
    assert source.ignored == [f"train-0.tar/{name}" for name, _ in left]
    assert indexed(root).made["ignored"] == 3


def test_labels_that_are_several_of_the_others_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "wds"
    shard(root / "train-0.tar", sample(1, "scab"), sample(2, "scab|rust"), sample(3, "rust"))
    for make in (lambda: packed(root, tmp_path / "out"), lambda: indexed(root)):
        with pytest.raises(ValueError, match=r"train-0.tar: the label 'scab\|rust' combines several labels"):
            make()
