"""Odd and rotated images on the command line: packed, indexed, verified, repaired, counted; none is lost."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.recipes import Recipe
from penstock.shard_tools import encode, scan, trainable
from penstock.shard_tools.index import index
from penstock.shard_tools.verify import verify
from penstock.shard_tools.writer import PackOptions, pack
from penstock.shards.format import ShardSet
from penstock.training.learner import about
from tests.common.odd_jpegs import oriented, sampled, saved, smooth, with_frame, without_adobe
from tests.common.packing import cli
from tests.common.source_images import write_tar

JPEG = saved(smooth(), "JPEG")
ODD = sampled(smooth(1), ((1, 4), (1, 1), (1, 1)))
TWELVE_BITS = with_frame(JPEG, 0xC1, bits=12)
OPPOSITE = without_adobe(saved(smooth(2).convert("CMYK"), "JPEG", quality=95))
FILES = {"a": JPEG, "b": ODD, "c": OPPOSITE, "d": oriented(smooth(3), 6), "e": oriented(smooth(4), 3, "PNG")}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source" / "class").mkdir(parents=True)
    for name, data in FILES.items():
        (tmp_path / "source" / "class" / f"{name}.jpg").write_bytes(data)
    return tmp_path / "source"


def made(out: Path) -> dict[str, Any]:
    return ShardSet.open(out).made


def test_odd_and_turned_images_are_packed_and_counted(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = cli("pack", source, out, "--workers", 1)
    assert result.exit_code == 0, result.output
    line = "2 image(s) have an EXIF orientation that is not applied, as in torchvision; --apply-orientation applies it"
    assert line in result.stdout
    assert made(out)["converted"] == {"cmyk": 1, "odd-jpeg": 1, "png": 1}
    assert made(out)["unturned"] == 2
    assert "2 image(s) have an EXIF orientation that is not applied" in cli("info", out).stdout
    checked = cli("verify", out, "--decode", "--workers", 1)
    assert checked.stdout.splitlines() == [
        "OK: 5 samples, 1 shards",
        "2 image(s) have an EXIF orientation that is not applied, as in torchvision",
    ]

    refused = cli("pack", source, out, "--workers", 1, "--apply-orientation")
    assert "encode.apply_orientation was False, is True" in refused.stderr
    turned = tmp_path / "turned"
    result = cli("pack", source, turned, "--workers", 1, "--apply-orientation", "--samples-per-shard", 1)
    assert "EXIF" not in result.stdout
    assert made(turned)["converted"] == {"cmyk": 1, "odd-jpeg": 1, "oriented": 2}
    assert made(turned)["unturned"] == 0
    split = ShardSet.open(turned).split("train")
    sizes = {split.source_name(i): (int(row["height"]), int(row["width"])) for i, row in enumerate(split.samples)}
    assert sizes == {f"class/{name}.jpg": (80, 64) if name == "d" else (64, 80) for name in FILES}
    assert cli("verify", turned, "--decode", "--workers", 1).stdout == "OK: 5 samples, 5 shards\n"
    told = [about(Recipe(), ShardSet.open(root))["oriented"] for root in (out, turned)]  # in checkpoints, for `predict`
    assert told == [False, True]


@pytest.mark.parametrize("setting", ["apply_orientation", "pixels"])
def test_a_dataset_from_before_the_setting_is_still_complete(source: Path, tmp_path: Path, setting: str) -> None:
    out = tmp_path / "out"
    assert cli("pack", source, out, "--workers", 1).exit_code == 0
    info = json.loads((out / "dataset.json").read_text())
    del info["made"]["encode"][setting]
    (out / "dataset.json").write_text(json.dumps(info))
    assert "already complete" in cli("pack", source, out, "--workers", 1).stdout


def test_one_image_that_nobody_foresaw_costs_its_line(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source / "class" / "f.jpg").write_bytes(TWELVE_BITS)
    original = encode.read_header
    monkeypatch.setattr(encode, "read_header", lambda data: {}[6] if data == JPEG else original(data))
    with ThreadPoolExecutor(1) as executor:
        packed = pack(source, tmp_path / "out", PackOptions(on_bad="skip"), executor=executor)
    assert dict(packed.rejected.first) == {
        "class/a.jpg": "KeyError: 6",
        "class/f.jpg": "a JPEG with 12 bits per sample; only 8 bits are supported, convert it first",
    }
    assert len(packed.shard_set.split("train")) == 4


def shards(root: Path, *images: bytes) -> Path:
    members = [(f"{i}.{e}", d) for i, data in enumerate(images) for e, d in (("jpg", data), ("cls", b"0"))]
    write_tar(root / "train-0.tar", members)
    return root


def test_what_dali_sees_otherwise_is_not_indexed(tmp_path: Path) -> None:
    root = shards(tmp_path, JPEG, ODD, OPPOSITE, FILES["d"])
    result = cli("index", root, "--workers", 1)
    assert result.exit_code == 1
    assert "train-0.tar/2.jpg: DALI and Pillow decode it to different colours" in result.stderr
    result = cli("index", root, "--workers", 1, "--on-bad", "skip")
    assert result.exit_code == 0, result.output
    assert "1 image(s) have an EXIF orientation that is not applied" in result.stdout
    assert {name: made(root)[name] for name in ("kinds", "rejected", "unturned")} == {
        "kinds": {"jpeg": 2, "odd-jpeg": 1},
        "rejected": 1,
        "unturned": 1,
    }
    assert verify(root, decode=True) == []


def test_verify_decodes_as_training_does_and_fix_takes_out_what_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For shards that were indexed by a version that did not check images with DALI."""
    root = shards(tmp_path, JPEG, OPPOSITE, saved(smooth(5), "PNG"))
    with monkeypatch.context() as patched:
        patched.setattr(scan, "check_trains", lambda *args, **kwargs: None)
        with ThreadPoolExecutor(1) as executor:
            assert len(index(root, executor=executor).split("train")) == 3
    assert verify(root) == []
    (finding,) = verify(root, decode=True)
    assert (finding.kind, finding.sample) == ("decode", 1)
    assert "decode it to different colours" in finding.message
    result = cli("verify", root, "--fix", "--workers", 1)
    assert result.exit_code == 0, result.output
    assert "skipped 1 image(s) that training cannot use as they are, see rejected.tsv" in result.stderr
    assert len(ShardSet.open(root).split("train")) == 2


def test_an_image_of_ours_that_dali_alone_refuses_is_found_and_removed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert cli("pack", source, out, "--workers", 1).exit_code == 0
    names = [ShardSet.open(out).split("train").source_name(i) for i in range(5)]
    refuse(monkeypatch, lambda data: data.tobytes() == JPEG)
    (finding,) = verify(out, decode=True)
    assert (finding.kind, finding.sample) == ("decode", names.index("class/a.jpg"))
    assert finding.message.endswith("DALI cannot decode it (not this one)")
    result = cli("verify", out, "--fix", "--workers", 1)
    assert result.exit_code == 0, result.output
    left = ShardSet.open(out).split("train")
    assert [left.source_name(i) for i in range(4)] == [name for name in names if name != "class/a.jpg"]


def refuse(monkeypatch: pytest.MonkeyPatch, which: Callable[[np.ndarray], bool]) -> None:
    decoder = trainable._decoder()
    original = type(decoder).pixels

    def pixels(self: Any, data: np.ndarray, height: int, width: int) -> np.ndarray:
        if which(data):
            raise ValueError("not this one")
        return original(self, data, height, width)

    monkeypatch.setattr(type(decoder), "pixels", pixels)
