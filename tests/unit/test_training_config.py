"""Config: each way to give a value, each error, and the conversion back to TOML."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from penstock.recipes.config import diff, load_config, to_toml


@dataclass(frozen=True, kw_only=True)
class Inner:
    gain: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.1
    steps: int = 5
    nesterov: bool = True
    fused: bool | None = None
    clip: float | None = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    sizes: tuple[int, ...] = ()
    note: str = ""
    cache: Path | None = None
    inner: Inner = field(default_factory=lambda: Inner(gain=3.0))

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"lr must be above 0, not {self.lr}")


@dataclass(frozen=True, kw_only=True)
class Model:
    name: str = "resnet50"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    seed: int = 0
    model: Model = field(default_factory=Model)
    optimizer: Optimizer = field(default_factory=Optimizer)


def _load(tmp_path: Path, text: str, *overrides: str) -> Recipe:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(text, encoding="utf-8")
    return load_config(Recipe, recipe, overrides)


def test_defaults_then_file_then_overrides(tmp_path: Path) -> None:
    config = _load(tmp_path, "seed = 7\n[optimizer]\nlr = 0.5\nsteps = 9", "optimizer.lr=0.25")
    assert config == Recipe(seed=7, optimizer=Optimizer(lr=0.25, steps=9))
    assert load_config(Recipe, None) == Recipe()


def test_later_override_wins_and_a_nested_default_stays() -> None:
    config = load_config(Recipe, None, ["optimizer.inner.gain=2", "optimizer.inner.gain = 4", "optimizer.steps=1"])
    assert config.optimizer.inner == Inner(gain=4.0)
    assert load_config(Recipe, None, ["optimizer.steps=1"]).optimizer.inner == Inner(gain=3.0)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("optimizer.lr=1", 1.0),
        ("optimizer.lr=1e-3", 1e-3),
        ("optimizer.lr=inf", math.inf),
        ("optimizer.steps=1_000", 1000),
        ("optimizer.nesterov=false", False),
        ("optimizer.fused=true", True),
        ("optimizer.clip=none", None),
        ("optimizer.clip=2", 2.0),
        ("optimizer.betas=[0, 0.5]", (0.0, 0.5)),
        ("optimizer.sizes=[160, 192]", (160, 192)),
        ("optimizer.sizes=[]", ()),
        ("optimizer.name=adamw", "adamw"),
        ("optimizer.note=a=b # c", "a=b # c"),
        ('optimizer.note="quoted"', "quoted"),
        ("optimizer.note=12", "12"),
        ("optimizer.note=none", "none"),
        ("optimizer.note=", ""),
        ("optimizer.cache=/tmp/a b", Path("/tmp/a b")),
    ],
)
def test_override_values(override: str, value: object) -> None:
    key = override.partition("=")[0].removeprefix("optimizer.")
    actual = getattr(load_config(Recipe, None, [override]).optimizer, key)
    assert actual == value
    assert type(actual) is type(value)
    if isinstance(value, tuple):
        assert [type(item) for item in actual] == [type(item) for item in value]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lr=true", r"--set optimizer.lr=true: optimizer.lr = True: expected a number"),
        ("optimizer.lr=fast", r"optimizer.lr = 'fast': expected a number"),
        ("optimizer.steps=1.5", r"optimizer.steps = 1.5: expected an integer"),
        ("optimizer.steps=true", r"optimizer.steps = True: expected an integer"),
        ("optimizer.nesterov=1", r"optimizer.nesterov = 1: expected true or false"),
        ("optimizer.fused=maybe", r"expected true or false or \"none\""),
        ("optimizer.nesterov=True", r"optimizer.nesterov = 'True': expected true or false$"),
        ("optimizer.steps=none", r"expected an integer"),
        ("optimizer.name=adam", r"expected one of 'sgd', 'adamw'"),
        ("optimizer.betas=[0.9]", r"expected an array of 2: a number, a number"),
        ("optimizer.sizes=[1, 2.5]", r"expected an array of integers"),
        ("optimizer.lrr=1", r"--set optimizer.lrr=1: unknown key optimizer.lrr: did you mean optimizer.lr\?"),
        ("optimiser.lr=1", r"did you mean optimizer.lr\?"),
        ("optimiser.lrr=1", r"did you mean optimizer.lr\?"),
        ("lr=1", r"did you mean optimizer.lr\?"),
        ("name=1", r"did you mean model.name or optimizer.name\?"),
        ("model.zzz=1", r"valid keys are model.name$"),
        ("zzz=1", r"valid sections are seed, model, optimizer$"),
        ("optimizer=1", r"optimizer is a section: expected optimizer.key=value"),
        ("optimizer.lr", r"--set optimizer.lr: expected section.key=value"),
        ("optimizer.lr=-1", r"optimizer.lr must be above 0, not -1.0"),
    ],
)
def test_bad_overrides(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(Recipe, None, [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[optimizer]\nlr = 'fast'", r"recipe.toml: optimizer.lr = 'fast': expected a number"),
        ("[optimizer]\nlr = '1'", r"expected a number"),
        ("[optimizer]\nlearning_rate = 1", r"recipe.toml: unknown key optimizer.learning_rate"),
        ("[optimizr]\nlr = 1", r"recipe.toml: unknown key optimizr: "),
        ("[optimizer.inner]\ngian = 1", r"did you mean optimizer.inner.gain\?"),
        ("optimizer = 3", r"recipe.toml: optimizer = 3: expected a section"),
        ("[seed]\nx = 1", r"seed = \{'x': 1\}: expected an integer"),
        ("lr = = 1", r"recipe.toml: not a TOML file: .*line 1"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _load(tmp_path, text)


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    assert _load(tmp_path, "\ufeff[optimizer]\r\nlr = 0.3\r\n").optimizer.lr == 0.3


def test_missing_file_and_missing_value(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none.toml: cannot read the recipe: No such file"):
        load_config(Recipe, tmp_path / "none.toml")

    @dataclass(frozen=True, kw_only=True)
    class Data:
        root: str

    with pytest.raises(ValueError, match="root has no default"):
        load_config(Data, None)
    assert load_config(Data, None, ["root=x"]) == Data(root="x")


def test_a_literal_is_compared_with_its_type() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Data:
        level: Literal[0, 1] = 0

    assert load_config(Data, None, ["level=1"]) == Data(level=1)
    with pytest.raises(ValueError, match="expected one of 0, 1"):
        load_config(Data, None, ["level=true"])


def test_toml_round_trip(tmp_path: Path) -> None:
    optimizer = Optimizer(
        name="adamw",
        lr=1e-5,
        nesterov=False,
        clip=None,
        betas=(1.0, 1e22),
        sizes=(1, 2),
        note='"\\ \n\t\x07\x7f é 😀 #',
        cache=Path("a b"),
        inner=Inner(gain=math.inf),
    )
    config = Recipe(seed=-3, model=Model(name="x"), optimizer=optimizer)
    assert _load(tmp_path, to_toml(config)) == config
    assert _load(tmp_path, to_toml(Recipe())) == Recipe()
    assert "fused" not in to_toml(config)


def test_diff() -> None:
    a = Recipe()
    b = load_config(Recipe, None, ["optimizer.lr=0.2", "optimizer.inner.gain=1", "optimizer.fused=true"])
    assert diff(a, b) == [
        "optimizer.lr: 0.1 → 0.2",
        "optimizer.fused: None → True",
        "optimizer.inner.gain: 3.0 → 1.0",
    ]
    assert diff(b, b) == []
