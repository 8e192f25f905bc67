"""Parameter groups and optimizers, compared with torch.optim and with updates written from the papers."""

import io
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from timm.optim import Muon, param_groups_weight_decay
from torch import Tensor, nn

from penstock.model.config import ModelConfig, OptimizerConfig
from penstock.model.networks import build_model
from penstock.model.optim import OPTIMIZERS, build_optimizer, param_groups, set_lr


@pytest.mark.parametrize("name", ["resnet18", "convnext_tiny", "cifar_resnet8"])
def test_each_parameter_is_in_one_group_by_its_dimension(name: str) -> None:
    with torch.device("meta"):
        model = build_model(ModelConfig(name=name), 10)
    decayed, plain = param_groups(model, 0.3)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.3, 0.0)
    ids = [id(p) for p in decayed["params"] + plain["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())
    # The oracle goes by module type: what a norm layer holds, and every bias.
    is_norm = (nn.BatchNorm2d, nn.LayerNorm)
    expected = {id(p) for m in model.modules() if isinstance(m, is_norm) for p in m.parameters(recurse=False)}
    expected |= {id(p) for parameter, p in model.named_parameters() if parameter.endswith("bias")}
    assert expected == {id(p) for p in plain["params"]}


TRANSFORMERS = [
    "timm/vit_small_patch16_224", "timm/deit_tiny_distilled_patch16_224", "timm/beit_base_patch16_224",
    "timm/swinv2_tiny_window8_256", "timm/levit_128s", "timm/maxvit_tiny_tf_224", "timm/test_resnet",
]  # fmt: skip


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_what_a_network_of_timms_exempts_does_not_decay(name: str) -> None:
    """The oracle is timm's grouping, given the network's own list."""
    with torch.device("meta"):
        model = build_model(ModelConfig(name=name), 10)
    listed = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    theirs = param_groups_weight_decay(model, 0.3, no_weight_decay_list=listed)
    ours = param_groups(model, 0.3)
    for decay in (0.0, 0.3):
        ids = [{id(p) for group in groups if group["weight_decay"] == decay for p in group["params"]}
               for groups in (ours, theirs)]  # fmt: skip
        assert ids[0] == ids[1]
    assert sum(len(group["params"]) for group in ours) == len(list(model.parameters()))
    with_embeddings = [p.ndim for group in ours if group["weight_decay"] == 0 for p in group["params"] if p.ndim >= 2]
    assert bool(with_embeddings) == (name != "timm/test_resnet")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vit_b_32", ["class_token", "encoder.pos_embedding"]),
        ("swin_t", [f"features.{i}.{j}.attn.relative_position_bias_table" for i, n in ((1, 2), (3, 2), (5, 6), (7, 2))
                    for j in range(n)]),
    ],
)  # fmt: skip
def test_torchvisions_tokens_and_positions_do_not_decay(name: str, expected: list[str]) -> None:
    """Those that torchvision's references name for --transformer-embedding-decay, and ViT's own positions."""
    with torch.device("meta"):
        model = build_model(ModelConfig(name=name), 10)
    names = {id(p): parameter for parameter, p in model.named_parameters()}
    exempt = [names[id(p)] for group in param_groups(model, 0.3) if not group["weight_decay"]
              for p in group["params"] if p.ndim >= 2]  # fmt: skip
    assert exempt == expected


def test_what_is_exempt_has_the_learning_rate_of_weights() -> None:
    model = build_model(ModelConfig(name="timm/test_vit"), 10)
    names = {id(p): name for name, p in model.named_parameters()}
    for name in ("adamw", "lamb"):
        optimizer = build_optimizer(model, _config(name, lr=0.5, bias_lr_scale=8))
        lrs = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
        assert (lrs["cls_token"], lrs["pos_embed"], lrs["head.weight"], lrs["norm.bias"]) == (0.5, 0.5, 0.5, 4.0)


# Muon


class _Small(nn.Module):
    """A kernel, a depthwise one, a matrix, a norm, an embedding that it exempts, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.depthwise = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm, self.inner = nn.BatchNorm2d(8), nn.Linear(8, 6)
        self.embedding, self.head = nn.Parameter(torch.randn(5, 6)), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.depthwise(self.conv(x).relu())).mean((2, 3))
        return self.head(self.inner(x).relu() + self.embedding.mean(0))

    def no_weight_decay(self) -> set[str]:
        return {"embedding"}


MUONS: list[tuple[dict, dict]] = [
    ({}, {"momentum": 0.9, "nesterov": True}),
    ({"nesterov": False, "momentum": 0.6}, {"momentum": 0.6, "nesterov": False}),
    ({"ns_steps": 3, "ns_coefficients": "original", "adjust_lr": "original"},
     {"ns_steps": 3, "ns_coefficients": "original", "adjust_lr_fn": "original", "momentum": 0.9, "nesterov": True}),
    ({"adjust_lr": "rms_to_rms", "ns_coefficients": "polar_express", "betas": (0.8, 0.9), "eps": 1e-3},
     {"adjust_lr_fn": "rms_to_rms", "ns_coefficients": "polar_express", "betas": (0.8, 0.9), "eps": 1e-3,
      "momentum": 0.9, "nesterov": True}),
]  # fmt: skip


@pytest.mark.parametrize(("options", "theirs"), MUONS, ids=str)
def test_muon_is_timms_on_what_the_settings_say(options: dict, theirs: dict) -> None:
    """Step by step, with a schedule: timm's class over groups made by hand."""
    torch.manual_seed(0)
    model, oracle = _Small(), _Small()
    oracle.load_state_dict(model.state_dict())
    config = _config("muon", weight_decay=0.1, bias_lr_scale=3, fallback_lr_scale=0.2, lr=0.05, **options)
    optimizer = build_optimizer(model, config)
    o = oracle
    groups = [
        {"params": [o.conv.weight, o.inner.weight], "weight_decay": 0.1, "use_fallback": False, "scale": 1.0},
        {"params": [o.depthwise.weight, o.head.weight], "weight_decay": 0.1, "use_fallback": True, "scale": 0.2},
        {"params": [o.embedding], "weight_decay": 0.0, "use_fallback": True, "scale": 0.2},
        {"params": [o.conv.bias, o.depthwise.bias, o.norm.weight, o.norm.bias, o.inner.bias, o.head.bias],
         "weight_decay": 0.0, "use_fallback": True, "scale": 0.6},
    ]  # fmt: skip
    by_hand = Muon(groups, lr=0.05, **theirs)
    for step in range(5):
        lr = 0.05 * (1 - step / 5)
        set_lr(optimizer, lr)
        for group in by_hand.param_groups:
            group["lr"] = lr * group["scale"]
        x = torch.randn(8, 3, 5, 5, generator=torch.Generator().manual_seed(step))
        for net, stepper in ((model, optimizer), (oracle, by_hand)):
            stepper.zero_grad()
            net(x).square().mean().backward()
            stepper.step()
        for (name, ours), wanted in zip(model.named_parameters(), oracle.parameters(), strict=True):
            torch.testing.assert_close(ours, wanted, rtol=1e-6, atol=1e-7, msg=name)
    assert all(optimizer.state[p]["use_muon"] == by_hand.state[q]["use_muon"]
               for p, q in zip(model.parameters(), oracle.parameters(), strict=True))  # fmt: skip


@pytest.mark.parametrize(
    ("name", "with_adamw"),
    [
        ("airbench94", ["fc.weight"]),
        ("resnet18", ["fc.weight"]),
        ("timm/test_resnet", ["fc.weight"]),
        ("timm/test_vit", ["cls_token", "pos_embed", "head.weight"]),
        ("mobilenet_v2", [r"features\.\d+\.conv\.(0|1)\.0\.weight", "classifier.1.weight"]),
    ],
)
def test_muon_trains_the_weights_inside(name: str, with_adamw: list[str]) -> None:
    with torch.device("meta"):
        model = build_model(ModelConfig(name=name), 10)
    names = {id(p): parameter for parameter, p in model.named_parameters()}
    rest = [names[id(p)] for group in build_optimizer(model, _config("muon")).param_groups if group["use_fallback"]
            for p in group["params"] if p.ndim >= 2]  # fmt: skip
    assert rest
    assert all(any(re.fullmatch(pattern, one) for pattern in with_adamw) for one in rest)
    depthwise = [one for one, p in model.named_parameters() if p.ndim == 4 and p.requires_grad and p.shape[1] == 1]
    assert set(depthwise) <= set(rest)


def test_frozen_and_shared_parameters() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    model[0].bias.requires_grad_(False)
    decayed, plain = param_groups(model, 0.1)
    assert [id(p) for p in decayed["params"]] == [id(model[0].weight)]
    assert [id(p) for p in plain["params"]] == [id(model[1].bias)]


def _mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 2))


def _train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range = range(5)) -> list[Tensor]:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(8, 4, generator=generator)).square().mean().backward()
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def _config(name: str, **options: Any) -> OptimizerConfig:
    return OptimizerConfig(name=name, **options)  # type: ignore[arg-type]


# our settings, torch's class and its arguments
TORCHS = [
    ({"name": "sgd", "momentum": 0.8}, torch.optim.SGD, {"momentum": 0.8, "nesterov": True}),
    ({"name": "sgd", "nesterov": False}, torch.optim.SGD, {"momentum": 0.9}),
    ({"name": "sgd", "momentum": 0.0, "nesterov": False}, torch.optim.SGD, {}),
    ({"name": "adagrad"}, torch.optim.Adagrad, {}),
    ({"name": "adagrad", "eps": 0.1}, torch.optim.Adagrad, {"eps": 0.1}),
    ({"name": "rmsprop"}, torch.optim.RMSprop, {"momentum": 0.9}),
    (
        {"name": "rmsprop", "momentum": 0.0, "alpha": 0.9, "eps": 0.01},
        torch.optim.RMSprop,
        {"alpha": 0.9, "eps": 0.01},
    ),
    ({"name": "adam"}, torch.optim.Adam, {}),
    ({"name": "adam", "betas": (0.8, 0.9), "eps": 0.01}, torch.optim.Adam, {"betas": (0.8, 0.9), "eps": 0.01}),
    ({"name": "adamw"}, torch.optim.AdamW, {}),
    ({"name": "adamw", "betas": (0.8, 0.9), "eps": 0.01}, torch.optim.AdamW, {"betas": (0.8, 0.9), "eps": 0.01}),
]


def _groups(model: nn.Module) -> list[dict[str, Any]]:
    first, norm, _, last = model
    return [
        {"params": [first.weight, last.weight], "weight_decay": 0.05},
        {"params": [first.bias, norm.weight, norm.bias, last.bias], "weight_decay": 0.0},
    ]


@pytest.mark.parametrize(("options", "theirs", "arguments"), TORCHS, ids=[str(case[0]) for case in TORCHS])
def test_what_torch_has_is_torchs(options: dict, theirs: Any, arguments: dict) -> None:
    model, oracle = _mlp(), _mlp()
    actual = _train(model, build_optimizer(model, _config(lr=0.02, weight_decay=0.05, **options)))
    torch.testing.assert_close(actual, _train(oracle, theirs(_groups(oracle), lr=0.02, foreach=False, **arguments)))


# Papers' updates of one tensor: weight (updated in place), gradient, number of the step from 1, state, lr, settings.


def _lars(weight: Tensor, grad: Tensor, step: int, state: dict, lr: float, config: OptimizerConfig) -> None:
    """You, Gitman & Ginsburg 2017, algorithm 1: momentum of lr · local lr · (gradient + decay)."""
    excluded = weight.ndim <= 1  # as MLPerf's reference: no decay, no local lr
    decay = 0.0 if excluded else config.weight_decay
    local = 1.0 if excluded else config.trust_coefficient * weight.norm() / (grad.norm() + decay * weight.norm())
    state["v"] = config.momentum * state.get("v", 0.0) + lr * local * (grad + decay * weight)
    weight -= state["v"]


def _lamb(weight: Tensor, grad: Tensor, step: int, state: dict, lr: float, config: OptimizerConfig) -> None:
    """You et al. 2019, algorithm 2, with φ the identity."""
    beta1, beta2 = config.betas or (0.9, 0.999)
    state["m"] = beta1 * state.get("m", 0.0) + (1 - beta1) * grad
    state["v"] = beta2 * state.get("v", 0.0) + (1 - beta2) * grad**2
    m, v = state["m"] / (1 - beta1**step), state["v"] / (1 - beta2**step)
    ratio = m / (v.sqrt() + (1e-6 if config.eps is None else config.eps))
    if weight.ndim <= 1:  # as NVIDIA's: no decay, no trust ratio
        weight -= lr * ratio
    else:
        update = ratio + config.weight_decay * weight
        weight -= lr * weight.norm() / update.norm() * update


def _lion(weight: Tensor, grad: Tensor, step: int, state: dict, lr: float, config: OptimizerConfig) -> None:
    """Chen et al. 2023, algorithm 2."""
    beta1, beta2 = config.betas or (0.9, 0.99)
    m = state.get("m", torch.zeros_like(weight))
    decay = 0.0 if weight.ndim <= 1 else config.weight_decay
    weight -= lr * (torch.sign(beta1 * m + (1 - beta1) * grad) + decay * weight)
    state["m"] = beta2 * m + (1 - beta2) * grad


def _adan(weight: Tensor, grad: Tensor, step: int, state: dict, lr: float, config: OptimizerConfig) -> None:
    """Xie et al. 2022, algorithm 1, with 1 − β written β and the bias corrections of the authors' code."""
    beta1, beta2, beta3 = config.betas or (0.98, 0.92, 0.99)
    difference = grad - state.get("grad", grad)
    state["grad"] = grad.clone()
    state["m"] = beta1 * state.get("m", 0.0) + (1 - beta1) * grad
    state["v"] = beta2 * state.get("v", 0.0) + (1 - beta2) * difference
    state["n"] = beta3 * state.get("n", 0.0) + (1 - beta3) * (grad + beta2 * difference) ** 2
    m, v, n = (state[x] / (1 - beta**step) for x, beta in zip("mvn", (beta1, beta2, beta3), strict=True))
    step_size = lr / (n.sqrt() + (1e-8 if config.eps is None else config.eps))
    weight -= step_size * (m + beta2 * v)
    weight /= 1 + lr * (0.0 if weight.ndim <= 1 else config.weight_decay)


PAPERS = [
    (_lars, {"name": "lars", "trust_coefficient": 0.02, "lr": 1.0, "weight_decay": 0.05}),
    (_lars, {"name": "lars", "lr": 10.0, "momentum": 0.5, "weight_decay": 0.0}),
    (_lamb, {"name": "lamb", "lr": 0.02, "weight_decay": 0.05}),
    (_lamb, {"name": "lamb", "lr": 0.02, "weight_decay": 0.0}),
    (_lamb, {"name": "lamb", "lr": 0.02, "betas": (0.8, 0.9), "eps": 0.1}),
    (_lion, {"name": "lion", "lr": 0.01, "weight_decay": 0.5}),
    (_lion, {"name": "lion", "lr": 0.01, "betas": (0.5, 0.6)}),
    (_adan, {"name": "adan", "lr": 0.02, "weight_decay": 0.5}),
    (_adan, {"name": "adan", "lr": 0.02, "betas": (0.8, 0.9, 0.7), "eps": 0.1}),
]


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize(("paper", "options"), PAPERS, ids=[str(case[1]) for case in PAPERS])
def test_what_timm_has_is_the_papers(paper: Any, options: dict, foreach: bool) -> None:
    """For eight steps, at loss scales far from 1: a clipping that nobody asked for would show."""
    config = OptimizerConfig(**options)
    model, oracle = _mlp().double(), _mlp().double()
    optimizer = build_optimizer(model, config)
    for group in optimizer.param_groups:
        assert group["foreach"] is None  # torch's way to say: on a GPU
        group["foreach"] = foreach
    states: list[dict] = [{} for _ in oracle.parameters()]
    for step in range(1, 9):
        x = torch.randn(8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        for net in (model, oracle):
            net.zero_grad()
            (30 * net(x).square().mean()).backward()
        optimizer.step()
        with torch.no_grad():
            for weight, state in zip(oracle.parameters(), states, strict=True):
                assert weight.grad is not None
                paper(weight, weight.grad, step, state, config.lr, config)
        torch.testing.assert_close(list(model.parameters()), list(oracle.parameters()), rtol=1e-6, atol=1e-9)


def test_lars_holds_gradients_before_the_lr_as_torchs_sgd() -> None:
    """weight ← weight − lr · (momentum of local lr · gradient). This differs from the paper if the lr changes."""
    config = _config("lars", lr=1.0, weight_decay=0.0, trust_coefficient=0.1)
    weight = nn.Parameter(torch.tensor([[3.0, 4.0]]))
    holder = nn.Module()
    holder.weight = weight
    optimizer = build_optimizer(holder, config)
    weight.grad = torch.tensor([[0.0, 2.0]])
    optimizer.step()  # local lr 0.1 · 5 / 2, momentum [0, 0.5]
    torch.testing.assert_close(weight.data, torch.tensor([[3.0, 3.5]]))
    optimizer.param_groups[0]["lr"] = 0.1
    weight.grad.zero_()  # a zero gradient has a local lr of 1; momentum [0, 0.45]
    optimizer.step()
    torch.testing.assert_close(weight.data, torch.tensor([[3.0, 3.5 - 0.045]]))


CHANGES: dict[str, Any] = {
    "lr": 0.3,
    "weight_decay": 0.1,
    "momentum": 0.5,
    "nesterov": False,
    "betas": (0.5, 0.6),
    "eps": 0.5,
    "alpha": 0.5,
    "trust_coefficient": 0.1,
    "ns_steps": 2,
    "ns_coefficients": "original",
    "adjust_lr": "original",
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("option", CHANGES)
def test_an_option_changes_the_result_or_is_an_error(name: str, option: str) -> None:
    config = _config(name)
    change = {option: (0.5, 0.6, 0.7) if (name, option) == ("adan", "betas") else CHANGES[option]}
    # The oracle of what has an effect: the arguments of torch's or timm's class. LARS has no Nesterov in its paper.
    word = {"trust_coefficient": "trust_coeff", "adjust_lr": "adjust_lr_fn"}.get(option, option)
    if word not in build_optimizer(_mlp(), config).param_groups[0] or (name, option) == ("lars", "nesterov"):
        with pytest.raises(ValueError, match=f'{option}: has no effect with name = "{name}"; remove it'):
            replace(config, **change)
        return
    a, b = _mlp(), _mlp()
    changed = _train(b, build_optimizer(b, replace(config, **change)))
    assert not torch.equal(_train(a, build_optimizer(a, config))[0], changed[0])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_goes_on_from_its_state(name: str) -> None:
    """Through a file that is read with weights_only, as checkpoints are."""
    config = _config(name, lr=0.01)
    whole, first, second = _mlp(), _mlp(), _mlp()
    expected = _train(whole, build_optimizer(whole, config), range(6))
    optimizer = build_optimizer(first, config)
    _train(first, optimizer, range(3))
    file = io.BytesIO()
    torch.save([first.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    net, state = torch.load(file, weights_only=True)
    second.load_state_dict(net)
    resumed = build_optimizer(second, config)
    resumed.load_state_dict(state)
    for actual, wanted in zip(_train(second, resumed, range(3, 6)), expected, strict=True):
        assert torch.equal(actual, wanted)


@pytest.mark.parametrize("name", ["sgd", "adagrad", "adam", "adamw"])
@pytest.mark.parametrize("fused", [None, True, False])
def test_fused_is_as_asked_and_on_where_torch_has_it(name: str, fused: bool | None) -> None:
    config = _config(name, fused=fused, lr=0.02)
    model, oracle = _mlp(), _mlp()
    optimizer = build_optimizer(model, config)
    assert optimizer.defaults["fused"] == (fused is not False)
    with torch.device("meta"):
        elsewhere = _mlp()
    assert not build_optimizer(elsewhere, _config(name)).defaults["fused"]
    plain = build_optimizer(oracle, replace(config, fused=False))
    torch.testing.assert_close(_train(model, optimizer), _train(oracle, plain))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, "lr: 0.0 must be above 0"),
        ({"lr": float("nan")}, "lr: nan must be above 0"),
        ({"momentum": 1.0}, "momentum"),
        ({"momentum": 0.0}, "nesterov: needs"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"name": "adam", "eps": -1.0}, "eps"),
        ({"name": "adam", "betas": (0.9,)}, "betas: .* must be 2 numbers"),
        ({"name": "adam", "betas": (0.9, 1.0)}, "betas"),
        ({"name": "adan", "betas": (0.9, 0.99)}, "betas: .* must be 3 numbers"),
        ({"name": "rmsprop", "alpha": 1.0}, "alpha"),
        ({"name": "lars", "trust_coefficient": 0.0}, "trust_coefficient"),
        ({"name": "lion", "eps": 0.1}, "eps: has no effect"),
        ({"name": "lamb", "fused": True}, "fused: has no effect"),
    ],
)
def test_bad_settings_are_errors(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**options)


def test_an_unknown_optimizer_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown optimizer 'sgdd'; known are sgd, adagrad"):
        _config("sgdd")


def test_norms_and_biases_get_a_multiple_of_the_learning_rate() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    options = OptimizerConfig(lr=9.0, bias_lr_scale=64, momentum=0, nesterov=False, weight_decay=0)
    optimizer = build_optimizer(net, options)
    assert [group["lr"] for group in optimizer.param_groups] == [9.0, 576.0]
    set_lr(optimizer, 0.25)
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moved = {name: (before[name] - parameter).flatten()[0].item() for name, parameter in net.named_parameters()}
    assert moved == pytest.approx({"0.weight": 0.25, "0.bias": 16, "1.weight": 16, "1.bias": 16}, rel=1e-5)


def test_nothing_to_train_is_an_error() -> None:
    model = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameters"):
        build_optimizer(model, OptimizerConfig())
