"""`preview` against Pillow: the cells show the samples, augmented as the recipe requires."""

import io
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image, ImageDraw, ImageFont

from penstock.shard_tools.__main__ import main
from penstock.shard_tools.preview import CELL, GAP, TEXT, VIEWS
from penstock.shard_tools.tarwriter import TarWriter
from penstock.shards.format import SAMPLE_DTYPE, ClassInfo, ShardInfo, ShardSet, file_sha256, write_info, write_split

NUM = 10


def made(root: Path, images: list[np.ndarray], names: list[str]) -> Path:
    """A dataset of the images, (H, W, 3) uint8, their labels 0, 1, 0, 1 …"""
    rows = []
    with open(root / "train-000000.tar", "wb") as stream:
        tar = TarWriter(stream)
        for i, pixels in enumerate(images):
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
            tar.add(f"{i:09d}.cls", str(i % 2).encode())
            offset = tar.add(f"{i:09d}.jpg", buffer.getvalue())
            rows.append((0, offset, len(buffer.getvalue()), i % 2, *pixels.shape[:2]))
        tar.close()
    path = root / "train-000000.tar"
    files = write_split(root, "train", np.array(rows, SAMPLE_DTYPE), map(str, range(len(images))))
    info = ShardInfo(path.name, len(images), path.stat().st_size, file_sha256(path))
    write_info(
        root, [ClassInfo(key, name) for key, name in zip("ab", names, strict=True)], {"train": [info]}, {}, files
    )
    return root


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """Ten images, each an own two-coloured gradient, left to right."""
    images, rng = [], np.random.default_rng(0)
    for i in range(NUM):
        ends = rng.integers(0, 256, (2, 3))
        share = np.linspace(0, 1, 60)[None, :, None]
        images.append(np.broadcast_to(ends[0] * (1 - share) + ends[1] * share, (40 + i, 60, 3)).astype(np.uint8))
    names = ["a name much too long for the room there is under one picture", "b"]
    return made(tmp_path_factory.mktemp("dataset"), images, names)


def cli(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["preview", *map(str, arguments)])


def cells(file: Path, columns: int, lines: int = 1, top: int = GAP) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Pictures and texts of a sheet that begins at `top`, (CELL, CELL, 3) and (lines · TEXT, CELL, 3) int."""
    page = np.asarray(Image.open(file)).astype(int)
    pictures, texts = [], []
    for y in range(top, page.shape[0] - 1, CELL + lines * TEXT + GAP):
        for x in range(GAP, page.shape[1] - 1, CELL + GAP):
            pictures.append(page[y : y + CELL, x : x + CELL])
            texts.append(page[y + CELL : y + CELL + lines * TEXT, x : x + CELL])
    assert len(pictures) % columns == 0
    return pictures, texts


def written(text: str) -> np.ndarray:
    """Lines of text drawn by Pillow, (lines · TEXT, CELL, 3)."""
    image = Image.new("RGB", (CELL, TEXT * (text.count("\n") + 1)), "white")
    for number, line in enumerate(text.split("\n")):
        ImageDraw.Draw(image).text((0, TEXT * number), line, "black", ImageFont.load_default(12))
    return np.asarray(image).astype(int)


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
    pictures, texts = cells(tmp_path / "sheet.png", 1 + VIEWS, lines=2, top=GAP + TEXT)
    assert len(pictures) == NUM * (1 + VIEWS)
    page = np.asarray(Image.open(tmp_path / "sheet.png")).astype(int)
    for column, heading in enumerate(["original", *(f"augmented {i}" for i in range(1, VIEWS + 1))]):
        x = GAP + column * (CELL + GAP)
        np.testing.assert_array_equal(page[GAP // 2 : GAP // 2 + TEXT, x : x + CELL], written(heading))
    for i in range(NUM):
        row = pictures[i * (1 + VIEWS) :][: 1 + VIEWS]
        mirrored = np.asarray(stored(dataset, i).transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize((CELL, CELL)))
        for view in row[1:]:
            assert np.abs(view - mirrored).mean() < 3
        assert np.abs(row[0] - mirrored).mean() > 6
        first, *others = texts[i * (1 + VIEWS) :][: 1 + VIEWS]
        np.testing.assert_array_equal(first[TEXT:], written(f"sample {i}"))
        if i % 2:
            np.testing.assert_array_equal(first[:TEXT], written("b"))
        assert (np.array(others) == 255).all()


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_mixed_images_say_the_share_of_each_class(mix, tmp_path):
    """Red and blue pictures: the amount of red in a mixed one gives the share that its text must show."""
    flat = [np.full((64, 64, 3), colour, np.uint8) for colour in ((254, 0, 0), (0, 0, 254))]
    (tmp_path / "set").mkdir()
    root, recipe = made(tmp_path / "set", flat, ["red", "blue"]), tmp_path / "mix.toml"
    recipe.write_text(f'[data]\nimage_size = 64\n[augment]\ncrop = "pad"\npad = 0\nhflip = 0.0\n{mix} = 1.0\n')
    assert cli(root, tmp_path / "sheet.png", "--augment", recipe).exit_code == 0
    pictures, texts = cells(tmp_path / "sheet.png", 1 + VIEWS, lines=2, top=GAP + TEXT)
    seen = []
    for i, (picture, text) in enumerate(zip(pictures, texts, strict=True)):
        red, blue = (picture[..., channel].mean() / 254 for channel in (0, 2))
        assert red + blue == pytest.approx(1, abs=0.02)
        if i % (1 + VIEWS) == 0:
            np.testing.assert_array_equal(text, written(f"{'red' if i == 0 else 'blue'}\nsample {i // (1 + VIEWS)}"))
            continue
        near = [round(100 * red) + d for d in (0, -1, 1, -2, 2)]  # JPEG, and the border of a resized cut
        wanted = [sorted([(p, "red"), (100 - p, "blue")], reverse=True) for p in near]
        assert any((text == written("\n".join(f"{p}% {name}" for p, name in shares))).all() for shares in wanted), red
        seen.append(red)
    assert max(seen) - min(seen) > 0.2


def test_errors_are_one_line(dataset, tmp_path):
    cases = {
        (tmp_path, tmp_path / "a.png"): "no packed dataset",
        (dataset, tmp_path / "a.jpg"): "ends in .png",
        (dataset, tmp_path / "none" / "a.png"): "cannot be written",
        (dataset, tmp_path / "a.png", "--split", "test"): "no split 'test'",
        (dataset, tmp_path / "a.png", "--augment", "rn51"): "recipe 'rn51': ",
    }
    for arguments, message in cases.items():
        result = cli(*arguments)
        assert result.exit_code == 1
        assert message in result.stderr
        assert len(result.stderr.splitlines()) == 1
