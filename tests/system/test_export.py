"""`train.py export`: other programs read the files without this project."""

import copy
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from click.testing import CliRunner, Result
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torchvision.transforms import v2

import penstock.commands.export
import penstock.commands.onnx_graph
from penstock.commands.options import export_command as command
from penstock.commands.options import predict_command as predict
from penstock.training.checkpoint import load as load_checkpoint
from tests.common.checkpoints import CLASSES, opinionated, recipe_of, write_checkpoint

IMAGES = torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(5)) * 4 - 2
SETTINGS = ("model.name=resnet18", "data.val_image_size=64", "data.val_resize_size=72", "data.mean=[10,200,90]")


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(command, list(map(str, arguments)))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def exported(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    """A checkpoint of resnet18, and its network."""
    path = tmp_path_factory.mktemp("run") / "resnet18.pt"
    return path, write_checkpoint(path, recipe_of(*SETTINGS)).eval()


def test_a_state_dict_is_torchvisions(resnet18: tuple[Path, torch.nn.Module], tmp_path: Path) -> None:
    checkpoint, net = resnet18
    said = exported(checkpoint, tmp_path / "new" / "model.pth")
    assert "torchvision.models.resnet18(num_classes=7) loads it and gives the same logits" in said
    state = torch.load(tmp_path / "new" / "model.pth", weights_only=True)
    assert all(tensor.is_contiguous() for tensor in state.values())
    peer = torchvision.models.resnet18(num_classes=7).eval()
    peer.load_state_dict(state)
    torch.testing.assert_close(peer(IMAGES), net(IMAGES), rtol=0, atol=1e-3)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["model.pth", "model.pth.json"]


def test_the_description_is_all_that_it_takes_to_predict(
    resnet18: tuple[Path, torch.nn.Module], tmp_path: Path
) -> None:
    """torchvision with nothing but the two files, beside `train.py predict`."""
    coarse = np.random.default_rng(3).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((150, 110), Image.Resampling.BICUBIC)
    image.save(tmp_path / "image.jpg", quality=95)
    exported(resnet18[0], tmp_path / "model.pt")
    facts = json.loads((tmp_path / "model.pt.json").read_text())
    peer = eval(facts["torchvision"], {"torchvision": torchvision}).eval()
    peer.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    interpolation = {"linear": v2.InterpolationMode.BILINEAR}[facts["interpolation"]]
    transform = v2.Compose(
        [
            v2.Resize(facts["resize_size"], interpolation, antialias=facts["antialias"]),
            v2.CenterCrop(facts["image_size"]),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32),
            v2.Normalize(facts["mean"], facts["std"]),
        ]
    )
    with Image.open(tmp_path / "image.jpg") as stored:
        shares = peer(transform(stored)[None]).softmax(1)[0].tolist()
    expected = {info["wnid"]: share for info, share in zip(facts["classes"], shares, strict=True)}
    assert facts["classes"] == CLASSES
    assert "softmax" in facts["output"]

    line = CliRunner().invoke(predict, [str(resnet18[0]), str(tmp_path / "image.jpg"), "--json", "--top-k", "7"]).stdout
    found = {guess["wnid"]: guess["probability"] for guess in json.loads(line)["classes"]}
    assert found == pytest.approx(expected, abs=0.01)
    assert max(found.values()) > 0.3


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (("model.blurpool=true",), "resnet18(num_classes=7) loads it but computes other logits"),
        (("model.stem=small",), "resnet18(num_classes=7) has different weights"),
        (("model.name=cifar_resnet8",), "cifar_resnet8 is not one of torchvision's networks"),
        (("model.stem=small", "model.blurpool=true", "model.dropout=none"), "has different weights"),
    ],
)
def test_it_says_where_torchvision_has_not_this_network_and_how_to_build_it(
    settings: tuple[str, ...], says: str, suffix: str, tmp_path: Path
) -> None:
    net = write_checkpoint(tmp_path / "a.pt", recipe_of("model.name=resnet18", *settings)).eval()
    path = (tmp_path / "out" / "model").with_suffix(suffix)
    said = exported(tmp_path / "a.pt", path)
    assert says in said
    if suffix == ".pt":
        facts, state = json.loads((tmp_path / "out" / "model.pt.json").read_text()), torch.load(path, weights_only=True)
    else:
        with safe_open(path, "pt") as file:
            facts, state = file.metadata(), load_file(path)
    assert facts["torchvision"] in (None, "null")
    assert facts["build"] in said
    made: dict[str, Any] = {}
    exec(facts["build"], made)
    made["net"].eval().load_state_dict(state)
    torch.testing.assert_close(made["net"](IMAGES), net(IMAGES), rtol=0, atol=1e-3)


def test_the_classes_key_is_called_what_it_is(tmp_path: Path) -> None:
    animals = [{"wnid": word, "name": word.title()} for word in ("cat", "dog")]
    write_checkpoint(tmp_path / "a.pt", recipe_of(), classes=animals)
    exported(tmp_path / "a.pt", tmp_path / "out" / "model.pt")
    facts = json.loads((tmp_path / "out" / "model.pt.json").read_text())
    assert facts["classes"] == [{"class": "cat", "name": "Cat"}, {"class": "dog", "name": "Dog"}]


def test_an_auxiliary_head_and_inceptions_own_normalisation_are_in_the_call(tmp_path: Path) -> None:
    recipe = recipe_of("model.name=googlenet", "model.aux_logits=true", "data.val_image_size=64",
                       "data.val_resize_size=64", "ema.decay=0.5")  # fmt: skip
    average = opinionated(recipe, len(CLASSES), seed=2)
    write_checkpoint(tmp_path / "a.pt", recipe, ema=average.state_dict())
    said = exported(tmp_path / "a.pt", tmp_path / "out" / "model.pt")
    assert "aux_logits=True, transform_input=True, init_weights=False) loads it and gives the same logits" in said
    assert "googlenet, ema weights of" in said
    call = json.loads((tmp_path / "out" / "model.pt.json").read_text())["torchvision"]
    peer = eval(call, {"torchvision": torchvision}).eval()
    peer.load_state_dict(torch.load(tmp_path / "out" / "model.pt", weights_only=True))
    torch.testing.assert_close(peer(IMAGES), average.eval()(IMAGES), rtol=1e-3, atol=1e-3)


def test_safetensors_hold_the_same_and_say_how_to_use_it(
    resnet18: tuple[Path, torch.nn.Module], tmp_path: Path
) -> None:
    exported(resnet18[0], tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    state = resnet18[1].state_dict()
    assert set(tensors) == set(state)
    assert all(torch.equal(tensors[name], state[name]) for name in state)
    assert json.loads(metadata["classes"]) == CLASSES
    assert json.loads(metadata["mean"]) == [10, 200, 90]  # as the recipe has them, and takes them again
    assert json.loads(metadata["std"]) == [58.395, 57.12, 57.375]
    sizes = {name: metadata[name] for name in ("resize_size", "image_size", "network", "format", "weights")}
    assert sizes == {"resize_size": "72", "image_size": "64", "network": "resnet18", "format": "pt", "weights": "raw"}
    pyproject = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert f'version = "{metadata["penstock"]}"' in pyproject


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small") / "small.pt"
    write_checkpoint(path, recipe_of())
    return path


def onnx_logits(path: Path, images: torch.Tensor) -> torch.Tensor:
    from onnxruntime import InferenceSession

    (logits,) = InferenceSession(path, providers=["CPUExecutionProvider"]).run(["logits"], {"images": images.numpy()})
    return torch.from_numpy(logits)


def test_onnx_gives_the_networks_logits_for_any_number_of_images(small: Path, tmp_path: Path) -> None:
    import onnx
    from onnxruntime import InferenceSession

    said = exported(small, tmp_path / "model.onnx")
    assert "onnxruntime's logits differ from torch's by " in said
    net = opinionated(recipe_of(), len(CLASSES), seed=1)
    for images in (IMAGES[..., :32, :32], IMAGES[:1, :, 32:, 32:]):
        torch.testing.assert_close(onnx_logits(tmp_path / "model.onnx", images), net(images), rtol=0, atol=1e-3)
    session = InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", 3, 32, 32]
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"]) == CLASSES
    assert metadata["image_size"] == "32"
    onnx.checker.check_model(str(tmp_path / "model.onnx"))
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]  # no weights beside it


def test_static_onnx_of_an_older_opset(small: Path, tmp_path: Path) -> None:
    import onnx

    exported(small, tmp_path / "model.bin", "--format", "onnx", "--static", "--opset", 18)
    model = onnx.load(tmp_path / "model.bin")
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == 18
    assert [size.dim_value for size in model.graph.input[0].type.tensor_type.shape.dim] == [1, 3, 32, 32]


def test_onnx_that_computes_something_else_is_not_written(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = torch.onnx.export

    def skewed(net: torch.nn.Module, *arguments: Any, **options: Any) -> Any:
        """The graph of a network whose logits are off by a thousandth."""
        net = copy.deepcopy(net)
        net.fc.bias.add_(0.01)  # type: ignore[operator, union-attr]
        return real(net, *arguments, **options)

    monkeypatch.setattr(torch.onnx, "export", skewed)
    result = run(small, tmp_path / "model.onnx")
    assert result.exit_code == 1
    assert "not written, because onnxruntime's logits differ from torch's by at most 1.0e-02" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_opset_that_torch_does_not_write_is_an_error(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = SimpleNamespace(model=SimpleNamespace(opset_imports={"": 18}))  # it falls back where it cannot convert
    monkeypatch.setattr(torch.onnx, "export", lambda *arguments, **options: program)
    result = run(small, tmp_path / "model.onnx", "--opset", 19)
    assert "--opset 19: torch" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_onnxruntime_does_not_take_is_one_line(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(penstock.commands.export, "onnx_bytes", lambda *arguments, **options: b"no model")
    (line,) = run(small, tmp_path / "model.onnx").stderr.splitlines()
    assert line.startswith("Error: onnxruntime ")
    assert "rejects this model (" in line
    assert list(tmp_path.iterdir()) == []


def test_weights_beyond_one_onnx_file_are_an_error(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(penstock.commands.onnx_graph, "LIMIT_BYTES", 100_000)
    assert "these weights have 0.0 GB. Export .safetensors" in run(small, tmp_path / "model.onnx").stderr


def test_what_torch_cannot_export_is_one_line(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("Constraints violated (batch)!\nand a page more")

    monkeypatch.setattr(torch.onnx, "export", fails)
    expected = "Error: torch cannot export this network to ONNX (Constraints violated (batch)!). "
    assert run(small, tmp_path / "model.onnx").stderr.splitlines() == [f"{expected}Try --static"]
    assert run(small, tmp_path / "model.onnx", "--static").stderr.splitlines() == [f"{expected}Export .safetensors"]


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_is_one_line_with_the_remedy(
    package: str, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    stderr = run(small, tmp_path / "model.onnx").stderr
    assert stderr.splitlines() == [f"Error: ONNX needs {package}, which is not installed. Run: uv sync --extra onnx"]


def test_what_a_user_gets_wrong_is_one_line_and_leaves_nothing(small: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    before = small.read_bytes()
    cases = {
        "nothing.pt: no such checkpoint": (tmp_path / "nothing.pt", tmp_path / "model.pt"),
        "model.png: unknown suffix. Use one of .pt, .pth": (small, tmp_path / "model.png"),
        "--opset, --dynamic-batch and --static apply only to ONNX": (small, tmp_path / "model.pt", "--static"),
        "only to ONNX, not to safetensors": (small, tmp_path / "model.safetensors", "--opset", 18),
        "would lie among the checkpoints": (small, small.with_name("other.pt")),
        "has no averaged weights": (small, tmp_path / "model.pt", "--weights", "ema"),
        "file: ": (small, tmp_path / "file" / "model.pt"),  # a file where the folder should be
    }
    for message, arguments in cases.items():
        result = run(*arguments)
        assert result.exit_code == 1, message
        (line,) = result.stderr.splitlines()
        assert line.startswith("Error: ")
        assert message in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]
    assert [path.name for path in small.parent.iterdir()] == [small.name]
    assert small.read_bytes() == before


def test_a_write_that_fails_leaves_the_old_file(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device", "model.safetensors")

    monkeypatch.setattr("penstock.shards.format.os.fsync", full)
    result = run(small, tmp_path / "model.safetensors")
    assert result.stderr == "Error: model.safetensors: No space left on device\n"
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("model.safetensors", b"old")]


def test_an_export_is_no_checkpoint(resnet18: Any, tmp_path: Path) -> None:
    exported(resnet18[0], tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"an export, not a checkpoint\. Give the run"):
        load_checkpoint(tmp_path / "model.safetensors")
