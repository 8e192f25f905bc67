"""The command `penstock`: every program of the checkout under one name, with help texts that fit it."""

import sys

import click
import pytest
from click.testing import CliRunner

import penstock
from penstock import bench, command, train
from penstock.shard_tools.__main__ import main as shard_tools
from penstock.shards import program


def invoke(*words: str) -> str:
    result = CliRunner().invoke(command.main, words, prog_name="penstock")
    assert result.exit_code == 0, result.output
    return result.output


def test_every_command_is_there_once() -> None:
    context = click.Context(command.main)
    names = command.main.list_commands(context)
    assert sorted(names) == sorted(["train", "bench", *shard_tools.commands, *train.main.commands])
    assert len(set(names)) == len(names)
    assert command.main.get_command(context, "train") is train.main
    assert command.main.get_command(context, "bench") is bench.main
    assert command.main.get_command(context, "nosuch") is None


def every(group: click.Group, *path: str) -> list[tuple[str, ...]]:
    found = []
    for name, inner in group.commands.items():
        found += [(*path, name), *(every(inner, *path, name) if isinstance(inner, click.Group) else ())]
    return found


@pytest.mark.parametrize(
    "words",
    [(), ("train",), ("bench",), *every(shard_tools), *every(train.main), *every(bench.main, "bench")],
    ids=" ".join,
)
def test_help_names_the_programs_as_they_are_called_here(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(click.Context, "formatter_class", command.Formatter)
    text = invoke(*words, "--help")
    assert text.startswith(f"Usage: {' '.join(['penstock', *words])} ")
    for elsewhere in ("python -m shard_tools", "python train.py", "python bench.py", " train.py", " bench.py"):
        assert elsewhere not in text


def test_examples_of_sub_commands_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(click.Context, "formatter_class", command.Formatter)
    for name in ("eval", "predict", "export", "replay"):
        assert f"\n  penstock {name} runs/" in invoke(name, "--help").replace("    penstock", "  penstock")


def test_the_version() -> None:
    assert invoke("--version") == f"penstock, version {penstock.__version__}\n"


def test_torchrun_starts_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(click.Context, "formatter_class", command.Formatter)
    assert "  torchrun --nproc-per-node 8 -m penstock train --data DIR" in invoke("train", "--help")


@pytest.mark.parametrize(
    ("called", "installed"),
    [
        ("/venv/bin/penstock", True),
        ("/site-packages/penstock/__main__.py", True),
        ("/checkout/train.py", False),
        ("/checkout/shard_tools/__main__.py", False),
        ("", False),
    ],
)
def test_messages_name_the_command_that_is_there(called: str, installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [called])
    assert program._is_installed() is installed


def test_what_the_package_exports_is_there() -> None:
    assert {name: getattr(penstock, name).__name__ for name in ("open_loader", "ShardSet", "Batch")}
    assert set(dir(penstock)) == set(penstock.__all__)
    with pytest.raises(AttributeError, match="no attribute 'open_loder'"):
        penstock.open_loder  # noqa: B018
