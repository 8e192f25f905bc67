"""README.md and the docs: generated parts are up to date, and their commands have only options that exist."""

import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import click
import pytest

from penstock.benchmarks import docs
from penstock.benchmarks.docs.figures import figure
from penstock.recipes import Recipe, recipe_file
from penstock.recipes.config import load_config
from tests.common.documented import PAGES, ROOT, Documented, commands, is_placeholder, parsed, program_of

GROUPS = {"train": "penstock.train", "bench": "penstock.bench", "shard_tools": "penstock.shard_tools.__main__",
          "penstock": "penstock.command", "benchmarks.gpu": "penstock.benchmarks.gpu.__main__"}  # fmt: skip
OURS = [command for command in commands() if program_of(command.words)]


@pytest.mark.parametrize("page", docs.sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_generated_parts_are_up_to_date(page: Path) -> None:
    assert docs.filled(page) == page.read_text(encoding="utf-8"), "run: python bench.py docs"


def test_a_figure_that_differs_from_its_result_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("A loader makes <!--= peers-in500-2cpu; penstock -->1<!--/--> images/s.")
    assert re.search(r"-->\d,\d{3}<!--/--> images/s", docs.filled(page))
    page.write_text("<!-- nothing: written by `python bench.py docs` -->\n<!-- end of nothing -->\n")
    with pytest.raises(ValueError, match='unknown part "nothing"'):
        docs.filled(page)
    page.write_text("<!-- peers: written by `python bench.py docs` -->\n")
    with pytest.raises(ValueError, match="has no end"):
        docs.filled(page)
    page.write_text("text\n<!--= peers-in500-2cpu; penstock -->1<!--/--> more")
    with pytest.raises(ValueError, match="a figure begins a line"):
        docs.filled(page)
    page.write_text("It is <!--= peers-in500-2cpu; nosuch -->1<!--/-->")
    with pytest.raises(ValueError, match=r'page\.md: no figure "peers-in500-2cpu; nosuch"'):
        docs.filled(page)


@pytest.mark.parametrize(
    ("key", "pattern"),
    [
        ("peers-in500-2cpu; penstock", r"\d,\d{3}"),
        ("peers-in500-2cpu; penstock; range", r"\[\d,\d{3}–\d,\d{3}\]"),
        ("peers-in500-2cpu; penstock / timm", r"\d\.\d\d"),
        ("peers-in500-2cpu; penstock / timm; .1f", r"\d\.\d"),
        ("gpu-train-h100; cifar10-cpu; top-1", r"0\.\d{4}"),
        ("run-cifar10-cpu-2cpu; top1; .2%", r"\d\d\.\d\d%"),
    ],
)
def test_a_key_names_one_figure(key: str, pattern: str) -> None:
    assert re.fullmatch(pattern, figure(key))


def test_the_readme_fits_its_purpose() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    lines = re.sub("<!--.*?-->", "", text).splitlines()
    too_long = [line for line in lines if len(line) > 120 and not line.startswith(("|", "  "))]
    assert too_long == []


def test_speeds_that_pages_share_come_from_results() -> None:
    """A figure that stands on two pages has one source: it is generated, or tagged with its key."""
    quoted = {"4,300"}  # of others, and a goal
    places: dict[str, set[str]] = {}
    for page in PAGES:
        if page.name in ("LOG.md", "results.md"):
            continue
        text = page.read_text(encoding="utf-8")
        text = re.sub(r"<!-- ([\w-]+): written by .*?<!-- end of \1 -->|<!--= .*?<!--/-->", "", text, flags=re.DOTALL)
        for match in re.finditer(r"\b(\d{1,3},\d{3}(?:,\d{3})?)(?: \[[^]]*\])? (?:images|originals)/s", text):
            places.setdefault(match[1], set()).add(str(page.relative_to(ROOT)))
    assert {number: pages for number, pages in places.items() if len(pages) > 1 and number not in quoted} == {}


@pytest.mark.parametrize("command", OURS, ids=str)
def test_a_documented_command_exists(command: Documented) -> None:
    program = program_of(command.words)
    assert program
    if program.name not in GROUPS:
        known = (
            program.name in ("pytest", "mkdocs") or find_spec(program.name) or (ROOT / f"{program.name}.py").exists()
        )
        assert known, f"{command}: no such module"
        return
    main = import_module(GROUPS[program.name]).main
    try:
        values = parsed(main, program.name, program.words)
    except click.UsageError as error:
        pytest.fail(f"{command}: {error.format_message()}")
    recipes = [one for key in ("recipe", "recipe_name") for one in values.get(key, []) if not is_placeholder(one)]
    overrides = [one for one in values.get("overrides", []) if not is_placeholder(one.partition("=")[2])]
    load_config(Recipe, recipe_file(recipes[0]) if recipes else None, overrides)


def test_a_command_that_does_not_exist_is_found() -> None:
    from penstock import train

    for words in (("--nope",), ("evall",), ("eval",), ("--max-steps", "x"), ("--resume",)):
        with pytest.raises(click.UsageError):
            parsed(train.main, "train", words)
    assert parsed(train.main, "train", ("eval", "RUN", "--data", "DATA"))


def test_pages_that_the_code_names_exist() -> None:
    """Messages, help and comments point at files of docs/ that are there, and at headings that they have."""
    missing = []
    for folder in ("shards", "pipeline", "model", "recipes", "shard_tools", "training", "commands", "benchmarks",
                   "penstock", "examples"):  # fmt: skip
        for file in [*(ROOT / folder).rglob("*.py"), *(ROOT / folder).rglob("*.toml"), *ROOT.glob("*.toml")]:
            for name in re.findall(r"docs/[\w/-]+\.md", file.read_text(encoding="utf-8")):
                missing += [f"{file.relative_to(ROOT)}: {name}"] if not (ROOT / name).exists() else []
    assert missing == []
