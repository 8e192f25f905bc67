"""Paths that are not a source, or only part of one, give a one-line hint. Files that systems leave are ignored."""

import re
import zipfile
from pathlib import Path

import pytest

from penstock.shard_tools.sources import open_source
from penstock.shard_tools.sources.ilsvrc import DEVKIT, TRAIN, Ilsvrc
from penstock.shard_tools.sources.kaggle import IMAGES, MAPPING, SOLUTION
from tests.common.source_images import WNIDS, jpeg, listed, write_tar

JUNK = ("@eaDir/x.JPEG/SYNOPHOTO_THUMB_M.jpg", "__MACOSX/._1.jpg", "._1.JPEG", "Thumbs.db", ".cache/1.png")


def files(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x" + name.encode())
    return root


def refused(path: Path) -> str:
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        open_source(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def kaggle_tree(root: Path) -> Path:
    classes = [f"{IMAGES}/train/{wnid}/{wnid}_1.JPEG" for wnid in WNIDS]
    files(root, *classes, f"{IMAGES}/val/ILSVRC2012_val_00000001.JPEG", f"{IMAGES}/test/ILSVRC2012_test_00000001.JPEG")
    (root / MAPPING).write_text("".join(f"{wnid} name\n" for wnid in WNIDS))
    (root / SOLUTION).write_text(f"ImageId,PredictionString\nILSVRC2012_val_00000001,{WNIDS[0]} 1 2 3 4\n")
    return root


def test_kaggles_tree_at_the_wrong_level_names_the_right_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = kaggle_tree(tmp_path / "above" / "kaggle")
    for part in ("ILSVRC", "ILSVRC/Data", IMAGES, f"{IMAGES}/val", f"{IMAGES}/test"):
        assert f"is a part of Kaggle's ImageNet; give {root} ({SOLUTION} there" in refused(root / part), part
    assert refused(tmp_path) == f"{tmp_path}: the dataset is in a subdirectory; give {root}"
    files(tmp_path / "above", "other/a/1.jpg", "other/b/1.jpg")
    assert refused(tmp_path / "above").endswith(f"give {root}")
    assert open_source(root).format == "kaggle"
    assert open_source(root / IMAGES / "train").format == "imagefolder"
    monkeypatch.chdir(root / "ILSVRC")
    assert f"give {root}" in refused(Path("Data"))
    (root / SOLUTION).unlink()
    assert f"put {SOLUTION} into {root} and give {root}" in refused(root / IMAGES)


def test_other_sources_one_level_too_high(tmp_path: Path) -> None:
    (tmp_path / "shards/data/x").mkdir(parents=True)
    write_tar(tmp_path / "shards/data/x/train-0.tar", [("0.jpg", jpeg(0)), ("0.cls", b"0")])
    assert refused(tmp_path / "shards").endswith(f"give {tmp_path / 'shards/data/x'}")
    files(tmp_path / "tiny/tiny-imagenet-200", "train/n1/images/1.JPEG", "val/images/1.JPEG", "val/val_annotations.txt")
    assert refused(tmp_path / "tiny").endswith(f"give {tmp_path / 'tiny/tiny-imagenet-200'}")


@pytest.mark.parametrize(
    ("names", "given", "message"),
    [
        (["train-0.tar.gz", "val-0.tgz"], "", r"compressed archives \('train-0.tar.gz', 'val-0.tgz'\) .*gunzip"),
        (["train/0.tar.gz", "val/0.tar.gz"], "", r"compressed archives \('train/0.tar.gz', 'val/0.tar.gz'\)"),
        (["images.zip", "README"], "", r"compressed archives \('images.zip'\)"),
        (["images.tar.xz"], "images.tar.xz", r"images.tar.xz: compressed archives"),
        (["shard.tar"], "shard.tar", "is a single tar; if it is a WebDataset shard, give its directory"),
        (["data-0-of-1.arrow", "dataset_info.json", "state.json"], "", r"load_from_disk\('.*s'\).*to_parquet"),
        (
            ["dataset_dict.json", "train/data-0-of-1.arrow", "train/state.json"],
            "",
            "for split in d: d.split..to_parquet",
        ),
        (["x-train.arrow", "dataset_info.json"], "", r"Dataset.from_file\('.*x-train.arrow'\)"),
        (["train.beton"], "", "FFCV files .'train.beton'. are not supported; give the original images"),
        (["a.tfrecord"], "a.tfrecord", "TFRecord files"),
        (["notes.txt"], "", "no images .* in its class directories"),
        (["1.jpg"], "", "no images .* in its class directories, but 1 image beside them"),
        (["notes.txt"], "notes.txt", "not a supported kind of directory or file"),
    ],
)
def test_what_is_not_read_is_told_what_to_give(tmp_path: Path, names: list[str], given: str, message: str) -> None:
    root = files(tmp_path / "s", *names)
    assert re.search(message, refused(root / given))


def test_archives_beside_images_are_no_reason_to_stop(tmp_path: Path) -> None:
    root = files(tmp_path / "s", "train/a/1.jpg", "train/b/1.jpg", "images.zip", "state.json")
    source = open_source(root)
    assert len(list(source.images(tmp_path))) == 2
    assert source.ignored == ["images.zip", "state.json"]


def test_tars_beside_a_tree_are_refused_with_the_options(tmp_path: Path) -> None:
    root = files(tmp_path / "s", "train/a/1.jpg", "train/b/1.jpg", "train/a.tar")
    assert refused(root).endswith("choose which to read with --format webdataset or --format imagefolder")
    source = open_source(root, "imagefolder")
    assert (len(list(source.images(tmp_path))), source.ignored) == (2, ["train/a.tar"])
    shards = files(tmp_path / "shards", "assets/1.jpg", "0.tar")
    assert open_source(shards).format == "webdataset"


def test_what_systems_leave_behind_is_no_image(tmp_path: Path) -> None:
    """In Kaggle's directory and zip, and in the official archives."""
    root = kaggle_tree(tmp_path / "kaggle")
    names = [str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()]
    expected = listed(open_source(root), tmp_path)
    for part in (f"{IMAGES}/train/{WNIDS[0]}", f"{IMAGES}/val", f"{IMAGES}/train"):
        files(root, *(f"{part}/{name}" for name in JUNK))
    assert listed(open_source(root), tmp_path) == expected
    with zipfile.ZipFile(tmp_path / "kaggle.zip", "w") as archive:
        for path in root.rglob("*"):
            archive.write(path, path.relative_to(root))
        for name in names:
            archive.writestr(f"__MACOSX/{name}", b"x")
    assert listed(open_source(tmp_path / "kaggle.zip"), tmp_path) == expected

    archives = tmp_path / "archives"
    inner = write_tar(tmp_path / "inner", [("1.JPEG", jpeg(1)), *((name, jpeg(2)) for name in JUNK)]).read_bytes()
    outer = [(f"{wnid}.tar", inner) for wnid in WNIDS]
    write_tar(archives / TRAIN, [*outer, (f"._{WNIDS[0]}.tar", b"x"), (f"__MACOSX/{WNIDS[0]}.tar", b"x")])
    assert not (archives / DEVKIT).exists()
    assert [image.name for image in Ilsvrc(archives, 4, 2).images(tmp_path)] == [f"train/{w}/1.JPEG" for w in WNIDS]


def test_a_zip_of_something_else_says_so(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("cat/1.jpg", jpeg(1))
    with pytest.raises(ValueError, match="if this is another kind of zip, unzip it and give the directory"):
        list(open_source(tmp_path / "photos.zip").images(tmp_path))
