"""A timm network through whole commands: train, resume, evaluate, predict, export."""

import json
import math
import tomllib
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from click.testing import CliRunner, Result

from penstock import train
from penstock.commands.trained_network import load_network
from penstock.recipes import recipe_file
from tests.common.runs import arguments, by_step, run


@pytest.fixture(scope="module", params=["test_resnet", "test_vit"])
def trained(request: pytest.FixtureRequest, dataset_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """timm's name of the network, a run of ten steps, and its output."""
    run_dir = tmp_path_factory.mktemp("run") / request.param
    done = run(dataset_dir, run_dir, "--max-steps", "10", model__name=f"timm/{request.param}")
    assert done.exit_code == 0, done.output
    return request.param, run_dir, done


def call(*words: object) -> Result:
    done = CliRunner().invoke(train.main, list(map(str, words)))
    assert done.exit_code == 0, done.output
    return done


def test_the_runs_own_config_holds_what_was_taken(trained: Any) -> None:
    name, run_dir, done = trained
    about = timm.get_pretrained_cfg(name)
    line = next(line for line in done.output.splitlines() if "defaults of timm" in line)
    assert line.startswith(f"defaults of timm/{name}: data.interpolation = ")
    data = tomllib.loads((run_dir / "config.toml").read_text())["data"]
    assert data["mean"] == pytest.approx([255 * share for share in about.mean])
    assert data["std"] == pytest.approx([255 * share for share in about.std])
    assert data["interpolation"] == {"bicubic": "cubic", "bilinear": "linear"}[about.interpolation]
    assert (data["image_size"], data["val_image_size"]) == (32, 32)  # given
    assert len(by_step(run_dir, "loss")) == 10


def test_it_goes_on_by_its_own_config(trained: Any, dataset_dir: Path) -> None:
    _, run_dir, _ = trained
    done = call("--run-dir", run_dir, "--data", dataset_dir, "--device", "cpu", "--max-steps", "12")
    assert "resuming from" in done.output
    assert "defaults of timm" not in done.output
    assert max(by_step(run_dir, "loss")) == 11


def test_it_is_exported_to_timm_and_predicts(trained: Any, dataset_dir: Path, image_tree: Path, tmp_path: Path) -> None:
    name, run_dir, _ = trained
    said = call("export", run_dir, tmp_path / "model.pt").output
    facts = json.loads((tmp_path / "model.pt.json").read_text())
    assert f"{facts['timm']} loads it and gives the same logits" in said
    assert facts["torchvision"] is None
    size = ", img_size=32" if name == "test_vit" else ""
    assert facts["timm"] == f"timm.create_model('{name}', num_classes={len(facts['classes'])}{size})"
    peer = eval(facts["timm"], {"timm": timm}).eval()
    peer.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    loaded = load_network(run_dir, device=torch.device("cpu"))
    images = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(peer(images), loaded.net(images), rtol=1e-3, atol=1e-4)
    made: dict[str, Any] = {}
    exec(facts["build"], made)
    made["net"].load_state_dict(peer.state_dict())
    image = next(path for path in image_tree.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    line = json.loads(call("predict", run_dir, image, "--json", "--device", "cpu").stdout)
    assert len(line["classes"]) > 1
    scores = json.loads(call("eval", run_dir, "--data", dataset_dir, "--device", "cpu", "--json").stdout)
    assert scores["num_images"] > 0
    if name == "test_vit":
        refused = CliRunner().invoke(train.main, ["eval", str(run_dir), "--image-size", "48", "--device", "cpu"])
        assert "--image-size 48: timm/test_vit accepts only images of 32 px" in refused.output


def test_it_starts_from_its_own_run_and_from_an_export(trained: Any, dataset_dir: Path, tmp_path: Path) -> None:
    name, run_dir, _ = trained
    call("export", run_dir, tmp_path / "model.safetensors")
    for source in (run_dir, tmp_path / "model.safetensors"):
        done = run(
            dataset_dir, tmp_path / f"from-{source.stem}", "--max-steps", "1",
            model__name=f"timm/{name}", model__pretrained=source,
        )  # fmt: skip
        assert f"pretrained weights: {source}" in done.output
        assert "is reinitialised" not in done.output


def test_ten_steps_of_the_vit_recipe_in_small(dataset_dir: Path, tmp_path: Path) -> None:
    small = {"model.name": "timm/test_vit", "schedule.warmup_epochs": 0.5, "train.precision": "fp32"}
    words = arguments(dataset_dir, tmp_path, "--max-steps", "10", "--recipe", str(recipe_file("vit-s16-90ep")))
    given = [f"{key}={value}" for key, value in small.items()]
    call(*words, *(word for one in given for word in ("--set", one)))
    losses = list(by_step(tmp_path, "loss").values())
    assert len(losses) == 10
    assert losses[0] == pytest.approx(math.log(3), rel=1e-3)  # the head starts at zero
    net = load_network(tmp_path, device=torch.device("cpu")).net
    assert net.cls_token is None
