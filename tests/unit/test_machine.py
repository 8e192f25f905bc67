"""`machine.toml`: the settings read from it, their order, the machine they apply to, and what it must not set."""

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from penstock import train
from penstock.pipeline.config import ONLY_SPEED
from penstock.recipes import Recipe, config, machine
from penstock.training.learner import FREE_ON_RESUME
from tests.common.machine_file import HERE, recipe_in, written


@pytest.fixture
def recipe_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return recipe_in(tmp_path, monkeypatch)


def test_it_lies_between_the_recipe_and_the_command_line(recipe_file: Path) -> None:
    written("threads = 7\nprefetch = 5\naffinity = true\nhw_decoder_load = 0.5\n")
    recipe, line = machine.load_recipe(recipe_file, ("data.prefetch=4", "data.image_size=48"))
    plain = config.load_config(Recipe, recipe_file)
    expected = {
        "threads": 7,
        "prefetch": 4,
        "read_ahead": 3,
        "image_size": 48,
        "affinity": True,
        "hw_decoder_load": 0.5,
    }
    assert recipe == replace(plain, data=replace(plain.data, **expected))
    assert line == "machine.toml: data.threads=7, data.affinity=true, data.hw_decoder_load=0.5"


def test_without_it_or_without_its_use_the_recipe_stands(recipe_file: Path) -> None:
    plain = config.load_config(Recipe, recipe_file)
    assert machine.load_recipe(recipe_file, ()) == (plain, "")
    written("threads = 7\n")
    recipe, line = machine.load_recipe(recipe_file, (), use=False)
    assert recipe == plain
    assert line == "machine.toml: not used (--no-machine-config)"


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"cpu": "Other CPU"}, "cpu Other CPU there, Some CPU here"),
        ({"cores": 64}, "cores 64.0 there, 4 here"),
        ({"gpu": "A GPU"}, "gpu A GPU there, none here"),
        ({"ranks": 8}, "ranks 8 there, 1 here"),
    ],
)
def test_another_machines_is_not_used(change: dict, difference: str, recipe_file: Path) -> None:
    written("threads = 7\n", replace(HERE, **change))
    recipe, line = machine.load_recipe(recipe_file, ())
    assert recipe.data.threads == 1
    assert line == f"machine.toml: not used, it is from another machine ({difference})"


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ("image_size = 64\n", "data.image_size may change the result"),
        ("thread = 1\n", "unknown key data.thread: did you mean data.threads"),
        ("threads = 'x'\n", "data.threads = 'x': expected an integer"),
        ("threads = -1\n", "threads: -1 must be 0 or more"),
        ("[model]\nname = 'x'\n", "unknown key model"),
        ("threads = \n", "not a TOML file"),
    ],
)
def test_what_it_must_not_say_is_an_error(data: str, named: str, recipe_file: Path) -> None:
    written(data)
    with pytest.raises(ValueError, match=r"machine\.toml") as raised:
        machine.load_recipe(recipe_file, ())
    assert named in str(raised.value)
    assert "\n" not in str(raised.value)


def test_it_can_hold_only_what_leaves_the_result_alone() -> None:
    assert {f"data.{key}" for key in ONLY_SPEED} <= FREE_ON_RESUME


def test_train_takes_it(recipe_file: Path) -> None:
    written("threads = 7\nread_ahead = 9\n")
    arguments = ["--recipe", str(recipe_file), "--set", "data.read_ahead=8", "--show-config"]
    shown = CliRunner().invoke(train.main, arguments)
    assert shown.exit_code == 0, shown.output
    assert "\nthreads = 7\n" in shown.output
    assert "\nread_ahead = 8\n" in shown.output
    without = CliRunner().invoke(train.main, [*arguments, "--no-machine-config"])
    assert "\nthreads = 1\n" in without.output
    written("order = 'block'\n")
    wrong = CliRunner().invoke(train.main, arguments)
    assert wrong.exit_code == 1
    assert wrong.output.startswith("Error: machine.toml: data.order")
