"""`pack` end to end, read back by readers that are not ours: tarfile, webdataset, DALI's wds2idx, Pillow."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from shard_tools.__main__ import main
from shard_tools.format import ShardSet
from shard_tools.verify import verify
from shard_tools.writer import BadImages, pack

NUM_IMAGES = {"train": 90, "val": 25}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """115 small images in 3 classes, nearly all JPEG."""
    root = tmp_path_factory.mktemp("source")
    rng = np.random.default_rng(0)
    for split, count in NUM_IMAGES.items():
        for i in range(count):
            path = root / split / f"class{i % 3}" / f"{i:03d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            shape = (int(rng.integers(20, 60)), int(rng.integers(20, 60)), 3)
            image = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
            if i % 10 == 3:
                image = image.convert("L")
            if i % 30 == 7:
                image.save(path.with_suffix(".png"))
            else:
                image.save(path)
    return root


@pytest.fixture(scope="module")
def packed(source, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "out"
    with ThreadPoolExecutor(1) as executor:
        pack(source, out, samples_per_shard=32, executor=executor)
    return out


@pytest.fixture
def copy(packed, tmp_path) -> Path:
    """A packed dataset to damage."""
    out = tmp_path / "copy"
    out.mkdir()
    for path in packed.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    return out


def hashes(root: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(root.iterdir())}


def cli(*arguments: object) -> Result:
    """The command in this process: exit code and output as from a shell, without a second's start-up."""
    return CliRunner().invoke(main, list(map(str, arguments)))


def start(*arguments: object, **options) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "shard_tools", *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options)


def parts(out: Path) -> int:
    """How many shards are finished in an unfinished directory."""
    return len(list(out.glob(".pack/*-*.json")))


def wait_for_parts(run: subprocess.Popen[str], out: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while run.poll() is None and parts(out) < count and time.monotonic() < deadline:
        time.sleep(0.002)


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
    pack(moved, tmp_path / "a", samples_per_shard=32, workers=1)
    pack(source, tmp_path / "b", samples_per_shard=32, workers=2)
    with ProcessPoolExecutor(2) as executor:
        pack(source, tmp_path / "c", samples_per_shard=32, executor=executor)
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b") == hashes(tmp_path / "c") == hashes(packed)
    pack(source, tmp_path / "d", samples_per_shard=32, seed=1)
    assert hashes(tmp_path / "d")["train-000000.tar"] != hashes(packed)["train-000000.tar"]


def test_killed_at_random_moments_it_ends_with_the_same_bytes(source, tmp_path):
    settings = ["--samples-per-shard", "4", "--workers", "2"]
    assert cli("pack", source, tmp_path / "whole", *settings).exit_code == 0
    out = tmp_path / "killed"
    rng = np.random.default_rng(0)
    for _ in range(4):
        run = start("pack", source, out, *settings)
        wait_for_parts(run, out, parts(out) + 3)
        time.sleep(float(rng.uniform(0, 0.02)))
        run.kill()
        run.communicate()
    assert not (out / "dataset.json").exists(), "it was never interrupted"
    finished = [path.name.removesuffix(".json") for path in out.glob(".pack/*-*.json")]
    assert len(finished) >= 12
    before = {name: (out / f"{name}.tar").stat().st_mtime_ns for name in finished}
    result = cli("pack", source, out, *settings)
    assert result.exit_code == 0, result.output
    assert hashes(out) == hashes(tmp_path / "whole")
    assert {name: (out / f"{name}.tar").stat().st_mtime_ns for name in finished} == before  # kept, not made again


def test_workers_die_with_their_parent(source, tmp_path):
    run = start("pack", source, tmp_path / "out", "--samples-per-shard", "1", start_new_session=True)
    wait_for_parts(run, tmp_path / "out", 1)
    run.kill()
    run.communicate(timeout=20)  # returns when the last process that holds stderr has gone
    time.sleep(0.2)
    count = parts(tmp_path / "out")
    time.sleep(0.3)
    assert 1 <= count < 115
    assert parts(tmp_path / "out") == count


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_soon_and_says_how_to_go_on(source, tmp_path, number):
    run = start("pack", source, tmp_path / "out", "--samples-per-shard", "1", start_new_session=True)
    wait_for_parts(run, tmp_path / "out", 8)
    began = time.monotonic()
    if number == signal.SIGINT:
        os.killpg(run.pid, number)  # a terminal sends Ctrl-C to the workers too
    else:
        run.send_signal(number)
    _, errors = run.communicate(timeout=20)
    assert run.returncode == 130, errors
    assert "same command again" in errors
    assert len(errors.splitlines()) == 1
    assert time.monotonic() - began < 10
    assert 1 <= parts(tmp_path / "out") < 115
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_a_pool_that_is_writing_a_large_task_ends_at_once():
    code = """
import time
from shard_tools.workers import process_pool
try:
    with process_pool(2) as pool:
        for i in range(2):
            pool.submit(time.sleep, 60)
        for i in range(5):
            pool.submit(len, bytes(1 << 20))
        time.sleep(1)
        raise KeyboardInterrupt
except KeyboardInterrupt:
    print("ended")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert (result.stdout, result.stderr) == ("ended\n", "")


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
        pack(spoiled, out, samples_per_shard=200, executor=executor)
    text = str(caught.value)
    assert text.startswith("12 image(s)")
    assert text.count("train/class1/bad") == 10
    assert "--on-bad skip" in text
    assert not (out / "dataset.json").exists()
    result = cli("pack", spoiled, out, "--samples-per-shard", 200, "--on-bad", "skip")
    assert result.exit_code == 0, result.stderr
    assert "skipped 12 bad" in result.stderr
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
        done = pack(spoiled, tmp_path / "out", samples_per_shard=1, on_bad="skip", executor=executor)
    assert len(done.shard_set.split("train").shards) == NUM_IMAGES["train"]
    assert len(done.rejected) == 12
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
            pack(spoiled, out, samples_per_shard=200, executor=executor)
        for part in (out / ".pack").glob("train-*.json"):
            part.write_text("{}")
        shorten(out / "val-000000.tar", 512)
        pack(spoiled, out, samples_per_shard=200, executor=executor, on_bad="skip")
        pack(spoiled, tmp_path / "again", samples_per_shard=200, executor=executor, on_bad="skip")
    assert hashes(out) == hashes(tmp_path / "again")


def edit(path: Path, change) -> None:
    info = json.loads(path.read_text())
    change(info)
    path.write_text(json.dumps(info, indent=1))


def swap(a: Path, b: Path) -> None:
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def edit_table(root: Path, column: str) -> None:
    table = np.load(root / "train.samples.npy")
    table[column][5] = (table[column][5] + 1) % 3 if column == "label" else table[column][5] + 1
    np.save(root / "train.samples.npy", table)


def shorten(path: Path, by: int) -> None:
    path.write_bytes(path.read_bytes()[:-by])


DAMAGE = {
    "flipped byte": (lambda d: flip(d / "train-000001.tar", 5000), "train-000001.tar: sha256"),
    "truncated tar": (lambda d: shorten(d / "train-000001.tar", 20_000), "train-000001.tar: is not a whole tar"),
    "missing shard": (lambda d: (d / "train-000001.tar").unlink(), "train-000001.tar: cannot be read"),
    "missing index": (lambda d: (d / "train-000001.idx").unlink(), "train-000001.idx: No such file"),
    "extra shard": (lambda d: (d / "train-000009.tar").write_bytes(b""), "train-000009.tar: is not listed"),
    "swapped shards": (lambda d: swap(d / "train-000000.tar", d / "train-000001.tar"), "train-000000.tar: sha256"),
    "stale index": (lambda d: swap(d / "train-000000.idx", d / "train-000001.idx"), "train-000000.idx: line 2"),
    "short index": (lambda d: shorten(d / "train-000000.idx", 60), "train-000000.idx: "),
    "label in table": (lambda d: edit_table(d, "label"), "its .cls is"),
    "offset in table": (lambda d: edit_table(d, "offset"), "the table says"),
    "height in table": (lambda d: edit_table(d, "height"), "pixels, the table says"),
    "edited sources": (lambda d: shorten(d / "train.sources.txt", 3), "train.sources.txt: changed"),
    "class name": (lambda d: edit(d / "dataset.json", lambda i: i["classes"][0].update(name="x")), "was edited"),
    "class taken out": (lambda d: edit(d / "dataset.json", lambda i: i["classes"].pop()), "label is outside"),
    "shard taken out": (lambda d: edit(d / "dataset.json", lambda i: i["splits"]["train"]["shards"].pop()), "says 64"),
    "hash": (
        lambda d: edit(d / "dataset.json", lambda i: i["splits"]["val"]["shards"][0].update(sha256="0")),
        "val-000000.tar: sha256",
    ),
    "not json": (lambda d: (d / "dataset.json").write_text("{"), "not a dataset description"),
    "no table": (lambda d: (d / "val.samples.npy").unlink(), "cannot read the sample table"),
}


def test_verify_finds_nothing_in_a_good_dataset(packed):
    assert verify(packed, decode=True) == []
    result = cli("verify", packed, "--decode")
    assert result.exit_code == 0
    assert result.stdout == "OK: 115 samples, 4 shards\n"


@pytest.mark.parametrize("name", DAMAGE)
def test_verify_finds(copy, name):
    damage, finding = DAMAGE[name]
    damage(copy)
    findings = verify(copy, decode=True)
    assert any(finding in line for line in findings), findings
    assert all("\n" not in line for line in findings)


def test_verify_command_exits_with_1(copy):
    flip(copy / "train-000001.tar", 5000)
    result = cli("verify", copy)
    assert result.exit_code == 1
    assert "sha256" in result.stdout


def test_info(packed):
    assert "115" not in cli("info", packed).stderr
    information = json.loads(cli("info", packed, "--json").stdout)
    assert information["splits"]["train"]["samples"] == 90
    assert information["splits"]["train"]["samples_per_class"] == {"min": 30, "max": 30}
    assert 20 <= information["splits"]["train"]["quantiles"]["height"]["50"] < 60


def test_command_errors_are_one_line(source, packed, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("x")
    (tmp_path / "file").write_text("x")
    cases = {
        ("pack", tmp_path / "none", tmp_path / "o"): "no such directory",
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


def test_a_full_disk_is_one_line(source, tmp_path):
    limit = "import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000)); "
    run = limit + "runpy.run_module('shard_tools', run_name='__main__')"
    command = [sys.executable, "-c", run, "pack", str(source), str(tmp_path / "out"), "--samples-per-shard", "32"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert "cannot be written" in result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr


def test_the_demo_set_is_deterministic_and_whole(tmp_path):
    from shard_tools.demo import CLASSES, make_demo

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


def test_reading_a_packed_dataset_imports_nothing_heavy():
    heavy = "click", "webdataset", "PIL", "torch"
    code = f"import sys, shard_tools.format; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
