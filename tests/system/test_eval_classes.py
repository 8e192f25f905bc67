"""`train.py eval` on datasets with other class lists than the network's, compared with logits scored by hand."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from penstock.commands.options import evaluate_command as command
from penstock.pipeline.feed import Feed
from penstock.pipeline.loader import DaliLoader
from penstock.shard_tools.sources.imagenet import imagenet_classes
from penstock.shard_tools.writer import PackOptions, pack
from penstock.shards.format import ShardSet
from tests.common.checkpoints import recipe_of, write_checkpoint

CLASSES = [{"wnid": key, "name": key} for key in ("class2", "other", "class0", "class1")]  # the network's


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trained") / "trained.pt"
    write_checkpoint(path, recipe_of(), classes=CLASSES)
    return path


@pytest.fixture(scope="module")
def counted(trained: Path, dataset: ShardSet) -> Callable[[dict[str, int]], dict[str, float]]:
    """`counted(labels)`: top-1, loss and number of images, labels being a directory's label in the network."""
    net = write_checkpoint(trained.with_name("same.pt"), recipe_of(), classes=CLASSES)
    feed = Feed(split=dataset.split("val"), config=recipe_of().data, augment=None, batch_size=8)
    loader, guesses = DaliLoader(feed, device=torch.device("cpu"), threads=1), []
    with torch.inference_mode():
        for images, _, ids in loader.iter_epoch(0):
            names = [feed.split.source_name(i).split("/")[1] for i in ids.tolist()]
            guesses += zip(names, net(images), strict=True)
    loader.close()

    def count(labels: dict[str, int]) -> dict[str, float]:
        logits = torch.stack([row for name, row in guesses if name in labels])
        right = torch.tensor([labels[name] for name, _ in guesses if name in labels])
        loss = torch.nn.functional.cross_entropy(logits, right).item()
        top1 = (logits.argmax(1) == right).double().mean().item()
        return {"top1": top1, "loss": pytest.approx(loss, rel=1e-5), "num_images": len(right)}

    return count


def renamed(image_tree: Path, tmp_path: Path, names: dict[str, str]) -> Path:
    """The packed images of some directories, under other names."""
    for split in ("train", "val"):
        (tmp_path / "tree" / split).mkdir(parents=True)
        for name, new in names.items():
            (tmp_path / "tree" / split / new).symlink_to(image_tree / split / name)
    with ThreadPoolExecutor(1) as executor:
        return pack(tmp_path / "tree", tmp_path / "data", executor=executor).shard_set.root


def scored(trained: Path, data: Path, *options: str) -> Result:
    arguments = [str(trained), "--data", str(data), "--device", "cpu", "--json", *options]
    result = CliRunner().invoke(command, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def figures(result: Result) -> dict[str, float]:
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    return {name: found[name] for name in ("top1", "loss", "num_images")}


def test_a_subset_in_another_order(trained: Path, image_tree: Path, tmp_path: Path, counted) -> None:
    result = scored(trained, renamed(image_tree, tmp_path, {"class0": "class0", "class2": "class2"}))
    assert figures(result) == counted({"class2": 0, "class0": 2})
    assert "classes mapped by key: val has images of 2 classes, the network has 4 outputs" in result.stderr


def test_a_class_map(trained: Path, image_tree: Path, tmp_path: Path, counted) -> None:
    data = renamed(image_tree, tmp_path, {"class0": "zero", "class1": "eins", "class2": "class2"})
    refused = scored(trained, data)
    assert refused.exit_code == 1
    assert "val has images of 2 classes that" in refused.stderr
    assert "'eins', 'zero'; it has 4: 'class2', 'other', 'class0'" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    (tmp_path / "map").write_text("class0 zero\nother eins\n")
    result = scored(trained, data, "--class-map", str(tmp_path / "map"))
    assert figures(result) == counted({"class0": 2, "class1": 1, "class2": 0})
    assert f"by {tmp_path / 'map'} and 1 of them by key" in result.stderr


def test_numbers_of_imagenet_on_wnids(image_tree: Path, tmp_path: Path) -> None:
    """The network knows 1,000 numbers; the images lie in directories called by wnids."""
    numbers = [{"wnid": f"{i:06d}", "name": str(i)} for i in range(1000)]
    write_checkpoint(tmp_path / "numbers.pt", recipe_of(), classes=numbers)
    wnids = list(imagenet_classes())
    write_checkpoint(tmp_path / "wnids.pt", recipe_of(), classes=[{"wnid": w, "name": w} for w in wnids])
    data = renamed(image_tree, tmp_path, {"class0": wnids[388], "class1": wnids[10], "class2": wnids[999]})
    result, same = scored(tmp_path / "numbers.pt", data), scored(tmp_path / "wnids.pt", data)
    assert json.loads(result.stdout) == json.loads(same.stdout)
    assert "by ImageNet's list of wnids, in which the network's numbers are positions" in result.stderr
    assert "classes mapped by key: val has images of 3 classes" in same.stderr


def test_the_same_numbers_by_other_names_are_said(image_tree: Path, tmp_path: Path) -> None:
    names = [{"wnid": key, "name": name} for key, name in (("0", "cat"), ("1", "dog"), ("2", "2"))]
    write_checkpoint(tmp_path / "a.pt", recipe_of(), classes=names)
    data = renamed(image_tree, tmp_path, {"class0": "0", "class1": "1", "class2": "2"})
    assert scored(tmp_path / "a.pt", data).stderr == ""
    with ThreadPoolExecutor(1) as executor:
        (tmp_path / "names").write_text("0 Cat, tabby\n1 dax\n2 fep\n")
        pack(tmp_path / "tree", tmp_path / "named", PackOptions(class_file=tmp_path / "names"), executor=executor)
    assert (
        "1 of 3 class numbers have different names: 1 is 'dog' in the network and 'dax'"
        in scored(tmp_path / "a.pt", tmp_path / "named").stderr
    )
