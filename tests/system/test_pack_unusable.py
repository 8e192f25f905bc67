"""Samples that a source lists but cannot provide: refused with the first ten, or skipped and listed."""

import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from penstock.shard_tools.execute import PackProgress
from penstock.shard_tools.listing import write_listing
from penstock.shard_tools.rejected import BadImages, RejectedRows
from penstock.shard_tools.sources import open_source
from penstock.shard_tools.sources.base import Source, SourceImage, Unusable
from penstock.shard_tools.subset import Subset
from penstock.shard_tools.verify import verify
from penstock.shard_tools.writer import PackOptions, pack
from penstock.shards.format import ShardSet
from tests.common.packing import cli, hashes, write_source


class Holes(Source):
    """The images of a directory, with a missing image before every fifth."""

    format, explained = "holes", "made up"

    def __init__(self, root: Path):
        self.source = open_source(root)

    def images(self, work: Path) -> Iterator[SourceImage | Unusable]:
        for number, image in enumerate(self.source.images(work)):
            if number % 5 == 0:
                yield Unusable(image.split, f"hole\t{number}", "no such file", image.key)
            assert isinstance(image, SourceImage)
            yield image


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_source(tmp_path_factory.mktemp("source"))
    (root / "train/class1/000.jpg").write_bytes(b"damaged")
    return root


def test_they_stop_it_before_anything_is_made(root: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as executor, pytest.raises(BadImages) as caught:
        pack(Holes(root), tmp_path / "out", executor=executor)
    lines = str(caught.value).splitlines()
    assert lines[0] == "holes: 24 of 140 image(s) cannot be used:"  # 116 files, one of them damaged
    assert lines[1] == "  hole\t0: no such file"
    assert lines[11:] == [
        "  … 14 more",
        "skip them with --on-bad skip, which lists all of them in OUT/rejected.tsv, or repair them",
    ]
    assert not (tmp_path / "out").exists()


def test_skipped_ones_are_listed_and_a_kill_changes_nothing(root: Path, tmp_path: Path) -> None:
    def kill(progress: PackProgress) -> None:
        if progress.done_shards:
            raise KeyboardInterrupt

    settings = {"on_bad": "skip", "samples_per_shard": 8}
    with ThreadPoolExecutor(1) as executor:
        done = pack(Holes(root), tmp_path / "whole", PackOptions(**settings), executor=executor)
        with pytest.raises(KeyboardInterrupt):
            pack(Holes(root), tmp_path / "killed", PackOptions(**settings), executor=executor, progress=kill)
        assert not (tmp_path / "killed/dataset.json").exists()
        again = pack(Holes(root), tmp_path / "killed", PackOptions(**settings), executor=executor)
        assert again.progress.kept_shards > 0
        assert hashes(tmp_path / "killed") == hashes(tmp_path / "whole")
        assert pack(Holes(root), tmp_path / "whole", PackOptions(**settings), executor=executor).already_complete
    shard_set = ShardSet.open(tmp_path / "whole")
    assert {name: len(split) for name, split in shard_set.splits.items()} == {"train": 90, "val": 25}
    assert shard_set.made["rejected"] == done.rejected.count == again.rejected.count == 25
    assert len(done.rejected.first) == 10
    lines = (tmp_path / "whole/rejected.tsv").read_text().splitlines()
    assert lines[:2] == ["name\treason", "hole\\t0\tno such file"]
    assert lines[-1].startswith("train/class1/000.jpg\tnot a JPEG")
    assert len(lines) == 26
    assert verify(tmp_path / "whole") == []


def test_other_holes_are_another_dataset(root: Path, tmp_path: Path) -> None:
    """The table of rejected images belongs to the output: if it would differ, the dataset is not complete."""
    prints = set()
    for number, subset in enumerate((Subset(), Subset(only_classes=frozenset({"class0"})))):
        for source in (Holes(root), open_source(root)):
            listing = write_listing(tmp_path / str(number), source, tmp_path, subset, 0, "here", on_bad="skip")
            prints.add(listing.fingerprint)
    assert len(prints) == 4
    assert (
        0 < write_listing(tmp_path / "x", Holes(root), tmp_path, subset, 0, "here", on_bad="skip").rejected.count < 24
    )


def test_an_image_as_text_is_cut_short(tmp_path: Path) -> None:
    with open(tmp_path / "rows", "wb") as stream:
        rows = RejectedRows(stream)
        rows.add("/9j/4AAQ" * 10_000, "file name too long")
    assert (tmp_path / "rows").stat().st_size < 600
    assert len(rows.rejected().first[0][0]) < 600


class Nothing(Source):
    """`count` missing images, in their own split."""

    format, explained = "nothing", "made up"

    def __init__(self, count: int):
        self.count = count

    def images(self, work: Path) -> Iterator[SourceImage | Unusable]:
        yield from (Unusable("val", f"{i}.jpg", "no such file") for i in range(self.count))


def test_their_list_is_not_kept_in_memory(tmp_path: Path) -> None:
    peaks = []
    for count in (10_000, 40_000):
        tracemalloc.start()
        with pytest.raises(ValueError, match=r"none of the images of val can be used .first '0.jpg': no such file"):
            write_listing(tmp_path / "listing", Nothing(count), tmp_path, Subset(), 0, "here", on_bad="skip")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 400_000  # a path of each would be 3 MB more


def test_a_table_with_missing_files_by_the_command(root: Path, tmp_path: Path) -> None:
    table = root / "t.csv"
    rows = [f"train/class0/{i:03d}.jpg,a,train" for i in (0, 999, 3)]
    table.write_text("\n".join(["path,label,split", *rows, "train/class0/006.jpg,,train"]))
    result = cli("pack", table, tmp_path / "out")
    assert result.exit_code == 1
    assert "2 of 4 image(s) cannot be used" in result.stderr
    result = cli("pack", table, tmp_path / "out", "--on-bad", "skip")
    assert result.exit_code == 0, result.stderr
    assert "skipped 2 bad image(s)" in result.stdout
    assert "skipped train/class0/999.jpg: line 3: no such file" in result.stderr
    assert (tmp_path / "out/rejected.tsv").read_text().splitlines() == [
        "name\treason",
        "train/class0/999.jpg\tline 3: no such file",
        "train/class0/006.jpg\tline 5: has no label",
    ]
