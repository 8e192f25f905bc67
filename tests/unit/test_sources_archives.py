"""The official ILSVRC archives, Kaggle's layout and zip, Tiny-ImageNet: generated lookalikes, read in place."""

import io
import re
import zipfile
from pathlib import Path

import pytest
from torchvision.models._meta import _IMAGENET_CATEGORIES

from penstock.shard_tools.sources import ilsvrc, kaggle, open_source
from penstock.shard_tools.sources.base import SourceImage, Unusable
from penstock.shard_tools.sources.ilsvrc import Ilsvrc
from penstock.shard_tools.sources.imagenet import imagenet_classes, wnids_of
from penstock.shard_tools.sources.matfile import read_structs
from penstock.shard_tools.sources.zipmembers import iterate_zip
from tests.common.source_archives import (
    DEVKIT_WNIDS,
    MAPPING,
    META,
    TRUTH,
    devkit,
    kaggle_files,
    small_archives,
    tiny,
    train_tar,
    val_tar,
    write_files,
)
from tests.common.source_images import WNIDS, Labelled, jpeg, listed, one_line, write_tar


@pytest.fixture
def archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Labelled]:
    return tmp_path / "source", small_archives(tmp_path / "source", monkeypatch)


def test_bundled_classes_are_imagenets() -> None:
    classes = imagenet_classes()
    assert list(classes) == sorted(classes)
    assert all(re.fullmatch(r"n\d{8}", wnid) for wnid in classes)
    assert list(classes.values()) == _IMAGENET_CATEGORIES  # by position: label i of every published checkpoint
    assert [classes[wnid] for wnid in WNIDS] == ["tench", "kit fox", "parachute", "toilet tissue"]
    assert wnids_of([f"{name}, some other name" for name in _IMAGENET_CATEGORIES]) == list(classes)
    assert wnids_of(_IMAGENET_CATEGORIES[::-1]) is None


def test_meta_mat_is_read_as_scipy_wrote_it() -> None:
    synsets = read_structs(META, "synsets")
    assert [int(s["ILSVRC2012_ID"][0]) for s in synsets] == [1, 2, 3, 4, 5, 6]
    assert [s["WNID"] for s in synsets] == [*DEVKIT_WNIDS, "n00001740", "n00021939"]
    assert [s["words"] for s in synsets][:2] == [
        "kit fox, Vulpes macrotis",
        "toilet tissue, toilet paper, bathroom tissue",
    ]
    assert [s["children"].tolist() for s in synsets] == [[], [], [], [], [1, 2], [1, 2]]
    for damaged in (b"", META[:300], b"x" * 500, META[:140] + b"\xff" * 20 + META[160:]):
        with pytest.raises(ValueError, match="MATLAB"):
            read_structs(damaged, "synsets")
    with pytest.raises(ValueError, match="no struct array 'other'"):
        read_structs(META, "other")


def test_ilsvrc_training_tar_alone(archives: tuple[Path, Labelled], tmp_path: Path) -> None:
    root, expected = archives
    (root / ilsvrc.VAL).unlink()
    (root / ilsvrc.DEVKIT).unlink()
    source = open_source(root)
    assert "no val" in source.explained
    assert listed(source, tmp_path) == {data: where for data, where in expected.items() if where[0] == "train"}


def test_ilsvrc_real_numbers_are_the_default(archives: tuple[Path, Labelled], tmp_path: Path) -> None:
    one_line(archives[0], tmp_path, "do not have the ids 1…1000", Ilsvrc(archives[0]))
    (archives[0] / ilsvrc.VAL).unlink()
    one_line(archives[0], tmp_path, "has 4 classes, not 1000", Ilsvrc(archives[0]))


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def cut_class_tar(root: Path, size: int) -> None:
    """A complete training tar with a truncated first class tar."""
    inner = write_tar(root / "inner", [(f"{WNIDS[0]}_{j}.JPEG", jpeg(j)) for j in range(3)]).read_bytes()
    write_tar(root / ilsvrc.TRAIN, [(f"{WNIDS[0]}.tar", inner[:size]), (f"{WNIDS[1]}.tar", inner)])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / ilsvrc.DEVKIT).unlink(), "has no ILSVRC2012_devkit"),
        (lambda root: (root / ilsvrc.TRAIN).unlink(), "has no ILSVRC2012_img_train"),
        (lambda root: train_tar(root, WNIDS[:3]), "has 3 classes, not 4"),
        (lambda root: train_tar(root, (*WNIDS[:3], "n01443537")), "n01443537.tar is not a class"),
        (lambda root: train_tar(root, (*WNIDS, WNIDS[0])), "n01440764.tar occurs twice"),
        (lambda root: write_tar(root / ilsvrc.TRAIN, [("n01440764.tar", bytes(1024))]), "damaged|no images"),
        (lambda root: cut(root / ilsvrc.TRAIN, 20_000), "damaged"),
        (lambda root: cut_class_tar(root, 800), "damaged or not a tar .n01440764_0.JPEG ends after byte 1312"),
        (lambda root: cut(root / ilsvrc.VAL, 2_048), "damaged"),
        (lambda root: val_tar(root, [1, 2, 3, 4, 5, 6, 8]), "has 7 images, not 8 .*00000007"),
        (lambda root: val_tar(root, [1, 2, 3, 4, 5, 6, 7, 8, 9]), "beyond the 8 lines"),
        (lambda root: val_tar(root, [1, 2, 3, 4, 5, 6, 7, 8, 8]), "occurs twice"),
        (lambda root: devkit(root, TRUTH[:-1]), "has 7 lines, not 8"),
        (lambda root: devkit(root, [*TRUTH[:-1], 2]), r"class 2 \(n15075141\) 3 times, not 2"),
        (lambda root: devkit(root, [*TRUTH[:-1], 5]), "id '5', not in meta.mat"),
        (lambda root: devkit(root, meta=META[:300]), "meta.mat or .* cannot be read"),
        (lambda root: cut(root / ilsvrc.DEVKIT, 300), "damaged"),
        (lambda root: write_tar(root / ilsvrc.DEVKIT, [], "w:gz"), "has no meta.mat"),
        (lambda root: write_tar(root / ilsvrc.TRAIN, [], "w:gz"), "compressed tar"),
    ],
)
def test_ilsvrc_deviations_are_one_line(archives: tuple[Path, Labelled], tmp_path: Path, damage, message: str) -> None:
    damage(archives[0])
    one_line(archives[0], tmp_path, message)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("LOC_synset_mapping.txt", None, "has no LOC_synset_mapping.txt"),
        ("LOC_synset_mapping.txt", MAPPING.encode() * 2, "has a class twice"),
        ("LOC_synset_mapping.txt", MAPPING.encode() + b"n9 x\n", "no images of class 'n9'"),
        ("LOC_synset_mapping.txt", MAPPING.encode()[:-40], "class 'n15075141' is not in"),
        (
            "LOC_val_solution.csv",
            b"ILSVRC2012_val_00000001,n1 1 2 3 4\n",
            "has the invalid line 'ILSVRC2012_val_00000001,n1",
        ),
        ("LOC_val_solution.csv", b"\xff", "not UTF-8"),
        ("LOC_val_solution.csv", b"", "val has none of the images in LOC_val_solution.csv"),
    ],
)
def test_kaggle_contradictions_are_one_line(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    files, _ = kaggle_files()
    if content is None:
        del files[name]
    else:
        files[name] = content
    one_line(write_files(tmp_path / "source", files), tmp_path, message)


def test_zip_that_cannot_be_read_in_place_is_one_line(tmp_path: Path) -> None:
    files, _ = kaggle_files()
    path = tmp_path / "kaggle.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    one_line(path, tmp_path, "compression method 14")
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        members = [
            (i.filename, i.compress_type, i.compress_size, i.file_size, i.header_offset) for i in archive.infolist()
        ]
    assert [(m.name, m.method, m.stored_bytes, m.size_bytes, m.header) for m in iterate_zip(path)] == members
    whole = path.read_bytes()
    encrypted = bytearray(whole)
    for match in re.finditer(b"PK\1\2", whole):
        encrypted[match.start() + 8] |= 1
    path.write_bytes(encrypted)
    one_line(path, tmp_path, "is encrypted")
    for damaged in (whole[:-30], whole[:100] + whole[200:], b"PK", whole[: whole.rfind(b"PK\5\6") - 50]):
        path.write_bytes(damaged)
        one_line(path, tmp_path, "damaged")


def test_zip64_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Kaggle's is: sizes and offsets beyond 32 bits go to extra fields, the end to a record of its own."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 40)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 2)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for i in range(5):
            archive.writestr(f"{i}.bin", bytes(30 + 10 * i))
        members = [(i.filename, i.file_size, i.header_offset) for i in archive.infolist()]
    data = bytearray(buffer.getvalue())
    data[-14:-2] = b"\xff" * 12  # Python repeats the counts here even if they stand in the zip64 record; others do not
    assert b"PK\6\6" in data
    (tmp_path / "64.zip").write_bytes(data)
    assert [(m.name, m.size_bytes, m.header) for m in iterate_zip(tmp_path / "64.zip")] == members


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("val/val_annotations.txt", "val_0.JPEG\n", "line 1 has no class"),
        ("val/val_annotations.txt", "a\tb\na\tb\n", "line 2 has 'a' again"),
    ],
)
def test_tiny_imagenet_contradictions_are_one_line(tmp_path: Path, name: str, content: str, message: str) -> None:
    tiny(tmp_path / "tiny")
    (tmp_path / "tiny" / name).write_text(content)
    one_line(tmp_path / "tiny", tmp_path, message)


@pytest.mark.parametrize("kind", ["tiny", "kaggle"])
def test_images_without_a_label_missing_ones_and_broken_links_are_unusable(tmp_path: Path, kind: str) -> None:
    """Of validation images that a file gives the labels of."""
    if kind == "tiny":
        tiny(tmp_path / kind)
        val, labels, prefix, suffix = tmp_path / "tiny/val/images", "val/val_annotations.txt", "val/images/", ".JPEG"
    else:
        write_files(tmp_path / kind, kaggle_files()[0])
        val, labels, prefix, suffix = tmp_path / kind / kaggle.IMAGES / "val", kaggle.SOLUTION, "val/", ""
    first, second, third, *_ = sorted(val.iterdir())
    first.rename(val / "z.JPEG")
    second.unlink()
    second.symlink_to("/nowhere")
    found = list(open_source(tmp_path / kind).images(tmp_path))
    assert [(bad.name, bad.reason) for bad in found if isinstance(bad, Unusable)] == [
        (f"{prefix}{second.name}", "a link to /nowhere: no such file or directory"),
        (f"{prefix}z.JPEG", f"has no line in {labels}"),
        (f"{prefix}{first.stem}{suffix}", f"is in {labels}, but there is no such file"),
    ]
    assert f"{prefix}{third.name}" in {image.name for image in found if isinstance(image, SourceImage)}


def test_validation_images_sorted_into_classes_make_a_tree(tmp_path: Path) -> None:
    """Sorted as by many scripts, with the files that had the labels left behind or lost."""
    tiny(tmp_path / "tiny")
    (tmp_path / "tiny/val/images").rename(tmp_path / "tiny/val" / WNIDS[0])
    files = kaggle_files()[0]
    write_files(tmp_path / "kaggle", files)
    val = tmp_path / "kaggle/ILSVRC/Data/CLS-LOC/val"
    val.rename(tmp_path / WNIDS[0])
    val.mkdir()
    (tmp_path / WNIDS[0]).rename(val / WNIDS[0])
    assert open_source(tmp_path / "kaggle").format == "kaggle"
    (tmp_path / "kaggle/LOC_val_solution.csv").unlink()
    for place in ("tiny", "kaggle", "kaggle/ILSVRC", "kaggle/ILSVRC/Data/CLS-LOC"):
        source = open_source(tmp_path / place)
        assert source.format == "imagefolder"
        assert {image.key for image in source.images(tmp_path) if image.split == "val"} == {WNIDS[0]}
