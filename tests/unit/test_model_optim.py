"""Parameter groups and optimizers, against torch.optim."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from model.networks import build_model
from model.optim import OPTIMIZERS, OptimizerConfig, build_optimizer, param_groups


@pytest.mark.parametrize("name", ["resnet18", "convnext_tiny", "vit_b_32", "cifar_resnet8"])
def test_each_parameter_is_in_one_group_by_its_dimension(name: str) -> None:
    with torch.device("meta"):
        model = build_model(name, 10)
    decayed, plain = param_groups(model, 0.3)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.3, 0.0)
    ids = [id(p) for p in decayed["params"] + plain["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())
    # The oracle goes by module type: what a norm layer holds, and every bias.
    is_norm = (nn.BatchNorm2d, nn.LayerNorm)
    expected = {id(p) for m in model.modules() if isinstance(m, is_norm) for p in m.parameters(recurse=False)}
    expected |= {id(p) for parameter, p in model.named_parameters() if parameter.endswith("bias")}
    assert expected == {id(p) for p in plain["params"]}


def test_frozen_and_shared_parameters() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    model[0].bias.requires_grad_(False)
    decayed, plain = param_groups(model, 0.1)
    assert [id(p) for p in decayed["params"]] == [id(model[0].weight)]
    assert [id(p) for p in plain["params"]] == [id(model[1].bias)]


def _train(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(8, 4, generator=generator)).square().mean().backward()
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def _mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 2))


@pytest.mark.parametrize("fused", [None, True, False])
@pytest.mark.parametrize("nesterov", [True, False])
def test_sgd_is_torchs(fused: bool | None, nesterov: bool) -> None:
    model, oracle = _mlp(), _mlp()
    config = OptimizerConfig(lr=0.2, momentum=0.8, nesterov=nesterov, weight_decay=0.01, fused=fused)
    actual = _train(model, build_optimizer(model, config))
    groups = [
        {"params": [oracle[0].weight, oracle[3].weight], "weight_decay": 0.01},
        {"params": [oracle[0].bias, oracle[1].weight, oracle[1].bias, oracle[3].bias]},
    ]
    expected = _train(oracle, torch.optim.SGD(groups, lr=0.2, momentum=0.8, nesterov=nesterov, foreach=False))
    torch.testing.assert_close(actual, expected)


CHANGES = {"lr": 0.3, "momentum": 0.5, "nesterov": False, "weight_decay": 0.1}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("option", CHANGES)
def test_every_option_changes_the_result(name: str, option: str) -> None:
    config = OptimizerConfig(name=name)  # type: ignore[arg-type]
    changed = replace(config, **{option: CHANGES[option]})
    a, b = _mlp(), _mlp()
    assert not torch.equal(_train(a, build_optimizer(a, config))[0], _train(b, build_optimizer(b, changed))[0])


@pytest.mark.parametrize("fused", [None, True, False])
def test_fused_is_as_asked_and_on_where_torch_has_it(fused: bool | None) -> None:
    assert build_optimizer(_mlp(), OptimizerConfig(fused=fused)).defaults["fused"] == (fused is not False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, "lr must be above 0"),
        ({"lr": float("nan")}, "lr must be above 0"),
        ({"momentum": 1.0}, "momentum"),
        ({"momentum": 0.0}, "nesterov needs"),
        ({"weight_decay": -1.0}, "weight_decay"),
    ],
)
def test_bad_settings_are_errors(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**options)


def test_nothing_to_train_is_an_error() -> None:
    model = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameters"):
        build_optimizer(model, OptimizerConfig())
