"""`pack --pixels` end to end: training cannot distinguish it from the same dataset of JPEGs."""

import io
import json
import shutil
import tarfile
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from penstock import train
from penstock.pipeline.reader import open_reader
from penstock.shard_tools.encode import EncodeConfig
from penstock.shard_tools.index import index
from penstock.shard_tools.verify import verify
from penstock.shard_tools.writer import PackOptions, pack
from penstock.shards.format import ShardSet, Split
from tests.common.packing import NUM_IMAGES, cli, hashes, write_source
from tests.common.remote_feeds import feed_of
from tests.common.runs import by_step, lines, run
from tests.common.source_images import jpeg, write_tar


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of several kinds, some bad, some there twice: with another label, in another split."""
    root = write_source(tmp_path_factory.mktemp("source"))
    for i in range(5):
        (root / "train/class1" / f"bad{i}.jpg").write_bytes(b"no image")
    shutil.copy(root / "train/class0/000.jpg", root / "train/class1/again.jpg")
    shutil.copy(root / "train/class0/003.jpg", root / "val/class0/again.jpg")
    return root


def packed(source: Path, out: Path | str, pixels: float, **settings: object) -> ShardSet:
    encode = EncodeConfig(pixels=pixels)
    with ThreadPoolExecutor(1) as executor:
        options = PackOptions(samples_per_shard=32, on_bad="skip", encode=encode, **settings)  # type: ignore[arg-type]
        return pack(source, out, options, executor=executor).shard_set


@pytest.fixture(scope="module")
def sets(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[float, ShardSet]:
    root = tmp_path_factory.mktemp("sets")
    return {share: packed(source, root / str(share), share) for share in (0, 0.25, 0.5, 1)}


def images(split: Split) -> list[tuple[str, bytes]]:
    """Name and content of each image member, as tarfile finds them."""
    found = []
    for shard in range(len(split.shards)):
        with tarfile.open(split.shard_path(shard)) as tar:
            members = tar.getmembers()
            for label, image in zip(members[::2], members[1::2], strict=True):
                stream = tar.extractfile(image)
                assert stream is not None
                assert label.name == image.name.partition(".")[0] + ".cls"
                found.append((image.name, stream.read()))
    return found


@pytest.mark.parametrize("split", ["train", "val"])
def test_members_hold_the_pixels_of_the_jpegs_that_would_be_there(sets: dict[float, ShardSet], split: str) -> None:
    jpegs, stored = images(sets[0].split(split)), set[str]()
    for share, shard_set in sets.items():
        rows, plain, found = (
            shard_set.split(split).samples,
            sets[0].split(split).samples,
            images(shard_set.split(split)),
        )
        for name in ("shard", "label", "height", "width"):
            assert (rows[name] == plain[name]).all()
        for (name, data), row, (jpeg_name, plain_data) in zip(found, rows, jpegs, strict=True):
            assert (name.partition(".")[0], len(data)) == (jpeg_name.partition(".")[0], row["size"])
            if name.endswith(".jpg"):
                assert data == plain_data
                continue
            image, expected = Image.open(io.BytesIO(data)), Image.open(io.BytesIO(plain_data)).convert("RGB")
            assert (name[-4:], image.format, image.size) == (".ppm", "PPM", (row["width"], row["height"]))
            assert (np.asarray(image) == np.asarray(expected)).all()
        now = {name.partition(".")[0] for name, _ in found if name.endswith(".ppm")}
        assert stored <= now
        listed = NUM_IMAGES[split] + (6 if split == "train" else 1)  # five of them bad, some of which were chosen
        assert round(share * listed) - 5 <= len(now) <= round(share * listed)
        stored = now
    assert len(stored) == len(jpegs)


def test_all_that_is_said_of_the_dataset_is_the_same(sets: dict[float, ShardSet]) -> None:
    plain, half = sets[0], sets[0.5]
    for name in ("train.sources.txt", "val.sources.txt", "rejected.tsv", "duplicates.tsv"):
        assert (plain.root / name).read_bytes() == (half.root / name).read_bytes()
    assert len((half.root / "duplicates.tsv").read_text().splitlines()) == 1 + 4
    made = half.made | {"encode": plain.made["encode"]}
    assert made == plain.made
    assert half.made["encode"]["pixels"] == 0.5  # type: ignore[index]
    assert verify(half.root, decode=True) == []


def test_info_tells_how_many_and_their_bytes(sets: dict[float, ShardSet]) -> None:
    for share, shard_set in sets.items():
        facts = json.loads(cli("info", shard_set.root, "--json").stdout)
        for name, split in shard_set.splits.items():
            sizes = [len(data) for member, data in images(split) if member.endswith(".ppm")]
            assert facts["splits"][name]["stored_as_pixels"] == {"samples": len(sizes), "bytes": sum(sizes)}
        assert ("stored as pixels: " in cli("info", shard_set.root).stdout) == (share > 0)
    assert "    stored as pixels: 91 images, 100.0% of the images' bytes\n" in cli("info", sets[1].root).stdout


def test_the_bytes_do_not_depend_on_workers_and_a_run_keeps_its_share(
    source: Path, sets: dict[float, ShardSet], tmp_path: Path
) -> None:
    arguments = ("--samples-per-shard", 32, "--on-bad", "skip", "--pixels")
    num_pixels = sum(name.endswith(".ppm") for name, _ in images(sets[0.5].split("train")))
    for workers in (1, 2):
        result = cli("pack", source, tmp_path / str(workers), *arguments, 0.5, "--workers", workers)
        assert result.exit_code == 0, result.output
        assert f", {num_pixels} of them stored as pixels\n" in result.stdout
        assert hashes(tmp_path / str(workers)) == hashes(sets[0.5].root)
    assert "already complete" in cli("pack", source, sets[0.5].root, *arguments, "0.50").stdout
    other = cli("pack", source, sets[0.5].root, *arguments, 0.25)
    assert other.exit_code == 1
    assert "encode.pixels was 0.5, is 0.25" in other.stderr
    assert cli("pack", source, tmp_path / "begun", "--pixels", 0.5).exit_code == 1  # a bad image stops it
    said = cli("pack", source, tmp_path / "begun").stderr
    assert "holds an unfinished run with other settings or images (encode.pixels was 0.5, is 0.0)" in said


def test_at_a_url_they_are_the_same(
    source: Path, sets: dict[float, ShardSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    remote = packed(source, "memory://pixels/set", 0.5, staging=tmp_path / "stage")
    assert remote.fingerprint == sets[0.5].fingerprint
    for name, split in remote.splits.items():
        views = open_reader(feed_of(remote, tmp_path, name)).views(np.arange(len(split)))
        assert [view.tobytes() for view in views] == [data for _, data in images(sets[0.5].split(name))]


def test_tars_with_pixels_are_indexed_and_packed_anew(sets: dict[float, ShardSet], tmp_path: Path) -> None:
    (tmp_path / "tars").mkdir()
    for path in sets[0.5].root.glob("*.tar"):
        shutil.copy(path, tmp_path / "tars")
    with ThreadPoolExecutor(1) as executor:
        again = index(tmp_path / "tars", executor=executor)
    for name, split in sets[0.5].splits.items():
        assert (again.split(name).samples == split.samples).all()
        for shard in range(len(split.shards)):
            assert again.split(name).index_path(shard).read_bytes() == split.index_path(shard).read_bytes()
    assert again.made["image_extensions"] == ["jpg", "ppm"]
    num_pixels = sum(name.endswith(".ppm") for split in again.splits.values() for name, _ in images(split))
    assert again.made["kinds"] == {"jpeg": 117 - num_pixels, "ppm": num_pixels}
    assert verify(again.root, decode=True) == []
    assert "stored as pixels: " in cli("info", again.root).stdout
    repacked = packed(again.root, tmp_path / "repacked", 0)
    assert repacked.made["converted"] == {"ppm": num_pixels}
    assert packed(again.root, tmp_path / "pixels", 1).made["converted"] == {"ppm": num_pixels}
    for (_, data), (_, jpeg_data) in zip(
        images(ShardSet.open(tmp_path / "pixels").split("train")), images(repacked.split("train")), strict=True
    ):
        expected = Image.open(io.BytesIO(jpeg_data)).convert("RGB")
        assert (np.asarray(Image.open(io.BytesIO(data))) == np.asarray(expected)).all(), "not by way of the JPEG"


def test_netpbm_files_of_others_are_images(tmp_path: Path) -> None:
    """In directories, and in tars: where DALI and Pillow agree on them."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 14, 3), dtype=np.uint8)
    files = {
        "a.ppm": b"P6\n14 9\n255\n" + pixels.tobytes(),
        "b.PPM": b"P6 # from a camera\n14 9 255\n" + pixels.tobytes(),
        "c.pgm": b"P5\n14 9\n255\n" + pixels[..., 0].tobytes(),
        "d.ppm": b"P6\n14 9\n31\n" + (pixels // 8).tobytes(),
        "e.jpg": jpeg(1),
    }
    (tmp_path / "tree/class").mkdir(parents=True)
    for name, data in files.items():
        (tmp_path / "tree/class" / name).write_bytes(data)
    assert packed(tmp_path / "tree", tmp_path / "out", 0.5).made["converted"] == {"ppm": 4}
    assert verify(tmp_path / "out", decode=True) == []
    members = [(n, d) for name, data in files.items() for n, d in ((name, data), (f"{name[0]}.cls", b"0"))]
    write_tar(tmp_path / "tars/train.tar", members)
    refused = cli("index", tmp_path / "tars", "--workers", 1)
    assert refused.exit_code == 1
    assert "train.tar/d.ppm: DALI and Pillow decode it to different colours" in refused.stderr
    assert cli("index", tmp_path / "tars", "--workers", 1, "--on-bad", "skip").exit_code == 0
    assert ShardSet.open(tmp_path / "tars").made["kinds"] == {"jpeg": 1, "ppm": 3}
    assert verify(tmp_path / "tars", decode=True) == []


def test_training_cannot_tell(dataset_dir: Path, mixed_dir: Path, tmp_path: Path) -> None:
    """Losses to the bit, validation, `eval` and `predict`; and `replay` of a step that failed."""
    for data, name in ((dataset_dir, "jpegs"), (mixed_dir, "mixed")):
        result = run(data, tmp_path / name)
        assert result.exit_code == 0, result.output
    losses = by_step(tmp_path / "mixed", "loss")
    assert losses == by_step(tmp_path / "jpegs", "loss")
    assert all(a != b for a, b in pairwise(losses.values()))
    evals = [lines(tmp_path / name, "eval")[-1] for name in ("jpegs", "mixed")]
    for key in ("loss", "top1", "top5"):
        assert evals[0][key] == evals[1][key]

    def answer(*words: object) -> Result:
        result = CliRunner().invoke(train.main, [*map(str, words), "--device", "cpu"])
        assert result.exit_code == 0, result.output
        return result

    assert json.loads(answer("eval", tmp_path / "mixed", "--json").stdout)["top1"] == evals[1]["top1"]
    name, data = next(member for member in images(ShardSet.open(mixed_dir).split("val")) if member[0].endswith(".ppm"))
    (tmp_path / name).write_bytes(data)
    (predicted,) = answer("predict", tmp_path / "mixed", tmp_path / name, "--json").stdout.splitlines()
    assert "error" not in json.loads(predicted)
    broken = run(mixed_dir, tmp_path / "nan", optimizer__lr=1e20, schedule__warmup_epochs=0, train__log_every=3)
    assert broken.exit_code == 1
    (file,) = (tmp_path / "nan").glob("failed-step-*.pt")
    assert "the batch has the failed step's 12 samples in the same order" in answer("replay", file).output
