"""Whether a network is compiled, and the arguments to torch.compile. Nothing is compiled here."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from penstock.model.config import ModelConfig
from penstock.recipes import Recipe, TrainConfig
from penstock.training.distributed import World
from penstock.training.learner import _compile_mode, build_learner
from tests.common.fake_cuda import WORLD, fake_cuda

CPU = World(0, 0, 1, 1, torch.device("cpu"))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `torch.compile` is called with."""
    calls: list[dict[str, Any]] = []

    def compile_it(net: nn.Module, **settings: Any) -> nn.Module:
        calls.append(settings)
        net._orig_mod = net.get_submodule("")  # type: ignore[assignment]  # as its wrapper has
        return net

    monkeypatch.setattr(torch, "compile", compile_it)
    return calls


def recipe(compile_it: Any, mode: Any = "default") -> Recipe:
    model = ModelConfig(name="cifar_resnet8", compile=compile_it, compile_mode=mode)
    return Recipe(model=model, train=TrainConfig(precision="fp32"))


def is_compiled(compile_it: Any, world: World, say: Callable[[str], None] = lambda line: None) -> bool:
    with fake_cuda() if world is WORLD else nullcontext():
        return build_learner(recipe(compile_it), 10, world, say).is_compiled


@pytest.mark.parametrize(
    ("compile_it", "world", "expected"),
    [
        (False, WORLD, False),
        (True, WORLD, True),
        ("auto", WORLD, True),
        (False, CPU, False),
        (True, CPU, True),
        ("auto", CPU, False),
    ],
)
def test_auto_is_for_gpus(asked: list[dict[str, Any]], compile_it: Any, world: World, expected: bool) -> None:
    assert is_compiled(compile_it, world) is expected
    assert len(asked) == expected


def test_each_size_is_compiled_for_itself(asked: list[dict[str, Any]]) -> None:
    """A phase's new image size would otherwise make the shapes symbolic, and the kernels slower."""
    build_learner(recipe(True, "max-autotune-no-cudagraphs"), 10, CPU)
    assert asked == [{"mode": "max-autotune-no-cudagraphs", "dynamic": False}]


@pytest.mark.parametrize(
    ("world", "accumulation", "mode"),
    [(WORLD, 1, "reduce-overhead"), (WORLD, 2, "default"), (CPU, 1, "default")],
)
def test_a_step_on_one_gpu_is_a_cuda_graph(
    asked: list[dict[str, Any]], world: World, accumulation: int, mode: str
) -> None:
    train = TrainConfig(precision="fp32", accumulation=accumulation)
    with fake_cuda() if world is WORLD else nullcontext():
        build_learner(replace(recipe(True, "auto"), train=train), 10, world)
    assert [call["mode"] for call in asked] == [mode]


def test_several_ranks_have_none_by_themselves() -> None:
    """DDP's buckets in a graph were not tried."""
    two = replace(WORLD, world_size=2)
    assert _compile_mode(recipe(True, "auto"), two) == "default"
    assert _compile_mode(recipe(True, "reduce-overhead"), two) == "reduce-overhead"


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune"])
def test_cuda_graphs_do_not_add_gradients_up(mode: str) -> None:
    several = replace(recipe(True, mode), train=TrainConfig(precision="fp32", accumulation=2))
    with fake_cuda(), pytest.raises(ValueError, match=f"compile_mode: {mode} records CUDA graphs"):
        build_learner(several, 10, WORLD)
    assert build_learner(several, 10, CPU).is_compiled, "there are none on a CPU"


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize(("world", "names"), [(WORLD, "gcc, clang, cc"), (CPU, "g++, clang++, c++")])
def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, world: World, names: str) -> None:
    monkeypatch.setenv("PATH", "")
    for variable in ("CC", "CXX"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(ValueError, match=r"model\.compile: torch\.compile needs one of") as error:
        is_compiled(True, world)
    assert names in str(error.value)
    said: list[str] = []
    assert not is_compiled("auto", world, said.append)
    assert len(said) == (world is WORLD)
    assert all(line.startswith("the network is not compiled: torch.compile needs one of gcc") for line in said)
