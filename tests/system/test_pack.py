"""`pack` end to end, read back by other readers: tarfile, webdataset, DALI's wds2idx, Pillow."""

import csv
import hashlib
import io
import struct
import subprocess
import sys
import tarfile
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from penstock.shard_tools import duplicates
from penstock.shard_tools.rejected import BadImages
from penstock.shard_tools.subset import Subset
from penstock.shard_tools.verify import verify
from penstock.shard_tools.writer import PackOptions, pack
from penstock.shards.format import ShardSet
from tests.common.packing import NUM_IMAGES, cli, hashes, write_source


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def packed(source, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "out"
    with ThreadPoolExecutor(1) as executor:
        pack(source, out, PackOptions(samples_per_shard=32), executor=executor)
    return out


def test_every_image_is_there_once_with_its_label_and_its_bytes(source, packed):
    shard_set = ShardSet.open(packed)
    assert [info.wnid for info in shard_set.classes] == ["class0", "class1", "class2"]
    for name, split in shard_set.splits.items():
        sources = [split.source_name(i) for i in range(len(split))]
        assert sorted(sources) == sorted(str(p.relative_to(source)) for p in (source / name).rglob("*.*"))
        for source_name, row in zip(sources, split.samples, strict=True):
            raw = split.shard_path(row["shard"]).read_bytes()[row["offset"] :][: row["size"]]
            original = (source / source_name).read_bytes()
            if source_name.endswith(".jpg"):
                assert raw == original
            image = Image.open(io.BytesIO(raw))
            assert image.format == "JPEG"
            assert image.size == (row["width"], row["height"]) == Image.open(io.BytesIO(original)).size
            assert row["label"] == int(source_name.split("/")[1][-1])
    assert shard_set.made["converted"] == {"png": 4}
    assert [len(split.shards) for split in shard_set.splits.values()] == [3, 1]


def test_tarfile_finds_the_same_offsets_and_fixed_metadata(packed):
    for split in ShardSet.open(packed).splits.values():
        found = []
        for shard in range(len(split.shards)):
            with tarfile.open(split.shard_path(shard)) as tar:
                for member in tar:
                    assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o444)
                    if member.name.endswith(".jpg"):
                        found.append((shard, member.offset_data, member.size))
        assert found == [(row["shard"], row["offset"], row["size"]) for row in split.samples]


def test_the_tar_is_what_webdatasets_writer_writes(packed, tmp_path):
    writer = pytest.importorskip("webdataset.writer")
    shard = packed / "train-000001.tar"
    with open(tmp_path / "theirs.tar", "wb") as stream, writer.TarWriter(stream, encoder=False, mtime=0) as theirs:
        with tarfile.open(shard) as tar:
            files = {member.name: tar.extractfile(member).read() for member in tar}
        for key in sorted({name.split(".")[0] for name in files}):
            theirs.write({"__key__": key, "jpg": files[f"{key}.jpg"], "cls": files[f"{key}.cls"]})
    assert (tmp_path / "theirs.tar").read_bytes() == shard.read_bytes()


def test_webdataset_reads_the_same_samples(packed):
    webdataset = pytest.importorskip("webdataset")
    split = ShardSet.open(packed).split("train")
    urls = [str(split.shard_path(i)) for i in range(len(split.shards))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [f"{i:09d}" for i in range(NUM_IMAGES["train"])]
    for sample, row in zip(samples, split.samples, strict=True):
        assert int(sample["cls"]) == row["label"]
        raw = split.shard_path(row["shard"]).read_bytes()
        assert sample["jpg"] == raw[row["offset"] :][: row["size"]]


def test_the_index_is_what_wds2idx_writes(packed, tmp_path):
    wds2idx = pytest.importorskip("wds2idx")
    for shard in packed.glob("*.tar"):
        with wds2idx.IndexCreator(str(shard), str(tmp_path / "theirs.idx"), verbose=False) as creator:
            creator.create_index()
        assert (tmp_path / "theirs.idx").read_bytes() == shard.with_suffix(".idx").read_bytes()


def test_the_bytes_do_not_depend_on_workers_executor_or_place(source, packed, tmp_path):
    moved = tmp_path / "moved"
    subprocess.run(["cp", "-r", source, moved], check=True)
    pack(moved, tmp_path / "a", PackOptions(samples_per_shard=32, workers=1))
    pack(source, tmp_path / "b", PackOptions(samples_per_shard=32, workers=2))
    with ProcessPoolExecutor(2, mp_context=get_context("forkserver")) as executor:  # a fork would have DALI's threads
        pack(source, tmp_path / "c", PackOptions(samples_per_shard=32), executor=executor)
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b") == hashes(tmp_path / "c") == hashes(packed)
    pack(source, tmp_path / "d", PackOptions(samples_per_shard=32, seed=1))
    assert hashes(tmp_path / "d")["train-000000.tar"] != hashes(packed)["train-000000.tar"]


def test_a_complete_directory_is_left_alone(source, packed, tmp_path):
    before = hashes(packed)
    result = cli("pack", source, packed, "--samples-per-shard", 32)
    assert result.exit_code == 0
    assert "already complete" in result.stdout
    result = cli("pack", source, packed, "--samples-per-shard", 33)
    assert result.exit_code == 1
    assert "samples_per_shard was 32, is 33" in result.stderr
    assert hashes(packed) == before


@pytest.fixture
def spoiled(source, tmp_path) -> Path:
    """The source with 12 files that cannot be used."""
    root = tmp_path / "spoiled"
    subprocess.run(["cp", "-r", source, root], check=True)
    for i in range(12):
        path = root / "train" / "class1" / f"bad{i:02d}.jpg"
        path.write_bytes((b"", b"no image", (root / "train/class0/000.jpg").read_bytes()[:300])[i % 3])
    return root


def test_bad_images_stop_it_by_default_and_can_be_skipped(spoiled, packed, tmp_path):
    out = tmp_path / "out"
    with ThreadPoolExecutor(1) as executor, pytest.raises(BadImages) as caught:
        pack(spoiled, out, PackOptions(samples_per_shard=200), executor=executor)
    text = str(caught.value)
    assert text.startswith("12 image(s)")
    assert text.count("train/class1/bad") == 10
    assert "--on-bad skip" in text
    assert not (out / "dataset.json").exists()
    result = cli("pack", spoiled, out, "--samples-per-shard", 200, "--on-bad", "skip")
    assert result.exit_code == 0, result.stderr
    assert "skipped 12 bad" in result.stdout
    lines = (out / "rejected.tsv").read_text().splitlines()
    assert len(lines) == 13
    assert all(line.count("\t") == 1 for line in lines)
    assert {line.split("\t")[0] for line in lines[1:]} == {f"train/class1/bad{i:02d}.jpg" for i in range(12)}
    split = ShardSet.open(out).split("train")
    assert len(split) == NUM_IMAGES["train"]
    assert verify(out, decode=True) == []
    names = [split.source_name(i) for i in range(len(split))]
    reference = ShardSet.open(packed).split("train")
    assert sorted(names) == sorted(reference.source_name(i) for i in range(len(reference)))


def test_a_shard_without_a_usable_image_is_left_out(spoiled, tmp_path):
    with ThreadPoolExecutor(1) as executor:
        done = pack(spoiled, tmp_path / "out", PackOptions(samples_per_shard=1, on_bad="skip"), executor=executor)
    assert len(done.shard_set.split("train").shards) == NUM_IMAGES["train"]
    assert done.rejected.count == 12
    assert verify(tmp_path / "out", decode=True) == []


def test_a_split_of_bad_images_only_is_an_error(tmp_path):
    path = tmp_path / "source" / "train" / "a" / "1.jpg"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"nothing")
    result = cli("pack", tmp_path / "source", tmp_path / "out", "--on-bad", "skip")
    assert result.exit_code == 1
    assert "none of its images can be used" in result.stderr
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_an_unfinished_directory_takes_only_its_own_job(spoiled, tmp_path):
    out = tmp_path / "out"
    arguments = ("pack", spoiled, out, "--samples-per-shard", 40)
    assert cli(*arguments).exit_code == 1
    assert "seed was 0, is 5" in cli(*arguments, "--seed", 5).stderr
    (spoiled / "train" / "class1" / "bad00.jpg").rename(spoiled / "train" / "class1" / "other.jpg")
    result = cli(*arguments)
    assert result.exit_code == 1
    assert "names, labels or sizes differ" in result.stderr
    assert str(out) in result.stderr


def test_a_finished_shard_that_was_damaged_is_made_again(spoiled, source, tmp_path):
    out = tmp_path / "out"
    with ThreadPoolExecutor(1) as executor:
        with pytest.raises(BadImages):
            pack(spoiled, out, PackOptions(samples_per_shard=200), executor=executor)
        for part in (out / ".pack").glob("train-*.part"):
            part.write_text("{}")
        shorten(out / "val-000000.tar", 512)
        pack(spoiled, out, PackOptions(samples_per_shard=200, on_bad="skip"), executor=executor)
        pack(spoiled, tmp_path / "again", PackOptions(samples_per_shard=200, on_bad="skip"), executor=executor)
    assert hashes(out) == hashes(tmp_path / "again")


def shorten(path: Path, by: int) -> None:
    path.write_bytes(path.read_bytes()[:-by])


def test_command_errors_are_one_line(source, packed, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("x")
    (tmp_path / "file").write_text("x")
    cases = {
        ("pack", tmp_path / "none", tmp_path / "o"): "no such file or directory",
        ("pack", tmp_path / "empty", tmp_path / "o"): "no images",
        ("pack", source, tmp_path / "full"): "not empty",
        ("pack", source, tmp_path / "file"): "Not a directory|File exists",
        ("pack", source, source / "out"): "inside the source",
        ("pack", source, "/proc/none"): "cannot be written",
        ("verify", tmp_path): "no packed dataset",
        ("info", tmp_path): "no packed dataset",
        ("pack", source, tmp_path / "o", "--shard-size", "12XB"): "is not a size",
        ("pack", source, tmp_path / "o", "--workers", "0"): "workers",
    }
    for arguments, expected in cases.items():
        result = cli(*arguments)
        assert isinstance(result.exception, SystemExit), (arguments, result.exception)
        assert result.exit_code != 0
        assert any(word in result.output for word in expected.split("|")), result.output
        assert len(result.stderr.splitlines()) <= 1 or "Usage" in result.stderr, result.output


def test_the_demo_set_is_deterministic_and_whole(tmp_path):
    from penstock.shard_tools.demo import CLASSES, make_demo

    counts = {"train": 40, "val": 20}
    with ThreadPoolExecutor(1) as executor:
        for name in ("a", "b"):
            make_demo(tmp_path / name, counts, executor=executor)
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")
    shard_set = ShardSet.open(tmp_path / "a")
    assert len(shard_set.classes) == len(CLASSES) == 10
    assert verify(tmp_path / "a", decode=True) == []
    assert np.bincount(shard_set.split("train").samples["label"]).tolist() == [4] * 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def write_twice(root: Path) -> Path:
    """Write duplicate images: A in two classes, B in two splits, C in both, D twice in one class."""
    rng = np.random.default_rng(0)
    for name, places in {
        "A": ("train/x/1", "train/y/1"),
        "B": ("train/x/2", "val/x/3", "val/x/4"),
        "C": ("train/y/5", "val/x/6", "train/x/7"),
        "D": ("train/x/8", "train/x/9"),
        "E": ("train/x/10",),
        "F": ("val/y/11",),
    }.items():
        image = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        for place in places:
            path = root / f"{place}{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    return root


def test_the_same_image_twice_is_reported(tmp_path):
    source = write_twice(tmp_path / "source")
    result = cli("pack", source, tmp_path / "out", "--samples-per-shard", 3, "--workers", 1)
    assert result.exit_code == 0, result.stderr
    assert "6 image(s) are duplicates" in result.stdout
    assert result.stderr.count("duplicate image: ") == 3
    shard_set = ShardSet.open(tmp_path / "out")
    assert shard_set.made["duplicates"] == {"copies": 6, "label_conflicts": 2, "split_conflicts": 2}
    with open(tmp_path / "out" / "duplicates.tsv", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    conflicts = {"A": "label", "B": "split", "C": "label+split"}
    assert {row["name"] for row in rows} == {
        str(path.relative_to(source)) for path in source.rglob("*.png") if path.stem[-1] in conflicts
    }
    for row in rows:
        content = (source / row["name"]).read_bytes()
        assert row["conflict"] == conflicts[Path(row["name"]).stem[-1]]
        assert row["class"] == row["name"].split("/")[1]
        assert shard_set.split(row["split"]).source_name(int(row["sample"])) == row["name"]
        low, high = struct.unpack("<QQ", hashlib.sha256(content).digest()[:16])
        assert row["hash"] == f"{high:016x}{low:016x}"


def test_the_screen_shows_the_first_conflicts_only(tmp_path):
    """Eight images in both splits, one of them fifty times."""
    rng = np.random.default_rng(5)
    for i in range(8):
        image = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        for split in ("train", "val"):
            for copy in range(25 if i == 0 else 1):
                path = tmp_path / "source" / split / "a" / f"image{i}-{copy}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                image.save(path)
    result = cli("pack", tmp_path / "source", tmp_path / "out", "--workers", 1)
    lines = [line for line in result.stderr.splitlines() if line.startswith("duplicate image: ")]
    assert len(lines) == 5
    for line in lines:
        names = [word.split("/")[-1].split("-")[0] for word in line.split() if word.endswith(".png")]
        assert 2 <= len(names) <= 5
        assert len(set(names)) == 1
    assert len((tmp_path / "out" / "duplicates.tsv").read_text().splitlines()) == 1 + 2 * 25 + 2 * 7


def test_duplicates_are_found_in_any_number_of_passes(tmp_path, monkeypatch):
    source = write_twice(tmp_path / "source")
    found = []
    for rows in (1 << 18, 2):
        monkeypatch.setattr(duplicates, "ROWS", rows)
        with ThreadPoolExecutor(1) as executor:
            pack(source, tmp_path / str(rows), PackOptions(samples_per_shard=3), executor=executor)
        lines = (tmp_path / str(rows) / "duplicates.tsv").read_text().splitlines()
        found.append((ShardSet.open(tmp_path / str(rows)).made["duplicates"], sorted(lines)))
    assert found[0] == found[1]


def test_choices_from_the_command_line(source, tmp_path):
    flat = tmp_path / "flat"
    subprocess.run(["cp", "-r", source / "train", flat], check=True)
    (tmp_path / "names.txt").write_text("class 0 zero\nclass2 two\n")
    (flat / "class0").rename(flat / "class 0")
    (tmp_path / "only").write_text("class 0\nclass2\n")
    arguments = [
        "--split",
        "train=0.8,val=0.2",
        "--only-classes",
        tmp_path / "only",
        "--classes",
        tmp_path / "names.txt",
    ]
    result = cli(
        "pack", flat, tmp_path / "out", *arguments, "--workers", 1, "--limit", 40, "--reencode", "--quality", 50
    )
    assert result.exit_code == 0, result.stderr
    assert "CLASS/IMAGE (imagefolder)" in result.stdout
    shard_set = ShardSet.open(tmp_path / "out")
    assert [(info.wnid, info.name) for info in shard_set.classes] == [("class 0", "zero"), ("class2", "two")]
    assert {name: len(split) for name, split in shard_set.splits.items()} == {"train": 40, "val": 12}
    assert sum(shard_set.made["converted"].values()) == 52
    assert verify(tmp_path / "out", decode=True) == []
    again = cli("pack", flat, tmp_path / "out", *arguments, "--limit", 40, "--reencode", "--quality", 51)
    assert "encode.quality was 50, is 51" in again.stderr
    again = cli("pack", flat, tmp_path / "out", *arguments[:4], "--limit", 40, "--reencode", "--quality", 50)
    assert "the classes' readable names differ" in again.stderr


def test_a_table_of_images_anywhere(source, tmp_path):
    files = sorted((source / "train").rglob("*.jpg"))[:30]
    (tmp_path / "t.tsv").write_text("".join(f"{path}\t{i % 11}\n" for i, path in enumerate(files)))
    with ThreadPoolExecutor(1) as executor:
        pack(tmp_path / "t.tsv", tmp_path / "out", PackOptions(subset=Subset(limit=20)), executor=executor)
    split = ShardSet.open(tmp_path / "out").split("train")
    assert len(split) == 20
    for i, row in enumerate(split.samples):
        assert files.index(Path(split.source_name(i))) % 11 == row["label"]


def test_encoding_that_makes_no_sense_is_refused(tmp_path):
    for options, message in {
        "--quality 80": "--quality applies only to JPEGs that are scaled or re-encoded",
        "--subsampling 444 --check header": "--subsampling applies only to",
        "--quality 80 --apply-orientation": "--quality applies only to",
        "--max-side 5 --short-side 5": "choose one",
        "--reencode --baseline": "omit --baseline",
        "--reencode --check header": "omit --check header",
        "--workers 1 --scheduler a:1": "choose one",
        "--split train=0.5": "add up to 1",
        "--pixels 1.5": "--pixels: '1.5' is not a share of the images; write a number from 0 to 1",
        "--pixels nan": "--pixels: 'nan' is not a share",
        "--pixels half": "--pixels: 'half' is not a share",
    }.items():
        result = cli("pack", tmp_path, tmp_path / "out", *options.split())
        assert (result.exit_code, message in result.stderr) == (1, True), result.output
        assert len(result.stderr.splitlines()) == 1
    assert cli("pack", tmp_path, tmp_path / "out", "--quality", 101).exit_code == 2


def test_reading_a_packed_dataset_imports_nothing_heavy():
    heavy = "click", "webdataset", "PIL", "torch"
    code = f"import sys, penstock.shards.format; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
