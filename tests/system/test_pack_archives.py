"""ILSVRC's archives, Kaggle's layout and zip, and Tiny-ImageNet are packed as they are and read back."""

import zipfile
from pathlib import Path

import pytest

from penstock.shard_tools.sources import open_source
from tests.common.source_archives import kaggle_files, small_archives, tiny, write_files
from tests.common.source_images import listed, packed, write_tar


def test_ilsvrc_archives_pack_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "source"
    expected = small_archives(root, monkeypatch)
    write_tar(root / "ILSVRC2012_img_test_v10102019.tar", [])
    source = open_source(root)
    assert listed(source, tmp_path) == expected
    assert source.ignored == ["ILSVRC2012_img_test_v10102019.tar"]
    assert not list(tmp_path.rglob("*.JPEG"))
    found, shard_set = packed(root, tmp_path / "out")
    assert found == expected
    assert [info.name for info in shard_set.classes] == ["tench", "kit fox", "parachute", "toilet tissue"]
    assert {shard_set.splits["val"].source_name(i) for i in range(8)} == {
        f"val/ILSVRC2012_val_{i:08d}.JPEG" for i in range(1, 9)
    }


@pytest.mark.parametrize("kind", ["directory", "stored.zip", "deflated.zip"])
def test_kaggle_packs_from_directory_and_zip(tmp_path: Path, kind: str) -> None:
    files, expected = kaggle_files()
    path = tmp_path / "source" / kind
    if kind == "directory":
        write_files(path, files)
    else:
        path.parent.mkdir()
        with zipfile.ZipFile(
            path, "w", zipfile.ZIP_STORED if kind == "stored.zip" else zipfile.ZIP_DEFLATED
        ) as archive:
            for name, data in files.items():
                with archive.open(
                    name, "w", force_zip64=True
                ) as member:  # local headers longer than the directory says
                    member.write(data)
            archive.comment = b"a comment"
    source = open_source(path)
    assert listed(source, tmp_path) == expected
    assert source.ignored == ["ILSVRC/Data/CLS-LOC/test/ (no labels)"]
    found, shard_set = packed(path, tmp_path / "out")
    assert found == expected
    assert [info.name for info in shard_set.classes] == ["tench", "fox", "chute", "tissue"]


def test_tiny_imagenet_packs(tmp_path: Path) -> None:
    root = tmp_path / "tiny"
    expected = tiny(root)
    source = open_source(root)
    assert source.format == "tiny-imagenet"
    assert listed(source, tmp_path) == expected
    assert source.ignored == ["test/ (no labels)"]
    found, shard_set = packed(root, tmp_path / "out")
    assert found == expected
    assert [info.name for info in shard_set.classes][:2] == ["tench", "kit fox"]
