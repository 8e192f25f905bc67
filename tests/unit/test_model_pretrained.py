"""Pretrained weights from every kind of file and torch.hub's cache equal those of their network."""

import json
import re
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from penstock.model.config import EmaConfig, ModelConfig
from penstock.model.networks import build_model
from penstock.model.pretrained import load_pretrained
from penstock.model.weight_files import Source
from penstock.recipes import Recipe, TrainConfig
from penstock.shard_tools.sources.imagenet import imagenet_classes
from penstock.shards.format import ClassInfo
from penstock.training import checkpoint
from penstock.training.distributed import World
from penstock.training.learner import build_learner

SMALL = "squeezenet1_1"  # the smallest of torchvision's files


def fresh(name: str, num_classes: int, seed: int = 1, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    return build_model(ModelConfig(name=name, **options), num_classes)


def load(net: nn.Module, name: str, source: Path | str) -> str:
    return load_pretrained(net, ModelConfig(name=name, pretrained=str(source)))


def assert_same(net: nn.Module, other: nn.Module, *, except_for: str = "-") -> None:
    theirs = other.state_dict()
    for name, tensor in net.state_dict().items():
        if not name.startswith(except_for):
            torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=0, msg=name)


@pytest.fixture
def donor() -> nn.Module:
    net = fresh("cifar_resnet8", 10, seed=7)
    net.train()(torch.randn(4, 3, 32, 32))  # BatchNorm's buffers differ from a fresh network's too
    return net


def saved_as(kind: str, net: nn.Module, folder: Path) -> Path:
    """The network's weights as one of the files that people have."""
    state = dict(net.state_dict())
    other = {name: torch.full_like(tensor, 9) for name, tensor in state.items()}
    path = folder / "weights.pt"
    match kind:
        case "penstock":
            checkpoint.save(path, {"net": state, "ema": None, "classes": []})
        case "penstock_ema":
            checkpoint.save(path, {"net": other, "ema": state})
        case "safetensors":
            path = path.with_suffix(".safetensors")
            save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
        case "ddp":
            torch.save({f"module.{name}": tensor for name, tensor in state.items()}, path)
        case "compiled_ddp":
            torch.save({f"_orig_mod.module.{name}": tensor for name, tensor in state.items()}, path)
        case "nested":
            torch.save({"epoch": 3, "state_dict": state, "best": 0.5}, path)
        case "lightning":
            wrapped = {f"model.{name}": tensor for name, tensor in state.items()}
            torch.save({"state_dict": wrapped | {"criterion.weight": torch.ones(10)}}, path)
        case "tutorial":
            torch.save({"model_state_dict": state, "optimizer_state_dict": {}, "epoch": 3}, path)
        case "half":
            torch.save({name: t.half() if t.is_floating_point() else t for name, t in state.items()}, path)
        case _:
            torch.save(net.state_dict(), path)
    return path


KINDS = (
    "plain",
    "penstock",
    "penstock_ema",
    "safetensors",
    "ddp",
    "compiled_ddp",
    "nested",
    "lightning",
    "tutorial",
    "half",
)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_gives_the_donors_weights(kind: str, donor: nn.Module, tmp_path: Path) -> None:
    net = fresh("cifar_resnet8", 10)
    path = saved_as(kind, donor, tmp_path)
    said = load(net, "cifar_resnet8", path)
    assert_same(net, donor.half().float() if kind == "half" else donor)
    assert str(path) in said
    assert "reinitialised" not in said
    assert ("moving average" in said) == (kind == "penstock_ema")
    assert net.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert net.conv1.weight.requires_grad


def test_a_runs_directory_stands_for_its_best_checkpoint(donor: nn.Module, tmp_path: Path) -> None:
    other = {name: torch.full_like(tensor, 9) for name, tensor in donor.state_dict().items()}
    checkpoint.save(checkpoint.last_path(tmp_path), {"net": other})
    load(fresh("cifar_resnet8", 10), "cifar_resnet8", tmp_path)
    checkpoint.save(checkpoint.best_path(tmp_path), {"net": donor.state_dict()})
    net = fresh("cifar_resnet8", 10)
    assert str(checkpoint.best_path(tmp_path)) in load(net, "cifar_resnet8", tmp_path)
    assert_same(net, donor)


@pytest.mark.parametrize("num_classes", [3, 12])
def test_another_number_of_classes_keeps_the_body(num_classes: int, donor: nn.Module, tmp_path: Path) -> None:
    net, untouched = fresh("cifar_resnet8", num_classes), fresh("cifar_resnet8", num_classes)
    said = load(net, "cifar_resnet8", saved_as("plain", donor, tmp_path))
    assert_same(net, donor, except_for="fc.")
    torch.testing.assert_close(net.fc.weight, untouched.fc.weight, rtol=0, atol=0)
    torch.testing.assert_close(net.fc.bias, untouched.fc.bias, rtol=0, atol=0)
    assert said.endswith(f"fc is reinitialised, 10 → {num_classes} classes")


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("alexnet", ["classifier.6"]),
        ("convnext_tiny", ["classifier.2"]),
        ("densenet121", ["classifier"]),
        ("inception_v3", ["fc", "AuxLogits.fc"]),
        ("googlenet", ["fc", "aux1.fc2", "aux2.fc2"]),
        ("maxvit_t", ["classifier.5"]),
        ("mobilenet_v3_small", ["classifier.3"]),
        ("squeezenet1_1", ["classifier.1"]),
        ("swin_t", ["head"]),
        ("vit_b_32", ["heads.head"]),
    ],
)
def test_heads_are_found_in_every_family(name: str, heads: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device, with shapes but no values: only the heads have other shapes than the donor's."""
    options = {"aux_logits": len(heads) > 1}
    with torch.device("meta"):
        donor = fresh(name, 10, **options).state_dict()
        net = fresh(name, 4, **options)
    monkeypatch.setattr("penstock.model.pretrained.read_weights", lambda *_: Source("memory", donor))
    _, *notes = load(net, name, "-").split("; ")
    assert notes == [f"{head} is reinitialised, 10 → 4 classes" for head in heads]
    different = {key for key, tensor in net.state_dict().items() if tensor.shape != donor[key].shape}
    assert different == {key for key in donor if key.rpartition(".")[0] in heads}


@pytest.mark.parametrize(("theirs", "ours"), [(True, False), (False, True)])
def test_auxiliary_heads_come_and_go(theirs: bool, ours: bool, tmp_path: Path) -> None:
    donor = fresh("googlenet", 5, seed=7, aux_logits=theirs)
    torch.save(donor.state_dict(), tmp_path / "weights.pth")
    net = fresh("googlenet", 5, aux_logits=ours)
    untouched = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    said = load(net, "googlenet", tmp_path / "weights.pth")
    assert_same(net, donor, except_for="aux")
    for name, tensor in net.state_dict().items():
        if name.startswith("aux"):
            torch.testing.assert_close(tensor, untouched[name], rtol=0, atol=0)
    notes = ["aux1 is not used", "aux2 is not used"] if theirs else []
    notes += [f"{head} is reinitialised, the source has no weights for it" for head in ("aux1", "aux2")] if ours else []
    assert said.split("; ")[1:] == notes


def densenet_of_2017(state: dict[str, Tensor]) -> dict[str, Tensor]:
    old = {}
    for name, tensor in state.items():
        for layer in ("norm1", "norm2", "conv1", "conv2"):
            if "denselayer" in name:
                name = name.replace(f".{layer}.", f".{layer[:-1]}.{layer[-1]}.")
        if not name.endswith("num_batches_tracked"):
            old[name] = tensor
    return old


def test_densenets_of_2017_load_as_torchvision_loads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published files have `norm.1` for `norm1`, and no counters of batches; torchvision's loader is the oracle."""
    old = densenet_of_2017(fresh("densenet121", 1000, seed=7).state_dict())
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    path = tmp_path / "densenet.pth"
    torch.save(old, path)
    net = fresh("densenet121", 1000)
    load(net, "densenet121", path)
    weights = torchvision.models.DenseNet121_Weights.DEFAULT
    monkeypatch.setattr(type(weights), "get_state_dict", lambda *args, **kwargs: torch.load(path, weights_only=True))
    assert_same(net, torchvision.models.densenet121(weights=weights))


def test_transformers_of_2021_load_as_torchvision_loads_them(tmp_path: Path) -> None:
    oracle = torchvision.models.VisionTransformer(32, 16, 2, 2, 8, 16)
    old = {
        name.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): torch.randn_like(tensor)
        for name, tensor in oracle.state_dict().items()
    }
    assert any("linear_1" in name for name in old)
    net = torchvision.models.VisionTransformer(32, 16, 2, 2, 8, 16)
    oracle.load_state_dict(old)
    torch.save(old, tmp_path / "vit.pth")
    load(net, "vit_b_32", tmp_path / "vit.pth")
    assert_same(net, oracle)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch.hub's cache, empty, and no network behind it."""

    def offline(*args: Any, **kwargs: Any) -> None:
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("source", ["DEFAULT", "IMAGENET1K_V1", "SqueezeNet1_1_Weights.IMAGENET1K_V1"])
def test_published_weights_come_through_torch_hub(source: str, hub: Path) -> None:
    donor = fresh(SMALL, 1000, seed=7)
    torch.save(donor.state_dict(), hub / torchvision.models.SqueezeNet1_1_Weights.DEFAULT.url.rpartition("/")[2])
    net = fresh(SMALL, 2)
    said = load(net, SMALL, source)
    assert_same(net, donor, except_for="classifier.1.")
    assert "SqueezeNet1_1_Weights.IMAGENET1K_V1" in said
    assert said.endswith("classifier.1 is reinitialised, 1000 → 2 classes")


def test_no_network_is_one_line(hub: Path) -> None:
    with pytest.raises(
        ValueError, match=r"pretrained = DEFAULT: download failed .*name resolution.*squeezenet1_1-.*path"
    ) as e:
        load(fresh(SMALL, 2), SMALL, "DEFAULT")
    assert "\n" not in str(e.value)


def test_a_damaged_download_is_one_line(hub: Path) -> None:
    (hub / torchvision.models.SqueezeNet1_1_Weights.DEFAULT.url.rpartition("/")[2]).write_bytes(b"half a file")
    with pytest.raises(ValueError, match=r"pretrained = DEFAULT: .*empty torch.hub's cache") as e:
        load(fresh(SMALL, 2), SMALL, "DEFAULT")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        (
            "resnet18",
            "IMAGENET1K_V2",
            r"neither a file nor one of torchvision's weights of resnet18 \(IMAGENET1K_V1, DEF",
        ),
        ("resnet18", "ResNet50_Weights.DEFAULT", "neither a file nor"),
        ("resnet18", "none.pt", "pretrained = none.pt: neither a file nor"),
        ("resnet18", ".", "not a run's directory .no checkpoints/best.pt or last.pt"),
        ("cifar_resnet8", "DEFAULT", "no such file; torchvision publishes no weights of cifar_resnet8"),
    ],
)
def test_a_source_that_is_none_is_an_error(name: str, source: str, message: str) -> None:
    with torch.device("meta"):
        net = fresh(name, 2)
    with pytest.raises(ValueError, match=message):
        load(net, name, source)


def test_what_does_not_fit_is_an_error_with_the_first_few_names(donor: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    net = fresh("cifar_resnet14", 10)
    untouched = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    torch.save(donor.state_dict(), path)
    with pytest.raises(
        ValueError, match=r"not weights of this cifar_resnet14: layer1.1.conv1.weight is missing; .* and \d\d more"
    ):
        load(net, "cifar_resnet14", path)
    for name, tensor in net.state_dict().items():
        torch.testing.assert_close(tensor, untouched[name], rtol=0, atol=0)

    def error_of(state: dict[str, Any]) -> str:
        torch.save(state, path)
        with pytest.raises(ValueError, match=r"^pretrained = .*not weights of this cifar_resnet8: ") as e:
            load(fresh("cifar_resnet8", 10), "cifar_resnet8", path)
        return str(e.value).partition("cifar_resnet8: ")[2]

    state = dict(donor.state_dict())
    assert error_of(state | {"extra": torch.zeros(1)}) == "extra is unexpected"
    assert error_of(state | {"bn1.bias": torch.zeros(3)}) == "bn1.bias has shape (3,) instead of (16,)"
    assert error_of(state | {"fc.weight": torch.zeros(10, 65)}) == "fc.weight has shape (10, 65) instead of (10, 64)"
    assert error_of(state | {"fc.bias": 3}) == "fc.bias is not a tensor"
    del state["fc.weight"]
    assert error_of(state) == "fc.weight is missing"
    assert "bn1.bias has integers" in error_of(state | {"bn1.bias": torch.ones(16, dtype=torch.int8)})
    assert error_of({"ema": {}, "epoch": 3}) == "it has ema, epoch; the network has conv1.weight, …"
    two = {f"{who}.{name}": tensor for who in ("student", "teacher") for name, tensor in donor.state_dict().items()}
    torch.save(two, path)
    with pytest.raises(ValueError, match=r"several networks, student\., teacher\.; save the state dict of one"):
        load(fresh("cifar_resnet8", 10), "cifar_resnet8", path)


def test_a_body_without_a_head_gets_a_fresh_one(donor: nn.Module, tmp_path: Path) -> None:
    """Self-supervised training produces such weights."""
    state = {f"backbone.{name}": tensor for name, tensor in donor.state_dict().items() if not name.startswith("fc.")}
    torch.save(state | {"projector.weight": torch.ones(3)}, tmp_path / "body.pt")
    net, untouched = fresh("cifar_resnet8", 10), fresh("cifar_resnet8", 10)
    said = load(net, "cifar_resnet8", tmp_path / "body.pt")
    assert_same(net, donor, except_for="fc.")
    torch.testing.assert_close(net.fc.weight, untouched.fc.weight, rtol=0, atol=0)
    assert said.endswith(
        "its module backbone, 1 other tensors ignored; fc is reinitialised, the source has no weights for it"
    )


TEN = [ClassInfo(f"n{i:08}", f"name {i}") for i in range(10)]


def of_program(kind: str, net: nn.Module, folder: Path, classes: list[ClassInfo] = TEN) -> Path:
    """The weights in a file that lists its classes, like a checkpoint or an export."""
    listed = [{"class" if kind == "safetensors" else "wnid": info.wnid, "name": info.name} for info in classes]
    path = folder / "model.pt"
    match kind:
        case "checkpoint":
            checkpoint.save(path, {"net": net.state_dict(), "ema": None, "classes": listed})
        case "safetensors":
            path = path.with_suffix(".safetensors")
            state = {name: tensor.contiguous() for name, tensor in net.state_dict().items()}
            save_file(state, path, {"format": "pt", "classes": json.dumps(listed)})
        case "export":
            torch.save(net.state_dict(), path)
            (folder / "model.pt.json").write_text(json.dumps({"classes": listed}))
        case "bare":
            torch.save(net.state_dict(), path)
            (folder / "model.pt.json").write_text('{"classes": ["a", "b"]}')  # another program's
    return path


def learnt(path: Path, classes: list[ClassInfo], name: str = "cifar_resnet8", **options: Any) -> tuple[Any, str]:
    """The learner that starts from the file's weights, and the printed lines."""
    said: list[str] = []
    model = ModelConfig(name=name, pretrained=str(path), **options)
    recipe = Recipe(model=model, ema=EmaConfig(decay=0.9), train=TrainConfig(precision="fp32"))
    world = World(0, 0, 1, 1, torch.device("cpu"))
    learner = build_learner(recipe, len(classes), world, said.append, classes)
    (line,) = said
    return learner, line.partition("; ")[2]


@pytest.mark.parametrize("kind", ["checkpoint", "safetensors", "export"])
@pytest.mark.parametrize(
    ("labels", "note"),
    [
        ([*range(10)], ""),
        ([3, 2, 1, 0, *range(4, 10)], "fc keeps the rows of the dataset's classes, in the dataset's order"),
        ([7, 2], "fc keeps the rows of the dataset's classes, 2 of 10"),
    ],
)
def test_a_file_that_knows_its_classes_gives_the_rows_of_the_datasets(
    kind: str, labels: list[int], note: str, donor: nn.Module, tmp_path: Path
) -> None:
    classes = [TEN[label] for label in labels]
    learner, said = learnt(of_program(kind, donor, tmp_path), classes)
    images = torch.randn(4, 3, 32, 32)
    expected = donor.eval()(images)[:, labels]
    for net in (learner.net.eval(), learner.ema.net):
        torch.testing.assert_close(net(images), expected)
    assert said == note


@pytest.mark.parametrize(
    ("classes", "note"),
    [
        ([ClassInfo(f"other {i}", "") for i in range(10)], "fc is reinitialised, 10 → 10 classes, none in common"),
        ([*TEN[:4], ClassInfo("x", "x")], "fc is reinitialised, 10 → 5 classes, only 4 in common"),
        ([*TEN, ClassInfo("x", "x")], "fc is reinitialised, 10 → 11 classes, only 10 in common"),
    ],
)
def test_other_classes_start_a_new_head_even_as_many(
    classes: list[ClassInfo], note: str, donor: nn.Module, tmp_path: Path
) -> None:
    learner, said = learnt(of_program("checkpoint", donor, tmp_path), classes)
    untouched = fresh("cifar_resnet8", len(classes), seed=0)
    assert_same(learner.net, donor, except_for="fc.")
    torch.testing.assert_close(learner.net.fc.weight, untouched.fc.weight, rtol=0, atol=0)
    torch.testing.assert_close(learner.net.fc.bias, untouched.fc.bias, rtol=0, atol=0)
    assert_same(learner.ema.net, learner.net)
    assert said == note


def test_what_is_assumed_is_said(donor: nn.Module, tmp_path: Path) -> None:
    letters = [ClassInfo(letter, letter) for letter in "abcdefghij"]
    learner, said = learnt(of_program("bare", donor, tmp_path), letters)
    assert_same(learner.net, donor)
    assert said == "fc is kept: its 10 classes have no names and are assumed to be the dataset's, in order"
    numbers = [ClassInfo(f"{i:06}", f"{i:06}") for i in range(10)]
    _, said = learnt(of_program("checkpoint", donor, tmp_path, numbers), [ClassInfo(str(i), str(i)) for i in range(10)])
    assert said == "fc keeps the rows of the dataset's classes, matched by their numbers alone, as they have no names"


def test_auxiliary_heads_and_convolutions_are_mapped_too(tmp_path: Path) -> None:
    for name, heads in (("googlenet", ("fc", "aux1.fc2", "aux2.fc2")), ("squeezenet1_1", ("classifier.1",))):
        options = {"aux_logits": True} if name == "googlenet" else {}
        donor = fresh(name, 10, seed=7, **options)
        learner, said = learnt(of_program("checkpoint", donor, tmp_path), [TEN[4], TEN[1]], name, **options)
        for head in heads:
            for part in ("weight", "bias"):
                theirs = donor.get_parameter(f"{head}.{part}")[[4, 1]]
                torch.testing.assert_close(learner.net.get_parameter(f"{head}.{part}"), theirs, rtol=0, atol=0)
        assert said == "; ".join(f"{head} keeps the rows of the dataset's classes, 2 of 10" for head in heads)


@pytest.mark.parametrize("how", ["name", "file"])
def test_torchvisions_rows_are_imagenets_sorted_wnids(how: str, hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the name of the weights, and from the file that torchvision publishes; any other file's rows are not known."""
    donor = fresh(SMALL, 1000, seed=7)
    published = torchvision.models.SqueezeNet1_1_Weights.DEFAULT
    path = hub / published.url.rpartition("/")[2]
    torch.save(donor.state_dict(), path)
    monkeypatch.setattr(
        "penstock.model.weight_files._sha256", lambda file: re.findall(r"-(\w+)\.pth", published.url)[0]
    )
    source = path if how == "file" else Path("DEFAULT")
    wnids = list(imagenet_classes().items())
    goldfish, tench = (ClassInfo(*wnids[i]) for i in (1, 0))
    learner, said = learnt(source, [goldfish, tench], SMALL)
    torch.testing.assert_close(learner.net.classifier[1].weight, donor.classifier[1].weight[[1, 0]], rtol=0, atol=0)
    assert said == "classifier.1 keeps the rows of the dataset's classes, 2 of 1000"
    numbered = [ClassInfo(f"{i:06}", name) for i, (_, name) in enumerate(wnids)]
    assert_same(learnt(source, numbered, SMALL)[0].net, donor)
    others = [ClassInfo(f"class {i}", f"class {i}") for i in range(1000)]
    assert learnt(source, others, SMALL)[1] == "classifier.1 is reinitialised, 1000 → 1000 classes, none in common"
    if how == "file":
        monkeypatch.undo()  # whatever the file's name says, it is another
        assert "is kept: its 1000 classes have no names" in learnt(source, others, SMALL)[1]


class Harmful:
    def __reduce__(self) -> Any:
        return subprocess.call, (["false"],)


def test_nothing_in_a_file_runs(tmp_path: Path) -> None:
    torch.save({"a": Harmful()}, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match="cannot be read as weights: it holds more than tensors") as e:
        load(fresh("cifar_resnet8", 10), "cifar_resnet8", tmp_path / "bad.pt")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["cut.pt", "text.pth", "text.safetensors", "list.pt"])
def test_files_that_are_not_weights_are_errors(name: str, donor: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / name
    match name:
        case "cut.pt":
            whole = saved_as("plain", donor, tmp_path).read_bytes()
            path.write_bytes(whole[: len(whole) // 2])
        case "list.pt":
            torch.save([1, 2], path)
        case _:
            path.write_text("not weights")
    with pytest.raises(ValueError, match=f"^{path}: (cannot be read|holds a list)") as e:
        load(fresh("cifar_resnet8", 10), "cifar_resnet8", path)
    assert "\n" not in str(e.value)
