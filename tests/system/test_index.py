"""`index`: existing tars become a dataset unchanged. Compared with DALI's wds2idx, tarfile and Pillow."""

import io
import re
import shutil
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from click.testing import CliRunner
from PIL import Image
from wds2idx import IndexCreator

from penstock.pipeline.reader import ShardReader
from penstock.shard_tools.__main__ import main
from penstock.shard_tools.index import index
from penstock.shard_tools.rejected import BadImages
from penstock.shard_tools.verify import verify
from penstock.shards.format import INFO_FILE, ShardSet, file_sha256
from tests.common.source_images import WNIDS, jpeg, write_tar


def indexed(root: Path, **settings: Any) -> ShardSet:
    with ThreadPoolExecutor(1) as executor:
        return index(root, executor=executor, **settings)


def encoded(format: str, mode: str = "RGB", **options: Any) -> bytes:
    buffer = io.BytesIO()
    num_bytes = {"L": 1, "I;16": 2}.get(mode, len(mode))
    noise = np.random.default_rng(0).integers(0, 256, 9 * 14 * num_bytes, dtype=np.uint8).tobytes()
    Image.frombytes(mode, (14, 9), noise).save(buffer, format, **options)
    return buffer.getvalue()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three shards, written by webdataset and by tarfile, with members of several kinds and orders."""
    root = tmp_path / "wds"
    root.mkdir()
    with webdataset.TarWriter(str(root / "train-000.tar")) as sink:
        for i in range(7):
            sink.write({"__key__": f"deep.dir/a{i}", "txt": "a caption", "cls": i % 3, ("jpg", "jpeg")[i % 2]: jpeg(i)})
    samples = [("jpg", jpeg(50)), ("png", encoded("PNG", "RGBA")), ("webp", encoded("WEBP")), ("bmp", encoded("BMP"))]
    samples += [("jpg", encoded("JPEG", "CMYK")), ("jpg", encoded("JPEG", "L", progressive=True))]
    members = [
        (f"b{i}.{e}", d) for i, (ext, data) in enumerate(samples) for e, d in ((ext, data), ("json", b'{"label": 1}'))
    ]
    write_tar(root / "train-001.tar", [("folder/.hidden.jpg", b"x"), *members])
    write_tar(
        root / "val-000.tar",
        [(f"v{i}.{e}", d) for i in range(5) for e, d in (("cls", b"%d\n" % (i % 3)), ("jpg", jpeg(i)))],
    )
    return root


def test_indexed_shards_are_a_dataset(root: Path) -> None:
    before = {path: file_sha256(path) for path in root.glob("*.tar")}
    (root / "classes.txt").write_text("zebra\nant\nmoth\n")
    shard_set = indexed(root)
    assert {path: file_sha256(path) for path in before} == before
    for path in before:
        creator = IndexCreator(str(path), str(path.with_suffix(".wds2idx")), verbose=False)
        creator.create_index()
        creator.close()
        assert path.with_suffix(".idx").read_bytes() == path.with_suffix(".wds2idx").read_bytes()
    assert [(info.wnid, info.name) for info in shard_set.classes] == [
        ("000000", "zebra"),
        ("000001", "ant"),
        ("000002", "moth"),
    ]
    assert {name: len(split) for name, split in shard_set.splits.items()} == {"train": 13, "val": 5}
    assert shard_set.made["kinds"] == {"bmp": 1, "cmyk": 1, "jpeg": 14, "png": 1, "webp": 1}
    assert shard_set.made["ignored"] == 1
    for split in shard_set.splits.values():
        views = ShardReader(split).views(np.arange(len(split)))
        for i, (row, view) in enumerate(zip(split.samples, views, strict=True)):
            file, _, name = split.source_name(i).partition("/")
            with tarfile.open(root / file) as tar:
                member = tar.extractfile(name)
                assert member is not None
                assert member.read() == view.tobytes()
            with Image.open(io.BytesIO(view.tobytes())) as image:
                assert image.size == (row["width"], row["height"])
    assert shard_set.splits["train"].samples["label"].tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 1, 1, 1, 1, 1]
    assert shard_set.splits["val"].samples["label"].tolist() == [0, 1, 2, 0, 1]
    assert verify(root, decode=True) == []
    description = (root / INFO_FILE).read_bytes()
    (root / "train.samples.npy").unlink()
    indexed(root)
    assert (root / INFO_FILE).read_bytes() == description
    assert verify(root) == []


def test_text_labels_are_classes_in_sorted_order(root: Path) -> None:
    for path in root.glob("*.tar"):
        path.unlink()
    for name, numbers in (("train-0", [3, 1]), ("train-1", [0, 2, 3]), ("validation-0", [2, 3])):
        members = [(f"{i}.{e}", d) for i in numbers for e, d in (("jpg", jpeg(i)), ("cls", WNIDS[i].encode()))]
        write_tar(root / f"{name}.tar", members)
    shard_set = indexed(root)
    assert [info.wnid for info in shard_set.classes] == list(WNIDS)
    assert shard_set.classes[0].name == "tench"
    assert shard_set.splits["train"].samples["label"].tolist() == [3, 1, 0, 2, 3]
    assert shard_set.splits["val"].samples["label"].tolist() == [2, 3]
    assert verify(root) == []


def test_what_dali_cannot_take_is_found(root: Path) -> None:
    bad = {
        "gif": (encoded("GIF", "L"), "not a JPEG"),
        "cut": (jpeg(1)[:-20], "truncated"),
        "deep": (encoded("PNG", "I;16"), "decode it to different colours .mode I;16"),
        "none": (b"", "empty"),
        "film": (encoded("WEBP", save_all=True, append_images=[Image.new("RGB", (14, 9))]), "animated"),
        "torn": (encoded("PNG")[:20], "Truncated"),
    }
    good = [("good.jpg", jpeg(7)), ("good.cls", b"0"), ("text.json", b'{"label": 1}')]
    write_tar(
        root / "train-002.tar",
        [(f"{n}.{e}", d) for n, (x, _) in bad.items() for e, d in (("jpg", x), ("cls", b"0"))] + good,
    )
    with pytest.raises(BadImages, match="7 image") as caught:
        indexed(root)
    assert not (root / INFO_FILE).exists()
    for name, (_, reason) in bad.items():
        (line,) = [line for line in str(caught.value).splitlines() if f"train-002.tar/{name}.jpg: " in line]
        assert re.search(reason, line), line
    assert "text.json: its sample has no image" in str(caught.value)
    shard_set = indexed(root, on_bad="skip")
    assert len(shard_set.split("train")) == 13 + 1
    assert shard_set.made["rejected"] == 7
    assert len((root / "rejected.tsv").read_text().splitlines()) == 8
    assert verify(root, decode=True) == []


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a b.jpg", jpeg(1)), ("a b.cls", b"1")], "the member name 'a b.jpg' contains white space"),
        ([("a.jpg", jpeg(1)), ("a.cls", b"cat")], r"is a number, but that of \S*train-009.tar/a.jpg is text"),
    ],
)
def test_shards_that_cannot_be_indexed_are_one_line(root: Path, members: list[tuple[str, bytes]], message: str) -> None:
    write_tar(root / "train-009.tar", members)
    with pytest.raises(ValueError, match=message) as caught:
        indexed(root)
    assert "\n" not in str(caught.value)
    assert str(root) in str(caught.value)
    assert not (root / INFO_FILE).exists()


def test_index_leaves_packed_datasets_and_other_directories_alone(dataset_copy: Path, tmp_path: Path) -> None:
    for path, message in ((dataset_copy, "is a packed dataset"), (tmp_path / "none", "has no .tar")):
        result = CliRunner().invoke(main, ["index", str(path)])
        assert result.exit_code == 1
        assert message in result.output
        assert len(result.output.splitlines()) == 1


def test_tars_in_directories_below_are_refused(root: Path) -> None:
    """They used to be skipped silently beside others."""
    (root / "val").mkdir()
    shutil.copy(next(root.glob("*.tar")), root / "val" / "7.tar")
    with pytest.raises(ValueError, match=r"1 of its .* tars are in subdirectories .first val/7.tar.*as val-7.tar"):
        indexed(root)


def test_index_command(root: Path) -> None:
    result = CliRunner().invoke(main, ["index", str(root), "--workers", "1"])
    assert result.exit_code == 0, result.output
    assert ShardSet.open(root).made["indexed"] is True
