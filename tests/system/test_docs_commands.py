"""The short commands of README.md and the docs, run as they stand there, on small pictures in place of the reader's.

`tests/unit/test_docs.py` looks at the options of all the others.
"""

import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from penstock.shard_tools.__main__ import main as shard_tools
from tests.common.documented import ROOT, Documented, blocks, commands, program_of

TREE = ("PHOTOS", "IMAGES", "IMAGENET", "imagenet")  # what the docs call a tree of images
PACKED = re.compile(r"DATA|data/[\w-]+")  # … and a packed dataset
LIGHT = ("--show-config", "--show-schedule", "--list", "--help")  # the options of commands that end at once
SHARD_TOOLS = [one for one in commands() if (found := program_of(one.words)) and found.name == "shard_tools"]


def is_run(command: Documented) -> bool:
    """Whether a command of the sharding tool needs nothing but a tree of images, or a dataset packed from it."""
    program = program_of(command.words)
    assert program
    first = program.words[1] if len(program.words) > 1 else ""
    if any("://" in word or word.startswith("/") for word in program.words):
        return False
    return first in TREE if program.words[0] == "pack" else program.words[0] != "index" and bool(PACKED.match(first))


RUN = [one for one in SHARD_TOOLS if is_run(one)]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """photos/{bird,cat,dog}/N.jpg, and the same packed, in `packed`."""
    folder = tmp_path_factory.mktemp("docs")
    for label, name in enumerate(("bird", "cat", "dog")):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(10):
            Image.new("RGB", (40 + number, 36), (80 * label, 20 * number, 90)).save(
                folder / "photos" / name / f"{number}.jpg"
            )
    words = ["pack", str(folder / "photos"), str(folder / "packed"), "--split", "train=0.8,val=0.2", "--workers", "1"]
    assert CliRunner().invoke(shard_tools, words).exit_code == 0
    return folder


def test_every_block_parses(tmp_path: Path) -> None:
    for number, (_, text) in enumerate(blocks()):
        (tmp_path / f"{number}.sh").write_text(text)
    check = 'for file in *.sh; do bash -n "$file" || exit 1; done'
    done = subprocess.run(["bash", "-c", check], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, (done.stderr, [page for page, _ in blocks()])


def test_most_short_commands_are_run() -> None:
    assert {str(one.words[3]) for one in RUN} >= {"pack", "info", "verify", "preview"}
    assert len(RUN) >= 15


@pytest.mark.parametrize("command", RUN, ids=str)
def test_a_command_of_the_sharding_tool_works(
    command: Documented, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    program = program_of(command.words)
    assert program
    name, source, *rest = program.words
    if name == "pack":
        words = [name, str(small / "photos"), *rest, "--workers", "1"]
    else:
        shutil.copytree(small / "packed", source)
        words = [name, source, *rest]
    done = CliRunner().invoke(shard_tools, words)
    assert done.exit_code == 0, f"{command}\n{done.output}"


@pytest.mark.parametrize(
    "command",
    [one for one in commands() if program_of(one.words) and set(LIGHT) & set(one.words)],
    ids=str,
)
def test_a_command_that_only_prints_works(command: Documented, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = program_of(command.words)
    assert program
    words = [str(small / "packed") if PACKED.fullmatch(word) else word for word in program.words]
    module = {
        "train": "penstock.train",
        "bench": "penstock.bench",
        "benchmarks.gpu": "penstock.benchmarks.gpu.__main__",
    }
    monkeypatch.chdir(ROOT)
    done = CliRunner().invoke(import_module(module[program.name]).main, words)
    assert done.exit_code == 0, f"{command}\n{done.output}"
    assert done.output.strip()


def test_the_scaling_tables_are_printed() -> None:
    done = subprocess.run([sys.executable, "-m", "benchmarks.scaling"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout in (ROOT / "docs/scaling.md").read_text(encoding="utf-8")
