"""`verify` finds every kind of damage, and `--fix` repairs it. webdataset and the trainer read the result."""

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from penstock.shard_tools.__main__ import main
from penstock.shard_tools.repair import repair
from penstock.shard_tools.tarwriter import TarWriter
from penstock.shard_tools.verify import verify
from penstock.shards.format import (
    SAMPLE_DTYPE,
    ClassInfo,
    ShardInfo,
    ShardSet,
    file_sha256,
    write_info,
    write_split,
)

SHARDS = {"train": (12, 12, 9), "val": (8,)}
NUM_CLASSES = 3
TRAIN = "train-000001"


def jpeg(i: int) -> bytes:
    rng = np.random.default_rng(i)
    pixels = rng.integers(0, 256, (int(rng.integers(20, 40)), int(rng.integers(20, 40)), 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def stored(i: int) -> tuple[str, bytes]:
    """Extension and content of image `i`: some are pixels."""
    if i % 4 != 2:
        return "jpg", jpeg(i)
    buffer = io.BytesIO()
    Image.open(io.BytesIO(jpeg(i))).save(buffer, "PPM")
    return "ppm", buffer.getvalue()


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """41 noise images in 4 shards, a quarter of them as pixels, written as `pack` writes them."""
    root = tmp_path_factory.mktemp("good")
    infos: dict[str, list[ShardInfo]] = {}
    files: dict[str, str] = {}
    number = 0
    for split, counts in SHARDS.items():
        rows, names, infos[split] = [], [], []
        for shard, count in enumerate(counts):
            path = root / f"{split}-{shard:06d}.tar"
            lines = [f"v1.2 {count}"]
            with open(path, "wb") as stream:
                tar = TarWriter(stream)
                for _ in range(count):
                    (extension, data), label, key = stored(number), number % NUM_CLASSES, f"{number:09d}"
                    at = tar.add(f"{key}.cls", str(label).encode())
                    offset = tar.add(f"{key}.{extension}", data)
                    width, height = Image.open(io.BytesIO(data)).size
                    rows.append((shard, offset, len(data), label, height, width))
                    names.append(f"{split}/{number}.JPEG")
                    lines.append(f"cls {at} 1 {key}.cls {extension} {offset} {len(data)} {key}.{extension}")
                    number += 1
                tar.close()
            path.with_suffix(".idx").write_text("".join(f"{line}\n" for line in lines))
            infos[split].append(ShardInfo(path.name, count, path.stat().st_size, file_sha256(path)))
        files |= write_split(root, split, np.array(rows, SAMPLE_DTYPE), names)
    classes = [ClassInfo(f"n{i}", f"class {i}") for i in range(NUM_CLASSES)]
    write_info(root, classes, infos, {"seed": 0}, files)
    return root


@pytest.fixture
def copy(good, tmp_path) -> Path:
    root = tmp_path / "copy"
    root.mkdir()
    for path in good.iterdir():
        (root / path.name).write_bytes(path.read_bytes())
    return root


def cli(*arguments: object) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)))


def contents(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(root.iterdir())}


def edit(path: Path, change: Callable[[dict], None]) -> None:
    info = json.loads(path.read_text())
    change(info)
    path.write_text(json.dumps(info, indent=1))


def swap(a: Path, b: Path) -> None:
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)


def put(path: Path, at: int, new: bytes) -> None:
    data = bytearray(path.read_bytes())
    data[at : at + len(new)] = new
    path.write_bytes(data)


def edit_table(root: Path, column: str) -> None:
    table = np.load(root / "train.samples.npy")
    table[column][5] = (table[column][5] + 1) % 3 if column == "label" else table[column][5] + 1
    np.save(root / "train.samples.npy", table)


def shorten(path: Path, by: int) -> None:
    path.write_bytes(path.read_bytes()[:-by])


def cut(path: Path, sample: np.void) -> None:
    """In the middle of a sample's data."""
    os.truncate(path, int(sample["offset"]) + int(sample["size"]) // 2)


def row(root: Path, sample: int) -> np.void:
    return np.load(root / "train.samples.npy")[sample]


def damage_image(root: Path) -> None:
    """Sample 15 ends in the middle of its data."""
    sample = row(root, 15)
    put(root / f"{TRAIN}.tar", int(sample["offset"]) + int(sample["size"]) // 2, b"\xff\xd9")


# damage, what verify says of it, and what is left after --fix: "all" to the byte, a number of samples, or a finding
DAMAGE: dict[str, tuple[Callable[[Path], None], str, str | int]] = {
    "flipped byte in a tar header": (lambda d: put(d / f"{TRAIN}.tar", 5, b"\xff"), f"{TRAIN}.tar: sha256", "all"),
    "flipped byte in a label": (lambda d: put(d / f"{TRAIN}.tar", 512, b"7"), "its .cls is 7", "all"),
    "flipped byte in padding": (lambda d: put(d / f"{TRAIN}.tar", 600, b"\1"), f"{TRAIN}.tar: sha256", "all"),
    "flipped byte in a quantisation table": (
        lambda d: put(d / f"{TRAIN}.tar", int(row(d, 15)["offset"]) + 40, b"\x55"),
        f"{TRAIN}.tar: sha256",
        "hash",
    ),
    "flipped byte in a stored pixel": (
        lambda d: put(d / f"{TRAIN}.tar", int(row(d, 14)["offset"]) + 400, b"\x55"),
        f"{TRAIN}.tar: sha256",
        "hash",
    ),
    "header of stored pixels": (
        lambda d: put(d / f"{TRAIN}.tar", int(row(d, 14)["offset"]), b"X"),
        "not a JPEG, PNG, WebP, BMP or PPM image",
        40,
    ),
    "stored pixels written otherwise": (
        lambda d: put(d / f"{TRAIN}.tar", int(row(d, 14)["offset"]) + 2, b" "),
        "is ppm, but packing writes only gray or RGB JPEGs and PPM pixels",
        40,
    ),
    "damaged image": (damage_image, "premature end of data segment", 40),
    "truncated tar": (lambda d: cut(d / f"{TRAIN}.tar", row(d, 23)), f"{TRAIN}.tar: is damaged", 40),
    "tar without its end": (lambda d: shorten(d / f"{TRAIN}.tar", 1024), f"{TRAIN}.tar: has", "all"),
    "missing shard": (lambda d: (d / f"{TRAIN}.tar").unlink(), f"{TRAIN}.tar: cannot be read", 29),
    "missing index": (lambda d: (d / f"{TRAIN}.idx").unlink(), f"{TRAIN}.idx: No such file", "all"),
    "extra shard": (lambda d: (d / "train-000009.tar").write_bytes(b""), "train-000009.tar: is not listed", "extra"),
    "swapped shards": (
        lambda d: swap(d / "train-000000.tar", d / f"{TRAIN}.tar"),
        f"this is the content of {TRAIN}.tar",
        "all",
    ),
    "stale index": (lambda d: swap(d / "train-000000.idx", d / f"{TRAIN}.idx"), "train-000000.idx: line 2", "all"),
    "short index": (lambda d: shorten(d / "train-000000.idx", 60), "train-000000.idx: ", "all"),
    "label in table": (lambda d: edit_table(d, "label"), "its .cls is", "all"),
    "offset in table": (lambda d: edit_table(d, "offset"), "but no image begins there", "all"),
    "height in table": (lambda d: edit_table(d, "height"), "pixels, the table says", "all"),
    "no table": (lambda d: (d / "val.samples.npy").unlink(), "cannot read the sample table", "all"),
    "edited sources": (lambda d: put(d / "train.sources.txt", 3, b"X"), "train.sources.txt: changed", 41),
    "short sources": (lambda d: shorten(d / "train.sources.txt", 9), "train.sources.txt: changed", 41),
    "class name": (lambda d: edit(d / "dataset.json", lambda i: i["classes"][0].update(name="x")), "was edited", 41),
    "shard's hash": (
        lambda d: edit(d / "dataset.json", lambda i: i["splits"]["val"]["shards"][0].update(sha256="0")),
        "val-000000.tar: sha256",
        "all",
    ),
    "shard's count": (
        lambda d: edit(d / "dataset.json", lambda i: i["splits"]["val"]["shards"][0].update(samples=7)),
        "lists 7 samples",
        "all",
    ),
    "class taken out": (
        lambda d: edit(d / "dataset.json", lambda i: i["classes"].pop()),
        "label is outside",
        "dataset",
    ),
    "not json": (lambda d: (d / "dataset.json").write_text("{"), "not a dataset description", "dataset"),
}


def test_nothing_is_found_in_a_good_dataset(good):
    assert verify(good, decode=True) == []
    assert verify(good, decode=True, workers=2) == []
    result = cli("verify", good, "--decode")
    assert (result.exit_code, result.stdout) == (0, "OK: 41 samples, 4 shards\n")
    assert json.loads(cli("verify", good, "--json", "--workers", 1).stdout) == []


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_and_mended(good, copy, name):
    damage, message, expected = DAMAGE[name]
    damage(copy)
    findings = verify(copy, decode=True)
    assert any(message in str(finding) for finding in findings), findings
    assert all("\n" not in str(finding) for finding in findings)

    result = cli("verify", copy, "--fix", "--workers", 1)
    assert all(str(finding) in result.output for finding in findings)
    left = verify(copy, decode=True)
    assert result.exit_code == bool(left)
    if isinstance(expected, str) and expected != "all":
        assert {finding.kind for finding in left} == {expected}
        assert "not repaired" in result.output or "cannot be repaired" in result.output or expected == "extra"
        return
    assert left == []
    if expected == "all":
        assert contents(copy) == contents(good)
        return
    splits = ShardSet.open(copy).splits.values()
    assert sum(map(len, splits)) == sum(shard.samples for split in splits for shard in split.shards) == expected
    whole = {name: data for path in good.glob("*.tar") for name, data in members(path).items()}
    for split in splits:
        for shard, info in enumerate(split.shards):
            found = members(split.shard_path(shard))
            assert len(found) == 2 * info.samples
            assert found.items() <= whole.items()
        for i in range(len(split)):
            if name != "short sources":
                number = int(split.source_name(i).strip("trainvlX/").removesuffix(".JPEG"))
                at = split.samples[i]
                with open(split.shard_path(int(at["shard"])), "rb") as stream:
                    stream.seek(int(at["offset"]))
                    assert stream.read(int(at["size"])) == stored(number)[1]
                assert at["label"] == number % NUM_CLASSES


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def test_members_whose_names_are_lost_are_named_by_what_they_hold(copy):
    (copy / f"{TRAIN}.idx").unlink()
    put(copy / f"{TRAIN}.tar", int(row(copy, 15)["offset"]) - 512, b"\xff")  # the tar cannot be read from there on
    assert cli("verify", copy, "--fix", "--workers", 1).exit_code == 0
    found = members(copy / f"{TRAIN}.tar")
    assert [found[f"{i:09d}.{stored(12 + i)[0]}"] for i in range(12)] == [stored(12 + i)[1] for i in range(12)]
    assert len(found) == 24


@pytest.mark.parametrize("where", np.linspace(0, 0.999, 12))
def test_a_flipped_bit_anywhere_is_found(copy, where):
    path = copy / f"{TRAIN}.tar"
    at = int(where * path.stat().st_size)
    put(path, at, bytes([path.read_bytes()[at] ^ 4]))
    assert "hash" in {finding.kind for finding in verify(copy)}


def test_findings_as_json(copy):
    damage_image(copy)
    (copy / "val-000000.idx").unlink()
    result = cli("verify", copy, "--json", "--decode", "--workers", 1)
    assert result.exit_code == 1
    findings = json.loads(result.stdout)
    assert [(f["kind"], f["file"], f["sample"]) for f in findings] == [
        ("hash", f"{TRAIN}.tar", None),
        ("decode", f"{TRAIN}.tar", 15),
        ("index", "val-000000.idx", None),
    ]
    assert all(set(f) == {"kind", "file", "sample", "message"} for f in findings)


def test_a_mended_dataset_is_read_by_others(copy):
    import torch
    import webdataset

    from penstock.pipeline.augment import AugmentConfig
    from penstock.pipeline.config import DataConfig
    from penstock.pipeline.feed import Feed
    from penstock.pipeline.loader import DaliLoader

    damage_image(copy)
    cut(copy / "val-000000.tar", ShardSet.open(copy).split("val").samples[7])
    assert cli("verify", copy, "--fix", "--workers", 1).exit_code == 0
    shard_set = ShardSet.open(copy)
    for name, split in shard_set.splits.items():
        urls = [str(split.shard_path(i)) for i in range(len(split.shards))]
        read = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil"))
        assert [sample["cls"] for sample in read] == split.samples["label"].tolist()
        images = [sample["jpg" if "jpg" in sample else "ppm"] for sample in read]
        assert [image.size for image in images] == [(r["width"], r["height"]) for r in split.samples]
        config = DataConfig(path=str(copy), image_size=16, val_image_size=16, val_resize_size=18)
        feed = Feed(split=split, config=config, augment=AugmentConfig(), batch_size=4, global_batch_size=4)
        loader = DaliLoader(feed, device=torch.device("cpu"), threads=1)
        assert sum(len(batch.labels) for batch in loader.iter_epoch(0)) == len(split) // 4 * 4
        assert not loader.quarantine, name
        loader.close()


def test_foreign_shards(tmp_path):
    """Other extensions, another order, labels in JSON: indexed, verified, damaged, mended; the tars are not touched."""
    root = tmp_path / "foreign"
    root.mkdir()
    for name in ("train-00.tar", "train-01.tar"):
        with tarfile.open(root / name, "w") as tar:
            for i in range(6):
                for extension, data in (("jpeg", jpeg(i)), ("json", json.dumps({"label": i % 2}).encode())):
                    member = tarfile.TarInfo(f"./some.where/{i:03d}.{extension}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    from penstock.shard_tools.index import index

    index(root, workers=1)
    assert verify(root, decode=True) == []
    table = ShardSet.open(root).split("train").samples
    put(root / "train-01.tar", int(table[8]["offset"] + table[8]["size"] // 2), b"\xff\xd9")
    tars = {path: path.read_bytes() for path in root.glob("*.tar")}
    assert {finding.kind for finding in verify(root, decode=True)} == {"hash", "decode"}
    lines = repair(root, workers=1)
    assert any("train-01.tar" in line and "removed" in line for line in lines)
    assert verify(root, decode=True) == []
    assert len(ShardSet.open(root).split("train")) == 11
    assert {path: path.read_bytes() for path in root.glob("*.tar")} == tars
