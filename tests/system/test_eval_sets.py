"""`train.py eval` on look-alikes of ImageNet-V2, -A, -R and -Sketch as they are released, and on ReaL's labels.

Expected results are counted from the logits by each image's file name, with timm's lists of classes and its ReaL code.
"""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from timm.data.real_labels import RealLabelsImagenet
from torch import Tensor, nn

from penstock.commands.options import evaluate_command as command
from penstock.pipeline.feed import Feed
from penstock.pipeline.loader import DaliLoader
from penstock.shard_tools.sources import SourceOptions
from penstock.shard_tools.writer import PackOptions, pack
from penstock.shards.format import ShardSet, Split
from tests.common import forked
from tests.common.checkpoints import recipe_of, write_checkpoint
from tests.common.runs import ROOT

TIMM = files("timm.data") / "_info"
WNIDS = TIMM.joinpath("imagenet_synsets.txt").read_text().split()  # of the outputs 0 … 999
OF_A = TIMM.joinpath("imagenet_a_synsets.txt").read_text().split()
NUM_REAL = 60  # images with ReaL's labels


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    path = tmp_path_factory.mktemp("trained") / "trained.pt"
    return path, write_checkpoint(path, recipe_of(), classes=[{"wnid": wnid, "name": wnid} for wnid in WNIDS])


def write_images(root: Path, names: list[str]) -> None:
    rng = np.random.default_rng(0)
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8)).resize((40, 40)).save(path, "JPEG")


def packed(source: Path, out: Path, split_dirs: str = "val=.") -> Split:
    options = PackOptions(source_options=SourceOptions(split_dirs=split_dirs))
    with ThreadPoolExecutor(1) as executor:
        return pack(source, out, options, executor=executor).shard_set.split("val")


def logits_by_name(net: nn.Module, split: Split) -> dict[str, Tensor]:
    """Each image's, by its original name, as evaluation prepares it."""
    feed = Feed(split=split, config=recipe_of().data, augment=None, batch_size=128)
    loader, found = DaliLoader(feed, device=torch.device("cpu"), threads=1), {}
    with torch.inference_mode():
        for images, _, ids in loader.iter_epoch(0):
            found |= {split.source_name(i): row for i, row in zip(ids.tolist(), net(images), strict=True)}
    loader.close()
    return found


def scored(checkpoint: Path, data: Path, *options: str) -> Result:
    result = CliRunner().invoke(command, [str(checkpoint), "--data", str(data), "--device", "cpu", "--json", *options])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def figures(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def counted(logits: dict[str, Tensor], label: Callable[[str], int]) -> dict[str, Any]:
    rows, labels = torch.stack([*logits.values()]), torch.tensor([label(name) for name in logits])
    ranks = (rows > rows.gather(1, labels[:, None])).sum(1)
    loss = nn.functional.cross_entropy(rows, labels).item()
    return {
        "top1": (ranks < 1).double().mean().item(), "top5": (ranks < 5).double().mean().item(),
        "loss": pytest.approx(loss, rel=1e-5), "num_images": len(rows),
    }  # fmt: skip


def test_v2s_folders_are_numbers(trained: tuple[Path, nn.Module], tmp_path: Path) -> None:
    checkpoint, net = trained
    write_images(tmp_path / "v2", [f"imagenetv2-top-images-format-val/{n}/{n:040x}.jpeg" for n in range(1000)])
    split = packed(tmp_path / "v2", tmp_path / "data", "val=imagenetv2-top-images-format-val")
    expected = counted(logits_by_name(net, split), lambda name: int(name.split("/")[1]))
    result = scored(checkpoint, tmp_path / "data")
    assert figures(result) == expected
    assert "by ImageNet's list of wnids, in which the dataset's numbers are positions" in result.stderr
    numbers = [{"wnid": f"{n:06d}", "name": f"{n}"} for n in range(1000)]
    write_checkpoint(tmp_path / "numbers.pt", recipe_of(), classes=numbers)
    assert figures(scored(tmp_path / "numbers.pt", tmp_path / "data")) == expected


@pytest.mark.parametrize("released", ["imagenet-a/{}/0.000116_digital clock _ digital clock_0.86.jpg",
                                      "imagenet-r/{}/art_0.jpg"])  # fmt: skip
def test_the_classes_of_a_and_r(trained: tuple[Path, nn.Module], tmp_path: Path, released: str) -> None:
    """Over all outputs, and over the 200 alone, whose numbers timm has."""
    checkpoint, net = trained
    write_images(tmp_path, [released.format(wnid) for wnid in OF_A])
    folder = tmp_path / released.partition("/")[0]
    (folder / "README.txt").write_text("Please cite\n")
    logits = logits_by_name(net, packed(folder, tmp_path / "data"))
    result = scored(checkpoint, tmp_path / "data")
    assert figures(result) == counted(logits, lambda name: WNIDS.index(name.split("/")[0]))
    assert "images of 200 classes, the network has 1,000 outputs, top-1 is over all of them" in result.stderr

    indices = [int(line) for line in TIMM.joinpath("imagenet_a_indices.txt").read_text().split()]
    kept = {name: row[indices] for name, row in logits.items()}
    result = scored(checkpoint, tmp_path / "data", "--only-data-classes")
    assert figures(result) == counted(kept, lambda name: OF_A.index(name.split("/")[0]))
    assert "top-1 is over those 200 of them" in result.stderr


def test_sketch_lies_in_a_folder_of_its_own(trained: tuple[Path, nn.Module], tmp_path: Path) -> None:
    checkpoint, net = trained
    write_images(tmp_path / "s", [f"sketch/{wnid}/sketch_{i % 50}.JPEG" for i, wnid in enumerate(WNIDS[:300])])
    logits = logits_by_name(net, packed(tmp_path / "s", tmp_path / "data", "val=sketch"))
    result = scored(checkpoint, tmp_path / "data")
    assert figures(result) == counted(logits, lambda name: WNIDS.index(name.split("/")[1]))


@pytest.fixture(scope="module")
def real(
    tmp_path_factory: pytest.TempPathFactory, trained: tuple[Path, nn.Module]
) -> tuple[Path, Path, RealLabelsImagenet, int]:
    """ImageNet's validation images in folders by class; a real.json in which some of the network's guesses are right;
    timm's answer; and the number of images that have labels."""
    root, rng = tmp_path_factory.mktemp("real"), np.random.default_rng(0)
    numbers = sorted(rng.choice(50_000, NUM_REAL, replace=False) + 1)
    write_images(root / "val", [f"{WNIDS[rng.integers(1000)]}/ILSVRC2012_val_{n:08d}.JPEG" for n in numbers])
    logits = logits_by_name(trained[1], packed(root / "val", root / "data"))
    listed: list[list[int]] = [[] for _ in range(50_000)]
    for name, row in logits.items():
        best = row.topk(7).indices.tolist()
        choices = [], best[:1], [best[6], best[3]], [best[6]], [best[1], best[0], 5]
        listed[int(name[-13:-5]) - 1] = choices[rng.integers(len(choices))]
    (root / "real.json").write_text(json.dumps(listed))
    names = [Path(name).name for name in logits]
    oracle = RealLabelsImagenet([*names, *[""] * (50_000 - NUM_REAL)], root / "real.json")
    oracle.add_result(torch.stack([*logits.values()]))
    return root / "data", root / "real.json", oracle, sum(bool(listed[int(name[-13:-5]) - 1]) for name in names)


def test_real_labels_are_counted_as_timm_counts_them(
    trained: tuple[Path, nn.Module], real: Any, tmp_path: Path
) -> None:
    data, file, oracle, num_labelled = real
    expected = {
        "top1": pytest.approx(oracle.get_accuracy(1) / 100), "top5": pytest.approx(oracle.get_accuracy(5) / 100),
        "num_images": num_labelled, "unlabelled_images": NUM_REAL - num_labelled,
    }  # fmt: skip
    assert 0.1 < oracle.get_accuracy(1) / 100 < oracle.get_accuracy(5) / 100 < 1
    result = scored(trained[0], data, "--labels", str(file))
    assert figures(result) == expected
    words = ["eval", trained[0], "--data", data, "--labels", file, "--device", "cpu", "--json", "--batch-size", "7"]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    two = forked.run([*launcher, ROOT / "train.py", *map(str, words)], cwd=tmp_path)
    assert json.loads(two.stdout.splitlines()[-1]) == expected


def test_a_choice_of_images_has_the_labels_of_these(trained: tuple[Path, nn.Module], real: Any) -> None:
    data, file, _, num_labelled = real
    split, listed = ShardSet.open(data).split("val"), json.loads(file.read_text())
    chosen = Feed(split=split, config=recipe_of().data, augment=None, batch_size=1, at_most=25).chosen
    assert chosen is not None
    labelled = sum(bool(listed[int(split.source_name(i)[-13:-5]) - 1]) for i in chosen)
    found = figures(scored(trained[0], data, "--labels", str(file), "--max-val-images", "25"))
    assert (found["num_images"], found["unlabelled_images"]) == (labelled, 25 - labelled)
    assert found["split_images"] == NUM_REAL
    assert 0 < labelled < min(25, num_labelled)


def test_timms_copy(trained: tuple[Path, nn.Module], real: Any, tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text(TIMM.joinpath("imagenet_real_labels.json").read_text())
    found = figures(scored(trained[0], real[0], "--labels", "real"))
    assert figures(scored(trained[0], real[0], "--labels", str(tmp_path / "real.json"))) == found
    assert found["num_images"] > 0


def test_real_labels_of_a_network_with_other_outputs(
    trained: tuple[Path, nn.Module], real: Any, tmp_path: Path
) -> None:
    """The same weights, whose outputs are the classes from the last to the first; and labels to fit. Then one
    without the class that all images are of."""
    data, file, *_ = real
    mirrored = [[999 - label for label in row] for row in json.loads(file.read_text())]
    (tmp_path / "real.json").write_text(json.dumps(mirrored))
    turned = [{"wnid": wnid, "name": wnid} for wnid in WNIDS[::-1]]
    write_checkpoint(tmp_path / "a.pt", recipe_of(), classes=turned)
    expected = figures(scored(trained[0], data, "--labels", str(file)))
    assert figures(scored(tmp_path / "a.pt", data, "--labels", str(tmp_path / "real.json"))) == expected

    labels_of_no_output = [row and [998] for row in mirrored]
    (tmp_path / "real.json").write_text(json.dumps(labels_of_no_output))
    turned[1] = {"wnid": "other", "name": "other"}
    write_checkpoint(tmp_path / "b.pt", recipe_of(), classes=turned)
    result = scored(tmp_path / "b.pt", data, "--labels", str(tmp_path / "real.json"))
    assert figures(result) == expected | {"top1": 0.0, "top5": 0.0}
    assert f"{expected['num_images']} images have only labels for which the network has no output" in result.stderr


def test_images_by_other_names_are_refused(trained: tuple[Path, nn.Module], dataset_dir: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "val", [f"{WNIDS[3]}/ILSVRC2012_val_00050001.JPEG"])
    packed(tmp_path / "val", tmp_path / "data")
    result = scored(trained[0], tmp_path / "data", "--labels", "real")
    assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (1, "", 1)
    assert "val was called 'n01491361/ILSVRC2012_val_00050001.JPEG'. --labels needs the original names" in result.stderr
    both = scored(trained[0], tmp_path / "data", "--labels", "real", "--only-data-classes")
    assert "over all of the network's outputs; omit --only-data-classes" in both.stderr
    assert "no such file; give real.json" in scored(trained[0], tmp_path / "data", "--labels", "nosuch").stderr
