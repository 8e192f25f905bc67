"""Realistic Parquet tables, written with pyarrow: columns of many types, differing class lists, layouts."""

import json
import os
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from penstock.shard_tools.sources import SourceOptions, open_source
from penstock.shard_tools.sources.base import Source, SourceImage, Unusable, read_bytes
from penstock.shard_tools.sources.imagenet import imagenet_classes
from tests.common.source_images import jpeg, one_line

IMAGES = [b"first", b"second", b"third"]
Seen = list[tuple[str, bytes, str]]
NAMES = ["zebra", "ant", "moth"]


def save(path: Path, image: Any, label: Any, names: list[str] | None = None) -> Path:
    """One table; `names` go into Hugging Face's note."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"image": image, "label": label})
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)
    return path


def labelled(path: Path, labels: Any, names: list[str] | None = None) -> Path:
    """A table whose images are text: the split's file and the row."""
    return save(path, [f"{path.stem} {row}".encode() for row in range(len(labels))], labels, names)


def read(source: Source | Path, work: Path) -> tuple[Seen, list[tuple[str, str]]]:
    """(split, content, class key) of the images, (name, reason) of the unusable ones."""
    source = open_source(source) if isinstance(source, Path) else source
    found = list(source.images(work))
    images = [image for image in found if isinstance(image, SourceImage)]
    assert len({(image.split, image.name) for image in images}) == len(images)
    seen = [(i.split, read_bytes(i.name, i.place, i.size_bytes), i.key) for i in images]
    return seen, [(image.name, image.reason) for image in found if isinstance(image, Unusable)]


def structs(values: list[bytes | None], kind: pa.DataType) -> pa.Array:
    return pa.array(
        [{"path": None, "more": 1, "bytes": value} for value in values],
        pa.struct([("path", pa.string()), ("more", pa.int8()), ("bytes", kind)]),
    )


EQUAL = [image.ljust(6) for image in IMAGES]
IMAGE_COLUMNS = {
    "binary": pa.array(IMAGES),
    "large_binary": pa.array(IMAGES, pa.large_binary()),
    "binary_view": pa.array(IMAGES, pa.binary_view()),
    "dictionary": pa.array(IMAGES).dictionary_encode(),
    "fixed-size": pa.array(EQUAL, pa.binary(6)),
    "uint8": pa.array(map(list, IMAGES), pa.list_(pa.uint8())),
    "int8": pa.array(map(list, IMAGES), pa.list_(pa.int8())),
    "int64": pa.array(map(list, IMAGES), pa.list_(pa.int64())),
    "large_list": pa.array(map(list, IMAGES), pa.large_list(pa.uint8())),
    "list_view": pa.array(map(list, IMAGES), pa.list_view(pa.uint8())),
    "fixed_size_list": pa.array(map(list, EQUAL), pa.list_(pa.uint8(), 6)),
    "struct": structs(IMAGES, pa.binary()),
    "struct of large": structs(IMAGES, pa.large_binary()),
    "struct of lists": structs([list(image) for image in IMAGES], pa.list_(pa.uint8())),
    "struct without path": pa.array([{"bytes": image} for image in IMAGES]),
}


@pytest.mark.parametrize("kind", IMAGE_COLUMNS)
def test_types_of_images(tmp_path: Path, kind: str) -> None:
    column = IMAGE_COLUMNS[kind]
    content = EQUAL if kind.startswith("fixed") else IMAGES
    save(tmp_path / "s/train.parquet", column, [0, 1, 0])
    seen, unusable = read(tmp_path / "s", tmp_path)
    assert (seen, unusable) == ([("train", c, f"{i % 2:06d}") for i, c in enumerate(content)], [])


def test_high_bytes_in_lists(tmp_path: Path) -> None:
    data = bytes(range(256))
    signed = [byte - 256 if byte > 127 else byte for byte in data]
    for kind, values in ((pa.uint8(), list(data)), (pa.int8(), signed), (pa.int32(), list(data))):
        save(tmp_path / f"{kind}/train.parquet", pa.array([values], pa.list_(kind)), [0])
        assert read(tmp_path / str(kind), tmp_path)[0] == [("train", data, "000000")]


PATHS = ["a/0.jpg", "1.jpg", "2.jpg"]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(PATHS),
        pa.array(PATHS, pa.large_string()),
        pa.array(PATHS, pa.string_view()),
        pa.array(PATHS).dictionary_encode(),
        pa.array([{"path": path} for path in PATHS]),
        pa.array([{"bytes": None, "path": path} for path in PATHS]),
        pa.array(
            [{"bytes": None, "path": path} for path in PATHS],
            pa.struct([("bytes", pa.binary()), ("path", pa.large_string())]),
        ),
    ],
    ids=lambda column: str(column.type)[:40],
)
def test_paths_of_images(tmp_path: Path, column: pa.Array) -> None:
    """Paths relative to the file, then relative to the source; absolute paths; and missing files."""
    root = tmp_path / "s"
    save(root / "data/train.parquet", column, [0, 1, 0])
    for file, content in {"data/a/0.jpg": "0", "data/1.jpg": "1", "1.jpg": "other", "2.jpg": "2"}.items():
        (root / file).parent.mkdir(exist_ok=True)
        (root / file).write_text(content)
    seen, unusable = read(root, tmp_path)
    assert [content for _, content, _ in seen] == [b"0", b"1", b"2"]
    assert not unusable
    (root / "2.jpg").rename(tmp_path / "2.jpg")
    seen, unusable = read(root, tmp_path)
    assert len(seen) == 2
    assert unusable == [("train.parquet/0000002/2.jpg", "has no bytes and no usable path (no such file)")]
    save(root / "data/train.parquet", [str(tmp_path / "2.jpg")], [0])
    assert read(root, tmp_path)[0] == [("train", b"2", "000000")]


def test_rows_without_image_or_label(tmp_path: Path) -> None:
    rows = [{"bytes": b"x", "path": None}, None, {"bytes": None, "path": None}, {"bytes": b"y", "path": "y.jpg"}]
    save(tmp_path / "s/train.parquet", rows, [0, 1, 0, None])
    seen, unusable = read(tmp_path / "s", tmp_path)
    assert seen == [("train", b"x", "000000")]
    assert unusable == [
        ("train.parquet/0000001", "has no image (null)"),
        ("train.parquet/0000002", "has no image (null)"),
        ("train.parquet/0000003/y.jpg", "has no label"),
    ]
    for column in ([b"x", None], ["none", None], pa.nulls(2), pa.array([[1], None], pa.list_(pa.uint8()))):
        save(tmp_path / "s/train.parquet", column, ["a", "b"])
        assert read(tmp_path / "s", tmp_path)[1][-1] == ("train.parquet/0000001", "has no image (null)")


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([1]), "the column image has the type int64, .*--image-column"),
        (pa.array([[[1]]]), "the column image has the type list<.*list<"),
        (pa.array([[1.5]]), "the column image has the type list<element: double>"),
        (pa.array([{"array": [1]}]), "the column image has the type struct<array"),
        (pa.array([{"bytes": {"inner": b"x"}}]), "the column image has the type struct<bytes: struct"),
        (pa.array([[256]]), "lists of numbers that are not the bytes of an image"),
        (pa.array([[1, None]]), "lists of numbers that are not the bytes of an image"),
    ],
)
def test_images_that_are_none_are_one_line(tmp_path: Path, column: pa.Array, message: str) -> None:
    path = save(tmp_path / "s/train.parquet", column, [0])
    one_line(tmp_path / "s", tmp_path, f"{path}: .*{message}")


@pytest.mark.parametrize(
    ("column", "keys"),
    [
        *((pa.array([1, 0, None], kind), ["000001", "000000"]) for kind in (
            pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64(),
            pa.float32(), pa.float64(), pa.decimal32(5, 0), pa.decimal128(9, 0), pa.decimal256(50, 0))),
        (pa.array([1.0, 0.0, None], pa.float16()), ["000001", "000000"]),
        (pa.array([1, 0, float("nan")]), ["000001", "000000"]),
        (pa.array([True, False, None]), ["000001", "000000"]),
        (pa.array([Decimal("1.00"), Decimal("0.00"), None]), ["000001", "000000"]),
        (pa.array(["1", "0", ""]), ["000001", "000000"]),
        (pa.array(["10.0", "2", "-1"]), ["000010", "000002"]),
        (pa.array(["b", "a", " "]), ["b", "a"]),
        (pa.array(["b", "a", None], pa.large_string()), ["b", "a"]),
        (pa.array(["b", "a", None], pa.string_view()), ["b", "a"]),
        (pa.array([b"b", b"a", None]), ["b", "a"]),
        (pa.array(["b", "a", None]).dictionary_encode(), ["b", "a"]),
        (pa.array([7, 3, None]).dictionary_encode(), ["000007", "000003"]),
    ],
    ids=lambda value: str(getattr(value, "type", ""))[:20],
)  # fmt: skip
def test_types_of_labels(tmp_path: Path, column: pa.Array, keys: list[str]) -> None:
    save(tmp_path / "s/train.parquet", IMAGES, column)
    seen, unusable = read(tmp_path / "s", tmp_path)
    assert [key for *_, key in seen] == keys
    was = ", but '-1'" if column[2].as_py() == "-1" else ""
    assert unusable == [("train.parquet/0000002", f"has no label{was}")]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([1.5]), "1.5"),
        (pa.array([Decimal("1.50")]), "decimal"),
        (pa.array([2**63], pa.uint64()), "uint64"),
        (pa.array(["1.5"]), "row 0: the label '1.5' is a number, but not a whole one"),
        (pa.array([b"\xff"]), "binary"),
        (pa.array([1_000_000]), "row 0: .* id1000000"),
        (pa.array([[1]]), "the column label has the type list<.*--label-column"),
        (pa.array([{"a": 1}]), "the column label has the type struct<"),
        (pa.array(["a", "7"]), "row 1: numbers and names are mixed: the label 7, but 'a' before .row 0 of "),
    ],
)
def test_labels_that_are_none_are_one_line(tmp_path: Path, column: pa.Array, message: str) -> None:
    path = save(tmp_path / "s/train.parquet", [b"x"] * len(column), column)
    one_line(tmp_path / "s", tmp_path, f"{path}: .*{message}")


def test_numbers_keep_their_values(tmp_path: Path) -> None:
    source = open_source(labelled(tmp_path / "train.parquet", [10, 2, 0, 2]))
    assert [key for *_, key in read(source, tmp_path)[0]] == ["000010", "000002", "000000", "000002"]
    assert source.fixed_classes() == [f"{label:06d}" for label in range(11)]
    assert source.class_names() == {}
    source = open_source(labelled(tmp_path / "train.parquet", [2, 0], NAMES))
    read(source, tmp_path)
    assert source.fixed_classes() == ["000000", "000001", "000002"]
    source = open_source(labelled(tmp_path / "train.parquet", ["a", "b"]))
    read(source, tmp_path)
    assert source.fixed_classes() is None


NAMED = {"000000": "zebra", "000001": "ant", "000002": "moth"}


def by_name(root: Path, work: Path) -> dict[str, list[str]]:
    """File → readable name of each of its rows' classes."""
    source = open_source(root)
    seen, unusable = read(source, work)
    assert not unusable
    found: dict[str, list[str]] = {}
    for _, content, key in seen:
        found.setdefault(content.decode().split()[0], []).append(source.class_names().get(key, key))
    return found


def test_each_file_has_its_own_class_list(tmp_path: Path) -> None:
    """Another order, fewer names, more names without rows; in val and within train; labels are of train's list."""
    root = tmp_path / "s"
    labelled(root / "train-0.parquet", [0, 1, 2], NAMES)
    labelled(root / "train-1.parquet", [0, 1, 2], ["ant", "moth", "zebra"])
    labelled(root / "val-0.parquet", [0, 1], ["ant", "moth"])
    labelled(root / "val-1.parquet", [1], ["gnu", "ant"])
    labelled(root / "test-0.parquet", [2, 0, -1], NAMES)
    source = open_source(root)
    _, unusable = read(source, tmp_path)
    assert source.class_names() == NAMED
    assert source.fixed_classes() == list(NAMED)
    assert unusable == [("test-0.parquet/0000002", "has no label, but -1")]
    (root / "test-0.parquet").unlink()
    assert by_name(root, tmp_path) == {
        "train-0": NAMES, "train-1": ["ant", "moth", "zebra"], "val-0": ["ant", "moth"], "val-1": ["ant"],
    }  # fmt: skip
    assert "train-1.parquet', " in source.notes()[0]
    assert "mapped by class names" in source.notes()[0]


def test_a_name_that_the_first_split_lacks_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "s"
    labelled(root / "train.parquet", [0, 1, 2], NAMES)
    path = labelled(root / "val.parquet", [1, 0], ["gnu", "ant", "elk"])
    message = f"{path}: row 1: the class 'gnu' .*only in this file: 'gnu', 'elk'; only in train: 'zebra', 'moth'"
    one_line(root, tmp_path, message)
    labelled(path, ["ant", "elk"])
    one_line(root, tmp_path, "row 1: the class 'elk' .*only in this file: 'elk'; only in train: 'zebra', 'moth'")
    assert not list(tmp_path.rglob("*.images"))  # nothing is copied before


def test_files_of_one_split_add_their_names(tmp_path: Path) -> None:
    root = tmp_path / "s"
    labelled(root / "train-0.parquet", [0, 1], ["b", "a"])
    labelled(root / "train-1.parquet", [0, 1], ["c", "a"])
    labelled(root / "val.parquet", [0, 1, 2], ["a", "b", "c"])
    assert by_name(root, tmp_path) == {"train-0": ["b", "a"], "train-1": ["c", "a"], "val": ["a", "b", "c"]}
    source = open_source(root)
    read(source, tmp_path)
    assert list(source.class_names().values()) == ["b", "a", "c"]


def test_files_without_a_list_beside_files_with_one(tmp_path: Path) -> None:
    root = tmp_path / "s"
    labelled(root / "train.parquet", [0, 1, 2], NAMES)
    labelled(root / "val.parquet", [2, 0])
    assert by_name(root, tmp_path) == {"train": NAMES, "val": ["moth", "zebra"]}
    source = open_source(root)
    read(source, tmp_path)
    assert "val.parquet': no class names; the labels are read as positions" in source.notes()[0]
    labelled(root / "val.parquet", [3])
    one_line(root, tmp_path, "val.parquet: row 0: the label 3 is not one of the 3 classes in the other files")
    labelled(root / "test.parquet", [0], NAMES[::-1])
    labelled(root / "val.parquet", [0])
    one_line(
        root, tmp_path, "val.parquet: row 0: the label 0 has no name, and the other files' class lists do not determine"
    )
    labelled(root / "train.parquet", [0, 1, 2])
    assert by_name(root, tmp_path) == {"train": NAMES[::-1], "val": ["moth"], "test": ["moth"]}
    labelled(root / "val.parquet", [1], NAMES)
    one_line(
        root,
        tmp_path,
        "train.parquet: row 0: the label 0 has no name, and the other files' class lists do not determine",
    )
    labelled(root / "val.parquet", [1], NAMES[::-1])
    assert by_name(root, tmp_path) == {"train": NAMES[::-1], "val": ["ant"], "test": ["moth"]}


def test_names_in_one_file_and_text_in_another(tmp_path: Path) -> None:
    root = tmp_path / "s"
    labelled(root / "train.parquet", [0, 1, 2], NAMES)
    labelled(root / "val.parquet", ["moth", "zebra"])
    assert by_name(root, tmp_path) == {"train": NAMES, "val": ["moth", "zebra"]}
    labelled(root / "train.parquet", ["moth", "zebra", "ant"])
    labelled(root / "val.parquet", [1, 0], NAMES)
    labelled(root / "test.parquet", ["ant"])
    assert by_name(root, tmp_path) == {"train": ["moth", "zebra", "ant"], "val": ["ant", "zebra"], "test": ["ant"]}
    labelled(root / "train.parquet", ["moth", "zebra", "gnu"])
    one_line(root, tmp_path, "val.parquet: row 0: the class 'ant' .*only in this file: 'ant'; only in train: 'gnu'")
    labelled(root / "val.parquet", ["1", "0"], ["1", "0"])  # digits that are names
    labelled(root / "train.parquet", [0, 1], ["1", "0"])
    (root / "test.parquet").unlink()
    assert by_name(root, tmp_path) == {"train": ["1", "0"], "val": ["1", "0"]}
    labelled(root / "train.parquet", ["a", "b"])
    labelled(root / "val.parquet", [0])
    one_line(
        root,
        tmp_path,
        "val.parquet: row 0: numbers and names are mixed: the label 0, but 'a' before .row 0 of .*train.parquet.",
    )


def test_lists_that_repeat_a_name(tmp_path: Path) -> None:
    """The same list maps by place; another one cannot tell the two apart."""
    root = tmp_path / "s"
    labelled(root / "train.parquet", [0, 1, 2], ["crane", "ant", "crane"])
    labelled(root / "val.parquet", [2, 0], ["crane", "ant", "crane"])
    seen = read(root, tmp_path)[0]
    assert [key for *_, key in seen] == ["000000", "000001", "000002", "000002", "000000"]
    labelled(root / "val.parquet", [0], ["ant", "crane"])
    assert by_name(root, tmp_path)["val"] == ["ant"]
    labelled(root / "val.parquet", [1], ["ant", "crane"])
    one_line(root, tmp_path, "row 0: the class 'crane' does not match exactly one of the 3 classes")


def test_imagenets_names_in_one_split_only(tmp_path: Path) -> None:
    wnids, names = list(imagenet_classes()), [f"{name}, and more" for name in imagenet_classes().values()]
    root = tmp_path / "s"
    for train, val, key in (
        (names, wnids[::-1], wnids[999]),
        (wnids[::-1], names, "000999"),
        (names, ["toilet tissue", "tench"], wnids[999]),
    ):
        labelled(root / "train.parquet", [0, 999], train)
        labelled(root / "val.parquet", [0], val)
        seen = read(root, tmp_path)[0]
        assert seen[2][2] == (key if val is not names else "000999"), (train[0], val[0])
    labelled(root / "train.parquet", [wnids[0], wnids[7]])
    labelled(root / "val.parquet", [7], names)
    assert [key for *_, key in read(root, tmp_path)[0]] == [wnids[0], wnids[7], wnids[7]]
    labelled(root / "train.parquet", [3, 7])
    source = open_source(root)
    assert [key for *_, key in read(source, tmp_path)[0]] == [wnids[3], wnids[7], wnids[7]]
    assert source.fixed_classes() == wnids


@pytest.mark.parametrize(
    ("files", "splits"),
    [
        (["default/train/0000.parquet", "default/train/0001.parquet", "default/test/0000.parquet"], "train train test"),
        (["data/train/0000.parquet", "data/validation/0000.parquet"], "train val"),
        (["train/0000.parquet", "Test/0000.parquet"], "train test"),
        (["plain_text/train-00000-of-00001.parquet", "plain_text/test-00000-of-00001.parquet"], "train test"),
        (["train.parquet", "test.parquet", ".cache/train/x.parquet", ".git/x.parquet", ".x.parquet"], "train test"),
        (["train-00000-of-00002-abcdef.parquet", "train-00001-of-00002-0123456789abcdef.parquet"], "train train"),
        (["test_set/data.parquet", "train_set/data.parquet"], "train test"),
        (["my.dataset.parquet"], "train"),
    ],
)
def test_layouts(tmp_path: Path, files: list[str], splits: str) -> None:
    root = tmp_path / "s"
    for number, name in enumerate(files):
        save(root / name, [str(number).encode()], [0])
        os.utime(root / name, (1, 1))
    source = open_source(root)
    assert source.format == "parquet"
    seen, _ = read(source, tmp_path)
    assert [split for split, *_ in seen] == splits.split()
    assert len({content for _, content, _ in seen}) == len(seen)  # each from its own copy


def test_tables_beside_images_make_no_parquet_set(tmp_path: Path) -> None:
    """A class may hold a table; a split may hold one that lists its images."""
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat/1.jpg").write_bytes(jpeg(1))
    labelled(tmp_path / "cat/features.parquet", [0])
    assert open_source(tmp_path).format == "imagefolder"
    (tmp_path / "cat").rename(tmp_path / "train")
    (tmp_path / "train/features.parquet").unlink()
    pq.write_table(pa.table({"file_name": ["1.jpg"], "label": ["cat"]}), tmp_path / "train/metadata.parquet")
    assert read(tmp_path, tmp_path) == ([("train", jpeg(1), "cat")], [])


def test_names_of_columns_with_dots(tmp_path: Path) -> None:
    columns = {"label.x": [5], "label": [0], "my.image": [{"bytes": b"i", "path": None}], "image.x": [b"x"]}
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    for column, content in (("my.image", b"i"), ("image.x", b"x")):
        source = open_source(tmp_path, options=SourceOptions(image_column=column))
        assert read(source, tmp_path)[0] == [("train", content, "000000")]


def test_several_configurations_are_one_line(tmp_path: Path) -> None:
    for name in ("big/train/0.parquet", "small/train-0.parquet", "small/test-0.parquet"):
        labelled(tmp_path / "s" / name, [0])
    with pytest.raises(ValueError, match=r"2 configurations .'big', 'small'.; give one of these directories"):
        open_source(tmp_path / "s")
    assert [split for split, *_ in read(tmp_path / "s/small", tmp_path)[0]] == ["train", "test"]
    assert [split for split, *_ in read(tmp_path / "s/big", tmp_path)[0]] == ["train"]


def test_one_file(tmp_path: Path) -> None:
    path = labelled(tmp_path / "s/val-00001-of-00003.parquet", [0])
    source = open_source(path)
    assert source.format == "parquet"
    assert [split for split, *_ in read(source, tmp_path)[0]] == ["val"]
    assert source.notes() == ["val-00001-of-00003.parquet is one of 3 files; give the directory to read all of them"]
    with pytest.raises(ValueError, match="2 of the 3 files of val are missing, first val-00000-of-00003; add them"):
        open_source(path.parent)


def test_a_set_that_was_converted_in_part(tmp_path: Path) -> None:
    labelled(tmp_path / "default/partial-train/0000.parquet", [0])
    source = open_source(tmp_path)
    assert [split for split, *_ in read(source, tmp_path)[0]] == ["train"]
    assert "has only a part of the dataset" in source.notes()[0]


def test_a_split_without_labels(tmp_path: Path) -> None:
    """It is skipped unless it is the first, even if it has no label column."""
    root = tmp_path / "s"
    labelled(root / "train.parquet", ["a", "b"])
    pq.write_table(pa.table({"image": IMAGES}), root / "test.parquet")
    labelled(root / "val.parquet", pa.nulls(2))
    source = open_source(root)
    assert len(read(source, tmp_path)[0]) == 2
    left_out = "skipped, because none of its {} rows has a label"
    assert source.notes() == [f"val: {left_out.format(2)}", f"test: {left_out.format(3)}"]
    labelled(root / "test-1.parquet", ["a"])
    one_line(
        root,
        tmp_path,
        "test.parquet: cannot tell which column is the ClassLabel; choose one of image with --label-column",
    )
    with pytest.raises(
        ValueError, match=r"train.parquet: does not have exactly one column 'kind'; choose one of image, label"
    ):
        read(open_source(root, options=SourceOptions(label_column="kind")), tmp_path)


def test_another_column_is_copied_anew(tmp_path: Path) -> None:
    root = tmp_path / "s"
    root.mkdir()
    pq.write_table(pa.table({"small": [b"s"], "large": [b"l"], "label": [0]}), root / "train.parquet")
    for column in ("small", "large"):
        source = open_source(root, options=SourceOptions(image_column=column))
        assert read(source, tmp_path)[0] == [("train", column[0].encode(), "000000")]


def noted(path: Path, columns: dict[str, Any], **features: Any) -> Path:
    """A table with Hugging Face's note of `features`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    note = {"huggingface": json.dumps({"info": {"features": features}})} if features else None
    pq.write_table(pa.table(columns).replace_schema_metadata(note), path)
    return path


def test_a_class_label_beside_a_label_is_asked_about(tmp_path: Path) -> None:
    columns = {"image": IMAGES, "gender": [0, 1, 0], "label": ["cat", "dog", "dog"]}
    noted(tmp_path / "s/train.parquet", columns, gender={"_type": "ClassLabel", "names": ["f", "m"]})
    one_line(
        tmp_path / "s", tmp_path, "which column is the ClassLabel; choose one of image, gender, label .*--label-column"
    )
    for column, keys in (("label", ["cat", "dog", "dog"]), ("gender", ["000000", "000001", "000000"])):
        source = open_source(tmp_path / "s", options=SourceOptions(label_column=column))
        assert [key for *_, key in read(source, tmp_path)[0]] == keys


def test_files_without_a_note_have_the_columns_of_the_first(tmp_path: Path) -> None:
    note = {"_type": "ClassLabel", "names": NAMES}
    noted(tmp_path / "s/train.parquet", {"image": IMAGES, "target": [0, 1, 2]}, target=note)
    noted(tmp_path / "s/val.parquet", {"image": IMAGES, "label": [0, 0, 0], "target": [2, 0, 1]})
    keys = [key for *_, key in read(tmp_path / "s", tmp_path)[0]]
    assert keys == ["000000", "000001", "000002", "000002", "000000", "000001"]


@pytest.mark.parametrize("names", ["zam", {"0": "zebra", "2": "moth"}, {"zebra": 0, "ant": 1}, [["zebra"], ["ant"]]])
def test_names_that_are_no_list_are_refused(tmp_path: Path, names: Any) -> None:
    columns = {"image": IMAGES, "label": [0, 1, 2]}
    path = noted(tmp_path / "s/train.parquet", columns, label={"_type": "ClassLabel", "names": names})
    one_line(tmp_path / "s", tmp_path, f"{path}: the class names of the column label .* are not a list of text")
    pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)
    assert len(read(tmp_path / "s", tmp_path)[0]) == 3


def test_blanks_around_text_do_not_make_classes(tmp_path: Path) -> None:
    labelled(tmp_path / "s/train.parquet", [" cat", "cat", "dog "])
    assert [key for *_, key in read(tmp_path / "s", tmp_path)[0]] == ["cat", "cat", "dog"]


def test_bytes_come_before_the_names_that_they_had(tmp_path: Path) -> None:
    noted(tmp_path / "s/train.parquet", {"image": ["a.jpg", "b.jpg", "c.jpg"], "bytes": IMAGES, "label": [0, 1, 2]})
    assert [data for _, data, _ in read(tmp_path / "s", tmp_path)[0]] == IMAGES


def test_paths_into_a_folder_beside_the_table(tmp_path: Path) -> None:
    noted(tmp_path / "s/train.parquet", {"file_name": ["0.jpg", "1.jpg"], "label": [0, 1]})
    for row in range(2):
        (tmp_path / "s/images").mkdir(exist_ok=True)
        (tmp_path / f"s/images/{row}.jpg").write_bytes(IMAGES[row])
    assert [data for _, data, _ in read(tmp_path / "s", tmp_path)[0]] == IMAGES[:2]


def test_a_split_without_rows_is_left_out(tmp_path: Path) -> None:
    labelled(tmp_path / "s/train.parquet", [0, 1])
    save(tmp_path / "s/val.parquet", pa.array([], pa.binary()), pa.array([], pa.int64()))
    source = open_source(tmp_path / "s")
    assert len(read(source, tmp_path)[0]) == 2
    assert source.notes() == ["val: skipped, because it has no rows"]
