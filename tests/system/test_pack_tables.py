"""Parquet files and WebDataset tars made by others, written with pyarrow and webdataset."""

import builtins
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from penstock.shard_tools.sources import SourceOptions, open_source
from penstock.shard_tools.sources.imagenet import imagenet_classes
from penstock.shard_tools.sources.naming import split_of
from tests.common.source_images import WNIDS, Labelled, jpeg, listed, one_line, packed, write_tar

NAMES = ["zebra", "ant", "moth"]  # labels 0, 1, 2: not in the order of the sorted names


def hugging_face(path: Path, rows: list[tuple[bytes | None, str | None, Any]], names: list[str] | None = NAMES) -> Path:
    """A file as `datasets` writes it: (bytes, path, label) a row, row groups of 3."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = pa.array(
        [{"bytes": b, "path": p} for b, p, _ in rows], pa.struct({"bytes": pa.binary(), "path": pa.string()})
    )
    label: dict[str, Any] = {"names": names, "_type": "ClassLabel"} if names else {"dtype": "int64", "_type": "Value"}
    features = {"image": {"_type": "Image"}, "label": label}
    table = pa.table({"image": images, "label": pa.array([row[2] for row in rows])})
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=3)
    return path


def parquet_set(root: Path) -> Labelled:
    """Two training files, a validation file, and a test file without labels, in data/. Keys keep the label numbers."""
    numbers = {
        "train-00000-of-00002-0a1b2c": range(5),
        "train-00001-of-00002": range(5, 9),
        "validation-00000-of-00001": range(20, 26),
    }
    for name, images in numbers.items():
        hugging_face(root / "data" / f"{name}.parquet", [(jpeg(i), f"{i}.jpg", i % 3) for i in images])
    hugging_face(root / "data" / "test-00000-of-00001.parquet", [(jpeg(i), None, -1) for i in range(40, 43)])
    (root / "README.md").write_text("a card")
    return {
        jpeg(i): ("train" if name.startswith("train") else "val", f"{i % 3:06d}")
        for name, images in numbers.items()
        for i in images
    }


def test_parquet_packs(tmp_path: Path) -> None:
    expected = parquet_set(tmp_path / "hf")
    source = open_source(tmp_path / "hf")
    assert source.format == "parquet"
    assert "0.0 GB" in source.explained
    assert listed(source, tmp_path / "work") == expected
    assert source.notes() == ["test: skipped, because none of its 3 rows has a label"]
    assert source.fixed_classes() == ["000000", "000001", "000002"]
    found, shard_set = packed(tmp_path / "hf", tmp_path / "out")
    assert found == expected
    assert [info.name for info in shard_set.classes] == NAMES


def test_parquet_copies_each_file_once(tmp_path: Path) -> None:
    """A run that was killed continues with the next file. A file that changed is copied again."""
    parquet_set(tmp_path / "hf")
    work = tmp_path / "work"
    first = []
    for image in open_source(tmp_path / "hf").images(work):
        first.append(image)
        if len(first) == 6:  # in the second file
            break
    copies = {path: path.stat().st_mtime_ns for path in work.rglob("*.images")}
    assert len(copies) == 2
    (work / "parquet" / f".{max(copies).name}.1234.tmp").write_bytes(b"left by a killed run")
    max(copies).with_suffix(".sizes").unlink()  # killed before the second was whole
    assert list(open_source(tmp_path / "hf").images(work))[:6] == first
    assert min(copies).stat().st_mtime_ns == copies[min(copies)]
    assert max(copies).stat().st_mtime_ns > copies[max(copies)]
    assert not list(work.rglob("*.tmp"))
    hugging_face(tmp_path / "hf/data/train-00001-of-00002.parquet", [(jpeg(70), "70.jpg", 1)])
    assert jpeg(70) in listed(open_source(tmp_path / "hf"), work)


def test_parquet_variants(tmp_path: Path) -> None:
    """Images outside the file, bytes without a struct, text labels, other column names, ImageNet's names."""
    outside = tmp_path / "outside"
    hugging_face(outside / "train.parquet", [(jpeg(1), "1.jpg", 0), (None, "pictures/2.jpg", 2), (jpeg(3), None, 1)])
    (outside / "pictures").mkdir()
    (outside / "pictures/2.jpg").write_bytes(jpeg(2))
    wanted = {jpeg(1): ("train", "000000"), jpeg(2): ("train", "000002"), jpeg(3): ("train", "000001")}
    assert listed(open_source(outside), tmp_path / "work1") == wanted
    found, _ = packed(outside, tmp_path / "out")
    assert found == wanted

    plain = tmp_path / "plain"
    plain.mkdir()
    pq.write_table(pa.table({"picture": [jpeg(1), jpeg(2)], "kind": ["b", "a"]}), plain / "val.parquet")
    options = SourceOptions(image_column="picture", label_column="kind")
    assert listed(open_source(plain, "parquet", options), tmp_path / "work2") == {
        jpeg(1): ("val", "b"),
        jpeg(2): ("val", "a"),
    }
    classes = imagenet_classes()
    names = [f"{name}, and more" for name in classes.values()]
    hugging_face(tmp_path / "in1k/train.parquet", [(jpeg(1), None, 0), (jpeg(2), None, 999)], names)
    source = open_source(tmp_path / "in1k")
    assert set(listed(source, tmp_path / "work3").values()) == {("train", "n01440764"), ("train", "n15075141")}
    assert source.class_names()["n15075141"] == "toilet tissue, and more"


def rows(*labels: object) -> list[tuple[bytes | None, str | None, Any]]:
    return [(jpeg(i), f"{i}.jpg", label) for i, label in enumerate(labels)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: hugging_face(path, rows(0, 3)), "row 1: the label 3 is not one of the 3 classes in its schema"),
        (lambda path: hugging_face(path, rows(0, -2), None), "row 1: the label -2 is below 0"),
        (lambda path: pq.write_table(pa.table({"a": [1], "b": [2]}), path), "which column is the Image.* a, b"),
        (lambda path: path.write_bytes(b"PAR1 nonsense PAR1"), "damaged or not a Parquet file"),
        (lambda path: path.write_bytes(b""), "damaged or not a Parquet file"),
        (
            lambda path: (path.parent / "train-00000-of-00002-0a1b2c.parquet").unlink(),
            "1 of the 2 files of train are m",
        ),
    ],
)
def test_parquet_errors_are_one_line(tmp_path: Path, make, message: str) -> None:
    parquet_set(tmp_path / "hf")
    make(tmp_path / "hf/data/val-0.parquet")
    one_line(tmp_path / "hf", tmp_path / "work", message)


def test_parquet_damaged_pages_are_one_line(tmp_path: Path) -> None:
    path = hugging_face(tmp_path / "hf/train.parquet", rows(*[0] * 20))
    data = bytearray(path.read_bytes())
    data[200:2000] = bytes(1800)
    path.write_bytes(data)
    one_line(tmp_path / "hf", tmp_path / "work", "train.parquet: ")


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet_set(tmp_path)
    real = builtins.__import__

    def no_pyarrow(name: str, *args: Any) -> Any:
        if name.partition(".")[0] == "pyarrow":
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", no_pyarrow)
    with pytest.raises(ValueError, match=r"pip install '\.\[parquet\]'$"):
        open_source(tmp_path)


def foreign(root: Path) -> Labelled:
    """Tars as other programs write them: names, extensions and orders of members differ; labels are numbers."""
    expected: Labelled = {}
    with webdataset.TarWriter(str(root / "imagenet1k-train-0000.tar")) as sink:
        for i in range(6):
            sink.write({"__key__": f"deep/a{i}", "cls": i % 3, ("jpg", "jpeg", "JPG")[i % 3]: jpeg(i)})
            expected[jpeg(i)] = "train", f"{i % 3:06d}"
    members = []
    for i in range(10, 14):
        label = json.dumps({"label": i % 3, "other": "x"}).encode()
        image = (f"s{i}.jpg", jpeg(i))
        members += [image, (f"s{i}.json", label)] if i % 2 else [(f"s{i}.json", label), image]
        expected[jpeg(i)] = "train", f"{i % 3:06d}"
    write_tar(root / "imagenet1k-train-0001.tar", [*members, ("README", b"x"), (".hidden.jpg", b"x")])
    write_tar(
        root / "imagenet1k-validation-00.tar",
        [(f"v{i}.{e}", d) for i in range(20, 23) for e, d in (("jpg", jpeg(i)), ("cls", b" %d\n" % (i % 3)))],
    )
    expected |= {jpeg(i): ("val", f"{i % 3:06d}") for i in range(20, 23)}
    return expected


def test_split_of_names() -> None:
    for name, split in {
        "train-000001": "train", "imagenet1k-validation-07": "val", "val/0001": "val", "train/val-01": "val",
        "cifar10-test-0": "test", "imagenet_train-000-of-010": "train", "shard-0007": "train", "Valid_3": "val",
        "latest-dev": "val", "trainer": "train",
    }.items():  # fmt: skip
        assert split_of(name) == split, name


def test_webdataset_packs_again(tmp_path: Path) -> None:
    root = tmp_path / "wds"
    root.mkdir()
    expected = foreign(root)
    (root / "classnames.txt").write_text("\n".join(NAMES))
    source = open_source(root)
    assert source.format == "webdataset"
    assert listed(source, tmp_path) == expected
    assert source.ignored == ["imagenet1k-train-0001.tar/README", "imagenet1k-train-0001.tar/.hidden.jpg"]
    found, shard_set = packed(root, tmp_path / "out")
    assert found == expected
    assert [info.name for info in shard_set.classes] == NAMES
    again, second = packed(tmp_path / "out", tmp_path / "again")  # what pack made can be packed
    assert again == expected
    assert second.classes == shard_set.classes


def test_webdataset_text_labels_and_folders(tmp_path: Path) -> None:
    for split, first in (("train", 0), ("val", 10)):
        samples = [
            (f"{i}.{e}", d)
            for i in range(first, first + 8)
            for e, d in (("cls", WNIDS[i % 4].encode()), ("jpg", jpeg(i)))
        ]
        write_tar(tmp_path / "wds" / split / "000.tar", samples)
    expected = {jpeg(i): ("train" if i < 10 else "val", WNIDS[i % 4]) for i in [*range(8), *range(10, 18)]}
    assert listed(open_source(tmp_path / "wds"), tmp_path) == expected
    assert packed(tmp_path / "wds", tmp_path / "out")[0] == expected


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.jpg", b"x"), ("a.png", b"x"), ("a.cls", b"1")], "a.jpg and a.png belong to the same sample"),
        ([("a.jpg", b"x"), ("a.cls", b"1"), ("b.jpg", b"x"), ("b.cls", b"cat")], "is a number, but that of"),
        ([("a.jpg", b"x"), ("a.cls", b"7")], "label 7 is beyond the 3 classes"),
    ],
)  # fmt: skip
def test_webdataset_errors_are_one_line(tmp_path: Path, members: list[tuple[str, bytes]], message: str) -> None:
    root = tmp_path / "wds"
    write_tar(root / "train-0.tar", members)
    if "beyond" in message:
        (root / "classes.txt").write_text("\n".join(NAMES))
    one_line(root, tmp_path, message)


def test_webdataset_tars_that_are_none_are_one_line(tmp_path: Path) -> None:
    members = [(f"{i}.{e}", d) for i in range(4) for e, d in (("cls", b"1"), ("jpg", jpeg(i)))]
    whole = write_tar(tmp_path / "wds/train-0.tar", members).read_bytes()
    for damaged in (whole[:3000], whole[:2048], whole[:3072] + b"garbage" * 200 + whole[4472:], b"", b"x" * 5000):
        (tmp_path / "wds/train-0.tar").write_bytes(damaged)
        one_line(tmp_path / "wds", tmp_path, "damaged")
    write_tar(tmp_path / "wds/train-0.tar", members, "w:gz")
    one_line(tmp_path / "wds", tmp_path, "is a compressed tar")


def test_val_labels_are_right_end_to_end(tmp_path: Path) -> None:
    root = tmp_path / "s"
    hugging_face(root / "train-00000-of-00001.parquet", rows(0, 1, 2))
    hugging_face(root / "validation-00000-of-00001.parquet", [(jpeg(9), None, 0)], ["moth", "zebra"])
    shard_set = packed(root, tmp_path / "out")[1]
    assert [info.name for info in shard_set.classes] == NAMES
    assert shard_set.splits["val"].samples["label"].tolist() == [2]
