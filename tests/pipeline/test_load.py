"""`load_network`: the checkpoint and weights that it chooses, and its errors if they do not fit."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from penstock.commands.trained_network import load_network
from penstock.recipes import config
from penstock.training import checkpoint
from tests.common.checkpoints import CLASSES, opinionated, recipe_of, write_checkpoint

CPU = torch.device("cpu")
IMAGES = torch.linspace(-2, 2, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)


def test_a_checkpoint_gives_back_the_network_its_recipe_and_its_classes(tmp_path: Path) -> None:
    recipe = recipe_of("train.epochs=7")
    net = write_checkpoint(tmp_path / "a.pt", recipe)
    loaded = load_network(tmp_path / "a.pt", device=CPU)
    assert torch.equal(loaded.net(IMAGES), net.eval()(IMAGES))  # in evaluation mode, with BatchNorm's own statistics
    assert not any(module.training for module in loaded.net.modules())
    assert not any(parameter.requires_grad for parameter in loaded.net.parameters())
    assert loaded.recipe == recipe
    assert [vars(info) for info in loaded.classes] == CLASSES
    assert (loaded.weights, loaded.path) == ("raw", tmp_path / "a.pt")


@pytest.mark.parametrize(("weights", "expected"), [("auto", "ema"), ("ema", "ema"), ("raw", "raw")])
def test_the_average_is_taken_where_there_is_one(tmp_path: Path, weights: str, expected: str) -> None:
    average = opinionated(recipe_of(), len(CLASSES), seed=2)
    raw = write_checkpoint(tmp_path / "a.pt", recipe_of("ema.decay=0.9"), ema=average.state_dict())
    loaded = load_network(tmp_path / "a.pt", weights=weights, device=CPU)  # type: ignore[arg-type]
    assert loaded.weights == expected
    assert torch.equal(loaded.net(IMAGES), {"raw": raw, "ema": average}[expected](IMAGES))
    assert not torch.equal(raw(IMAGES), average(IMAGES))


@pytest.mark.parametrize("ema", [{}, {"ema": None}])
def test_without_an_average_auto_is_raw_and_ema_an_error(tmp_path: Path, ema: dict[str, None]) -> None:
    write_checkpoint(tmp_path / "a.pt", recipe_of(), **ema)
    assert load_network(tmp_path / "a.pt", device=CPU).weights == "raw"
    with pytest.raises(ValueError, match=r"a\.pt: has no averaged weights .*--weights raw"):
        load_network(tmp_path / "a.pt", weights="ema", device=CPU)


def test_a_run_directory_means_its_best_checkpoint_else_its_last(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no checkpoint in this directory: neither .*best\.pt nor .*last\.pt"):
        load_network(tmp_path, device=CPU)
    write_checkpoint(checkpoint.last_path(tmp_path), recipe_of())
    assert load_network(tmp_path, device=CPU).path == checkpoint.last_path(tmp_path)
    write_checkpoint(checkpoint.best_path(tmp_path), recipe_of())
    assert load_network(tmp_path, device=CPU).path == checkpoint.best_path(tmp_path)


def test_what_does_not_fit_is_one_line_that_says_where(tmp_path: Path) -> None:
    file, recipe = tmp_path / "a.pt", recipe_of()
    other = opinionated(recipe, len(CLASSES), seed=1).state_dict()
    deeper = config.to_toml(recipe_of("model.name=cifar_resnet14"))
    cases: dict[str, Callable[[], object]] = {
        r"a\.pt: no such checkpoint": lambda: None,
        r"a\.pt: not a readable checkpoint": lambda: file.write_bytes(b"PK\3\4"),
        r"a\.pt: this checkpoint has no recipe, classes": lambda: checkpoint.save(file, {"net": {}}),
        r"a\.pt: cifar_resnet8 .* 2 tensors differ, .* is \(7, 64\) in the checkpoint and \(2, 64\) in": lambda: (
            write_checkpoint(file, recipe, classes=CLASSES[:2], net=other)
        ),
        r"a\.pt: cifar_resnet14 .* differ, e\.g\. layer1\.1\.conv1\.weight is missing": lambda: write_checkpoint(
            file, recipe, recipe=deeper
        ),
        r"a\.pt: .*unknown key model\.nome": lambda: write_checkpoint(file, recipe, recipe='[model]\nnome = "x"'),
    }
    for message, make in cases.items():
        make()
        with pytest.raises(ValueError, match=message) as caught:
            load_network(file, device=CPU)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("cross_entropy", [[0.6652, 0.2447, 0.0900]]),  # e², e, 1 over their sum
        ("bce", [[0.8808, 0.7311, 0.5]]),  # 1 / (1 + e^-x)
        ("mse", [[1.0, 1.0, 0.0]]),
    ],
)
def test_probabilities_are_those_of_the_loss(tmp_path: Path, loss: str, expected: list[list[float]]) -> None:
    write_checkpoint(tmp_path / "a.pt", recipe_of(f"loss.name={loss}"))
    probabilities = load_network(tmp_path / "a.pt", device=CPU).probabilities(torch.tensor([[2.0, 1.0, 0.0]]))
    torch.testing.assert_close(probabilities, torch.tensor(expected), atol=1e-4, rtol=0)


def test_every_loss_has_its_probabilities() -> None:
    from penstock.commands.trained_network import ACTIVATIONS
    from penstock.model.losses import LOSSES

    assert set(ACTIVATIONS) == set(LOSSES)
