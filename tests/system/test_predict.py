"""`train.py predict`: figures equal to validation's, every kind of file, bad files, and the printed output."""

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image, ImageOps
from rich.console import Console
from torchvision.transforms import v2

import penstock.commands.image_files
import penstock.shard_tools.encode
from penstock.commands.image_files import decode_chunks, find_images, read_chunks
from penstock.commands.options import predict_command as command
from penstock.commands.predict import Prediction, _least_width, _table, predict
from penstock.commands.trained_network import load_network
from penstock.pipeline.feed import Feed
from penstock.pipeline.loader import DaliLoader
from penstock.recipes import Recipe
from penstock.shard_tools.encode import EncodeConfig, Encoded
from penstock.shards.format import ClassInfo, ShardSet
from tests.common.checkpoints import CLASSES, opinionated, recipe_of, write_checkpoint
from tests.common.odd_jpegs import oriented, sampled, with_frame

CPU = torch.device("cpu")
WNIDS = [info["wnid"] for info in CLASSES]


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(command, [*map(str, arguments), "--device", "cpu"])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def answers(*arguments: object) -> dict[str, dict[str, float]]:
    """File → wnid → probability of all classes, as `--json` has them."""
    result = run(*arguments, "--json", "--top-k", 100)
    assert result.exit_code == 0, result.stderr
    lines = map(json.loads, result.stdout.splitlines())
    return {line["file"]: {guess["wnid"]: guess["probability"] for guess in line["classes"]} for line in lines}


def validated(dataset: ShardSet, recipe: Recipe, *nets: torch.nn.Module) -> dict[str, list[torch.Tensor]]:
    """Source name → the logits of each net, and of the mirror image, on what the validation loader gives."""
    feed = Feed(split=dataset.split("val"), config=recipe.data, augment=None, batch_size=8)
    loader, logits = DaliLoader(feed, device=CPU, threads=1), {}
    with torch.inference_mode():
        for images, _, sample_ids in loader.iter_epoch(0):
            scored = [net(view) for net in nets for view in (images, images.flip(3))]
            for row, sample_id in enumerate(sample_ids.tolist()):
                logits[feed.split.source_name(sample_id)] = [each[row] for each in scored]
    loader.close()
    return logits


def softmax(logits: torch.Tensor) -> dict[str, float]:
    return dict(zip(WNIDS, logits.double().softmax(0).tolist(), strict=True))


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "trained.pt", recipe_of())
    return tmp_path / "trained.pt"


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("data.interpolation=cubic", "data.val_image_size=48", "data.mean=[10,200,90]", "data.std=[30,70,90]"),
        ("data.antialias=false", "data.val_resize_size=32", "train.val_flip=true"),
    ],
)
def test_files_score_as_in_validation(
    settings: tuple[str, ...], image_tree: Path, dataset: ShardSet, tmp_path: Path
) -> None:
    if "data.val_image_size=48" in settings:
        settings += ("data.val_resize_size=56",)
    recipe = recipe_of(*settings)
    net = write_checkpoint(tmp_path / "a.pt", recipe)
    found = answers(tmp_path / "a.pt", image_tree / "val", "--batch-size", 8)
    assert list(found) == sorted(str(path) for path in (image_tree / "val").rglob("*.jpg"))
    expected = validated(dataset, recipe, net)
    assert len(expected) == len(found) == 19
    for file, probabilities in found.items():
        logits, mirrored = expected[Path(file).relative_to(image_tree).as_posix()]
        mean = (logits + mirrored) / 2 if recipe.train.val_flip else logits
        assert probabilities == pytest.approx(softmax(mean), abs=2e-6)
        assert list(probabilities) == sorted(probabilities, key=lambda wnid: -probabilities[wnid])
    assert len({max(each, key=lambda wnid: each[wnid]) for each in found.values()}) > 1  # the images do matter


def test_weights_and_flip_are_what_is_asked_for(image_tree: Path, dataset: ShardSet, tmp_path: Path) -> None:
    recipe = recipe_of("train.val_flip=true", "ema.decay=0.9")
    average = opinionated(recipe, len(CLASSES), seed=2)
    raw = write_checkpoint(tmp_path / "a.pt", recipe, ema=average.state_dict())
    name = "val/class0/000_64x64.jpg"
    logits = dict(zip(("raw", "raw-", "ema", "ema-"), validated(dataset, recipe, raw, average)[name], strict=True))
    for options, expected in {
        (): logits["ema"] + logits["ema-"],
        ("--no-flip",): logits["ema"] * 2,
        ("--weights", "raw"): logits["raw"] + logits["raw-"],
        ("--weights", "raw", "--no-flip"): logits["raw"] * 2,
    }.items():
        (found,) = answers(tmp_path / "a.pt", image_tree / name, *options).values()
        assert found == pytest.approx(softmax(expected / 2), abs=2e-6), options


def test_half_precision_is_that_of_the_recipe(image_tree: Path, dataset: ShardSet, tmp_path: Path) -> None:
    recipe = recipe_of("train.precision=bf16")
    net = write_checkpoint(tmp_path / "a.pt", recipe)
    name = "val/class0/000_64x64.jpg"
    (found,) = answers(tmp_path / "a.pt", image_tree / name).values()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = validated(dataset, recipe, net)[name][0]
    assert found == pytest.approx(softmax(half), abs=2e-6)
    assert found != pytest.approx(softmax(validated(dataset, recipe, net)[name][0]), abs=1e-4)


def save(path: Path, image: Image.Image, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def smooth(seed: int, size: tuple[int, int] = (90, 70)) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def test_what_systems_leave_in_folders_is_not_predicted(tmp_path: Path) -> None:
    names = [
        "a.jpg",
        "x/b.JPG",
        "._a.jpg",
        "Thumbs.db",
        "__MACOSX/x.jpg",
        "x/@eaDir/b.JPG/thumb.jpg",
        ".c/d.jpg",
        "e.txt",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.jpg")  # to read it would wait for ever
    ignored: list[str] = []
    assert list(find_images([tmp_path], ignored)) == [str(tmp_path / "a.jpg"), str(tmp_path / "x/b.JPG")]
    assert ignored == [str(tmp_path / "e.txt"), str(tmp_path / "pipe.jpg")]


def test_every_kind_of_file_is_what_pillow_and_torchvision_make_of_it(tmp_path: Path) -> None:
    folder, config = tmp_path, recipe_of().data
    save(folder / "a.JPEG", smooth(1), quality=95)
    save(folder / "b.png", smooth(2))
    save(folder / "c.png", smooth(3).convert("RGBA"))
    save(folder / "d.png", smooth(4).convert("L"))
    save(folder / "e.png", smooth(5).convert("P"))
    save(folder / "f.webp", smooth(6), lossless=True)
    save(folder / "g.bmp", smooth(7))
    save(folder / "h.jpg", smooth(8).convert("CMYK"), quality=95)
    save(folder / "i.jpg", smooth(9).convert("L"), quality=95)
    save(folder / "deep" / "er" / "j.jpg", smooth(10), format="PNG")  # what it is, not what it is called
    turned = Image.Exif()
    turned[0x0112] = 6  # "rotate me": neither torchvision nor training does
    save(folder / "k.jpg", smooth(11), exif=turned, quality=95)
    transform = v2.Compose([v2.Resize(40), v2.CenterCrop(32), v2.PILToTensor(), v2.ToDtype(torch.float32)])
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.mean, config.std))
    chunks = read_chunks(find_images([folder], []), batch_size=5, threads=2)
    seen = []
    for chunk, images in decode_chunks(chunks, config, device=CPU, batch_size=5, threads=1, half=False):
        assert images.is_contiguous(memory_format=torch.channels_last)
        for file, pixels in zip(chunk.files, images * std + mean, strict=True):
            seen.append(Path(file).name[0])
            with Image.open(file) as image:
                difference = (pixels - transform(image.convert("RGB"))).abs()
            assert difference.mean() < 1.2, file  # grey levels; a PNG becomes a JPEG of quality 95 on the way
            assert difference.max() < 8, file
    assert seen == list("abcdjefghik")


def test_odd_jpegs_are_predicted_and_the_unforeseen_costs_one_file(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "images"
    save(folder / "a.jpg", smooth(1))
    (folder / "b.jpg").write_bytes(sampled(smooth(2), ((1, 4), (1, 1), (1, 1))))
    (folder / "c.jpg").write_bytes(with_frame((folder / "a.jpg").read_bytes(), 0xC1, bits=12))
    assert len(answers(trained, folder / "a.jpg", folder / "b.jpg")) == 2
    broken = (folder / "a.jpg").read_bytes()
    original = penstock.shard_tools.encode.read_header
    monkeypatch.setattr(
        penstock.shard_tools.encode, "read_header", lambda data: {}[6] if data == broken else original(data)
    )
    result = run(trained, folder, "--json")
    lines = {Path(line["file"]).name: line for line in map(json.loads, result.stdout.splitlines())}
    assert lines["a.jpg"]["error"] == "KeyError: 6"
    assert len(lines["b.jpg"]["classes"]) == 5
    assert "12 bits per sample" in lines["c.jpg"]["error"]


def test_images_are_turned_if_the_dataset_was(tmp_path: Path) -> None:
    (tmp_path / "turned.png").write_bytes(oriented(smooth(1), 6, "PNG"))
    with Image.open(tmp_path / "turned.png") as image:
        save(tmp_path / "upright.png", ImageOps.exif_transpose(image).convert("RGB"))
    found = {}
    for name in (False, True):
        write_checkpoint(tmp_path / "a.pt", recipe_of(), oriented=name)
        first, second = answers(tmp_path / "a.pt", tmp_path / "turned.png", tmp_path / "upright.png").values()
        found[name] = max(abs(first[wnid] - second[wnid]) for wnid in WNIDS)
    assert found[True] < 1e-6 < 1e-2 < found[False]


def test_a_file_that_cannot_be_decoded_costs_one_line_and_the_exit_status(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    good = [save(folder / name, smooth(i)) for i, name in enumerate(["a.jpg", "c.jpg", "g.png"])]
    whole = good[0].read_bytes()
    bad = {
        "b.jpg": (b"no image at all", "not a JPEG, PNG, WebP, BMP or PPM image"),
        "d.jpg": (whole[: len(whole) // 2], "truncated"),
        "e.jpg": (b"", "empty file"),
        "f.png": (good[2].read_bytes()[:-200], "truncated"),
        "h.jpg": (None, "No such file"),
    }
    for name, (data, _) in bad.items():
        (folder / name).write_bytes(data) if data is not None else (folder / name).symlink_to("nowhere")
    expected = answers(trained, *good)
    for batch_size in (1, 3, 64):
        result = run(trained, folder, "--json", "--top-k", 100, "--batch-size", batch_size)
        assert result.exit_code == 1
        lines = [json.loads(line) for line in result.stdout.splitlines()]
        assert [Path(line["file"]).name for line in lines] == sorted([*bad, *(path.name for path in good)])
        complaints = result.stderr.splitlines()[1:]
        for line in lines:
            name = Path(line["file"]).name
            if name in bad:
                assert bad[name][1] in line["error"]
                assert "classes" not in line
                assert [c for c in complaints if line["file"] in c] == [f"{line['file']}: {line['error']}"]
            else:
                found = {guess["wnid"]: guess["probability"] for guess in line["classes"]}
                assert found == pytest.approx(expected[line["file"]], abs=2e-6)
        assert complaints[len(bad) :] == ["5 of 8 files could not be decoded"]
        header, *rows = run(trained, folder, "--top-k", 1, "--batch-size", batch_size).stdout.splitlines()
        assert header.split()[0] == "image"
        assert [Path(row.split()[0]).name for row in rows] == ["a.jpg", "c.jpg", "g.png"]


def test_what_only_dali_rejects_is_left_out_too(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [save(tmp_path / f"{i}.jpg", smooth(i)) for i in range(12)]
    expected = answers(trained, *files)
    data = files[0].read_bytes()

    def lenient(data: bytes, config: EncodeConfig) -> Encoded:
        """No check at all, as if libjpeg had found nothing wrong."""
        return Encoded(data, 70, 90, "jpeg")

    monkeypatch.setattr(penstock.commands.image_files, "encode", lenient)
    for place in (4, 9):  # pixels, which DALI stops at
        files[place].write_bytes(files[place].read_bytes()[: len(data) // 2])
    files[7].write_bytes(b"a header that DALI would crash at")
    files[8].write_bytes(save(tmp_path / "other" / "size.jpg", smooth(1, (20, 20))).read_bytes())
    result = run(trained, *files, "--json", "--top-k", 100, "--batch-size", 3)
    assert result.exit_code == 1
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["file"] for line in lines] == list(map(str, files))
    assert [i for i, line in enumerate(lines) if "error" in line] == [4, 7, 8, 9]
    assert "20×20" in lines[8]["error"]
    for i in {*range(12)} - {4, 7, 8, 9}:
        found = {guess["wnid"]: guess["probability"] for guess in lines[i]["classes"]}
        assert found == pytest.approx(expected[str(files[i])], abs=2e-6)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_gray_files_are_mended_for_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """As the loader mends them (`penstock.pipeline.gray`), and kept as long as the chunk is."""
    Image.new("L", (40, 30), 90).save(tmp_path / "gray.jpg", subsampling=2)
    taken: list[bytes] = []

    class Pipe:
        def __init__(self, source: Any, *_: Any, **__: Any) -> None:
            self.source = source

        def run(self, stream: Any) -> None:
            images, *_ = self.source()
            taken.append(bytes(np.asarray(images[0])))
            raise StopIteration

    monkeypatch.setattr(penstock.commands.image_files, "build_graph", Pipe)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    (chunk,) = read_chunks([str(tmp_path / "gray.jpg")], 4, 1)
    settings: dict[str, Any] = {"batch_size": 4, "threads": 1, "half": False}
    assert not list(decode_chunks(iter([chunk]), Recipe().data, device=torch.device(device), **settings))
    (data,) = taken
    frame = data.index(b"\xff\xc0")
    assert data[frame + 11] == (0x11 if device == "cuda" else 0x22)
    assert data == chunk.jpegs[0].tobytes()


def test_files_stream(trained: Path, tmp_path: Path) -> None:
    file, asked = str(save(tmp_path / "a.jpg", smooth(1))), 0

    def many() -> Iterator[str]:
        nonlocal asked
        for _ in range(10_000):
            asked += 1
            yield file

    loaded = load_network(trained, device=CPU)
    batches = predict(loaded, many(), device=CPU, batch_size=4, threads=1, top_k=1, flip=False)
    for done in range(1, 30):
        assert len(next(batches)) == 4
        assert asked <= 4 * (done + loaded.recipe.data.prefetch + 2)


def test_folders_are_walked_by_name_without_what_is_no_image(trained: Path, tmp_path: Path) -> None:
    names = ["b/2.jpg", "b/10.jpg", "a.jpg", "c.PNG", "b/.hidden.jpg", ".git/x.jpg"]
    for name in names:
        save(tmp_path / "images" / name, smooth(1))
    (tmp_path / "images" / "b" / "again").symlink_to("..")  # a folder that contains itself
    (tmp_path / "images" / "b" / "labels.csv").write_text("x")
    result = run(trained, tmp_path / "images" / "c.PNG", tmp_path / "images", "--json")
    found = [Path(json.loads(line)["file"]).relative_to(tmp_path / "images") for line in result.stdout.splitlines()]
    assert list(map(str, found)) == ["c.PNG", "a.jpg", "b/10.jpg", "b/2.jpg", "c.PNG"]
    assert "skipped, no image suffix: " in result.stderr
    assert "labels.csv" in result.stderr
    assert ".hidden" not in result.stderr
    assert result.exit_code == 0


def test_the_table_has_a_row_for_each_class(trained: Path, tmp_path: Path) -> None:
    long = save(tmp_path / ("a" * 200) / "a.jpg", smooth(1))
    odd = save(tmp_path / "b\n.jpg", smooth(2))
    result = run(trained, long, odd, "--top-k", 2, "--batch-size", 1)
    expected = answers(trained, long, odd)
    header, *rows = result.stdout.splitlines()
    assert header.split() == ["image", "p", "class", "name"]
    assert len(rows) == 4
    for row, (file, probabilities) in zip(rows[::2], expected.items(), strict=True):
        best = max(probabilities, key=lambda wnid: probabilities[wnid])
        shown, probability, wnid, *name = row.split()
        assert shown == file.replace("\n", "\\n")
        assert (wnid, " ".join(name)) == (best, CLASSES[WNIDS.index(best)]["name"])
        assert float(probability) == pytest.approx(probabilities[best], abs=6e-5)
    assert all(row.startswith(" ") for row in rows[1::2])


def test_a_narrow_terminal_folds_names_and_loses_none() -> None:
    classes = ClassInfo("n00000001", "a class with quite a long name, or another"), ClassInfo("n00000002", "short")
    console = Console(file=io.StringIO(), force_terminal=True, width=44, color_system=None)
    predictions = [Prediction("/some/where/a-picture-with-a-name.jpg", [(0, 0.75), (1, 0.25)], None)]
    console.print(_table(predictions, classes, True, console))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert max(map(len, lines)) <= 44
    words = "".join("".join(lines).split())
    for character in "/some/where/a-picture-with-a-name.jpg" + "0.75000.2500n00000001" + "or another".replace(" ", ""):
        assert character in words
    assert "".join(line[: lines[0].index("p ")].strip() for line in lines[1:]) == predictions[0].file


@pytest.mark.parametrize("width", [20, 44, 80, 200])
def test_keys_are_whole_and_names_wrap_at_words(width: int) -> None:
    key = "a key of many characters, " + "with blanks and a longwordthatgoeson"
    classes = ClassInfo(key, "unbelievably-long-word in a name of several words"), ClassInfo("x\n", "short")
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    console.width = max(width, _least_width(classes))
    console.print(_table([Prediction("/a/picture.jpg", [(0, 0.75), (1, 0.25)], None)], classes, True, console))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    at = lines[next(i for i, line in enumerate(lines) if "class" in line)].index("class")
    assert [line for line in lines if line[at:].startswith(key)] == [lines[1 if "image" in lines[0] else 2]]
    assert sum("x\\n" in line for line in lines) == 1
    shown = [word for line in lines for word in line[at + len(key) :].split()]
    assert shown == ["name", *classes[0].name.split(), "short"]
    assert "".join(line[: at - 8].strip() for line in lines) == "image/a/picture.jpg"


def test_keys_that_are_no_wnids_are_not_called_so(tmp_path: Path) -> None:
    classes = [{"wnid": key, "name": key} for key in ("000000", "n01440764", "cat")]
    write_checkpoint(tmp_path / "a.pt", recipe_of(), classes=classes)
    image = save(tmp_path / "a.jpg", smooth(1))
    (found,) = map(json.loads, run(tmp_path / "a.pt", image, "--json").stdout.splitlines())
    assert {guess["class"] for guess in found["classes"]} == {"000000", "n01440764", "cat"}
    assert all(guess.keys() == {"class", "name", "probability"} for guess in found["classes"])


def test_classes_are_called_as_a_file_says(tmp_path: Path) -> None:
    numbers = [{"wnid": f"{i:06d}", "name": str(i)} for i in range(3)]
    write_checkpoint(tmp_path / "a.pt", recipe_of(), classes=numbers)
    image = save(tmp_path / "a.jpg", smooth(1))
    for text, names in (("cat\ngreat dane\nfox\n", {"cat", "great dane", "fox"}), ("1 dog\n", {"0", "dog", "2"})):
        (tmp_path / "names.txt").write_text(text)
        result = run(tmp_path / "a.pt", image, "--json", "--classes", tmp_path / "names.txt")
        guesses = {guess["class"]: guess["name"] for guess in json.loads(result.stdout)["classes"]}
        assert set(guesses.values()) == names
        assert guesses["000001"] in ("great dane", "dog")


def test_wnids_alone_are_shown_once(tmp_path: Path) -> None:
    classes = [{"wnid": f"class{i}", "name": f"class{i}"} for i in range(3)]
    write_checkpoint(tmp_path / "a.pt", recipe_of(), classes=classes)
    result = run(tmp_path / "a.pt", save(tmp_path / "a.jpg", smooth(1)))
    header, *rows = result.stdout.splitlines()
    assert header.split() == ["image", "p", "class"]
    assert len(rows) == 3  # all classes there are
    assert all(row.count("class") == 1 for row in rows)


def test_what_a_user_gets_wrong_is_one_line(trained: Path, tmp_path: Path) -> None:
    image, empty = save(tmp_path / "a.jpg", smooth(1)), tmp_path / "empty"
    empty.mkdir()
    cases = {
        "nothing.pt: no such checkpoint": (tmp_path / "nothing.pt", image),
        "empty: no images found (.jpg, .jpeg": (trained, empty),
        "a.jpg: not a readable checkpoint": (image, image),
        "has no averaged weights": (trained, image, "--weights", "ema"),
    }
    for message, arguments in cases.items():
        result = run(*arguments)
        assert result.exit_code == 1
        errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
        assert len(errors) == 1
        assert message in errors[0]
        assert errors[0] == result.stderr.splitlines()[-1]
    result = run(trained, tmp_path / "nowhere.jpg")
    assert result.exit_code == 2
    assert "nowhere.jpg' does not exist" in result.stderr
