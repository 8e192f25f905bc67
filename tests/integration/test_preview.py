"""`preview` against Pillow: the cells are the samples, and with a recipe what its augmentation must make of them."""

import io
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from shard_tools.__main__ import main
from shard_tools.format import SAMPLE_DTYPE, ClassInfo, ShardInfo, ShardSet, file_sha256, write_info, write_split
from shard_tools.preview import CELL, GAP, TEXT, VIEWS
from shard_tools.tarwriter import TarWriter

NUM = 10


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """Ten images, each an own two-coloured gradient, left to right."""
    root = tmp_path_factory.mktemp("dataset")
    rows, rng = [], np.random.default_rng(0)
    with open(root / "train-000000.tar", "wb") as stream:
        tar = TarWriter(stream)
        for i in range(NUM):
            ends = rng.integers(0, 256, (2, 3))
            share = np.linspace(0, 1, 60)[None, :, None]
            pixels = np.broadcast_to(ends[0] * (1 - share) + ends[1] * share, (40 + i, 60, 3)).astype(np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
            tar.add(f"{i:09d}.cls", str(i % 2).encode())
            rows.append((0, tar.add(f"{i:09d}.jpg", buffer.getvalue()), len(buffer.getvalue()), i % 2, 40 + i, 60))
        tar.close()
    path = root / "train-000000.tar"
    files = write_split(root, "train", np.array(rows, SAMPLE_DTYPE), map(str, range(NUM)))
    info = ShardInfo(path.name, NUM, path.stat().st_size, file_sha256(path))
    classes = [ClassInfo("a", "a name much too long for the room there is under one picture"), ClassInfo("b", "b")]
    write_info(root, classes, {"train": [info]}, {}, files)
    return root


def cli(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["preview", *map(str, arguments)])


def cells(file: Path, columns: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Pictures and text lines of a sheet, (CELL, CELL, 3) and (TEXT, CELL, 3) int."""
    page = np.asarray(Image.open(file)).astype(int)
    pictures, lines = [], []
    for y in range(GAP, page.shape[0] - 1, CELL + TEXT + GAP):
        for x in range(GAP, page.shape[1] - 1, CELL + GAP):
            pictures.append(page[y : y + CELL, x : x + CELL])
            lines.append(page[y + CELL : y + CELL + TEXT, x : x + CELL])
    assert len(pictures) % columns == 0
    return pictures, lines


def stored(root: Path, sample: int) -> Image.Image:
    split = ShardSet.open(root).split("train")
    row = split.samples[sample]
    data = split.shard_path(0).read_bytes()[int(row["offset"]) :][: int(row["size"])]
    return Image.open(io.BytesIO(data))


def test_every_cell_is_a_sample_over_its_class_name(dataset, tmp_path):
    result = cli(dataset, tmp_path / "sheet.png", "--num", 50)
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'sheet.png'}\n")
    pictures, lines = cells(tmp_path / "sheet.png", 8)
    for i in range(NUM):
        height = round((40 + i) * CELL / 60)
        top = (CELL - height) // 2
        expected = np.asarray(stored(dataset, i).resize((CELL, height))).astype(int)
        assert np.abs(pictures[i][top : top + height] - expected).max() <= 1
        assert (lines[i] < 128).any()
        assert (lines[i][:, 20:] < 128).any() == (i % 2 == 0)  # "b" is short, the other is cut to fit
        assert (lines[i][:, -1] == 255).all()
    assert (np.array(pictures[NUM:]) == 255).all()
    assert cli(dataset, tmp_path / "again.png", "--num", 4, "--seed", 3).exit_code == 0
    assert cli(dataset, tmp_path / "twice.png", "--num", 4, "--seed", 3).exit_code == 0
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "twice.png").read_bytes()


def test_augmentations_are_the_recipes(dataset, tmp_path):
    recipe = tmp_path / "mirror.toml"
    recipe.write_text('[data]\nimage_size = 64\n[augment]\ncrop = "pad"\npad = 0\nhflip = 1.0\n')
    result = cli(dataset, tmp_path / "sheet.png", "--num", NUM, "--augment", recipe)
    assert result.exit_code == 0, result.output
    pictures, lines = cells(tmp_path / "sheet.png", 1 + VIEWS)
    assert len(pictures) == NUM * (1 + VIEWS)
    for i in range(NUM):
        row = pictures[i * (1 + VIEWS) :][: 1 + VIEWS]
        mirrored = np.asarray(stored(dataset, i).transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize((CELL, CELL)))
        for view in row[1:]:
            assert np.abs(view - mirrored).mean() < 3
        assert np.abs(row[0] - mirrored).mean() > 6
        texts = [(line < 128).any() for line in lines[i * (1 + VIEWS) :][: 1 + VIEWS]]
        assert texts == [True] + [False] * VIEWS


def test_errors_are_one_line(dataset, tmp_path):
    cases = {
        (tmp_path, tmp_path / "a.png"): "no packed dataset",
        (dataset, tmp_path / "a.jpg"): "ends in .png",
        (dataset, tmp_path / "none" / "a.png"): "cannot be written",
        (dataset, tmp_path / "a.png", "--split", "test"): "no split 'test'",
        (dataset, tmp_path / "a.png", "--augment", "rn51"): "is neither a .toml file nor one of",
    }
    for arguments, message in cases.items():
        result = cli(*arguments)
        assert result.exit_code == 1
        assert message in result.stderr
        assert len(result.stderr.splitlines()) == 1
