"""`bench.py docs`: write every generated part of README.md and docs/, so that each figure has one source.

A page has two kinds of generated parts, both marked by HTML comments that readers do not see:

<!-- NAME: written by `python bench.py docs` -->
the text that `BLOCKS[NAME]` returns
<!-- end of NAME -->

and single figures in a sentence or a table, `<!--= KEY -->1,643<!--/-->`, with a KEY of `figures.figure`.
The sources are the files of `benchmarks/results` and the settings' dataclasses. A test fails when a page is out of
date.
"""

import re
from collections.abc import Callable
from pathlib import Path

import click

from penstock.benchmarks import scaling
from penstock.benchmarks.docs import first_run, recipes_page, results_page, settings_page
from penstock.benchmarks.docs.figures import figure

ROOT = Path(__file__).resolve().parents[2]

BLOCKS: dict[str, Callable[[], str]] = {
    "demo": first_run.demo_block,
    "peers": results_page.peers_block,
    "results": results_page.results_block,
    "trained": recipes_page.trained_block,
    "scaling": scaling.report,
    "settings": settings_page.settings_block,
}
_BLOCK = re.compile(
    r"^<!-- (?P<name>[\w-]+): written by `python bench\.py docs` -->\n(?P<text>.*?)^<!-- end of (?P=name) -->$",
    re.DOTALL | re.MULTILINE,
)
_BEGIN = re.compile(r"^<!-- [\w-]+: written by ", re.MULTILINE)
_AT_START = re.compile(r"^[ >*-]*<!--= ", re.MULTILINE)
_FIGURE = re.compile(r"<!--= (?P<key>.+?) -->(?P<shown>.*?)<!--/-->", re.DOTALL)


def sources() -> list[Path]:
    """Return the pages that may have generated parts."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def filled(path: Path) -> str:
    """Return the text of a page with its generated parts up to date.

    Raises ValueError, with the page's name, for an unknown part, a part without an end, and an unknown figure.
    """
    text = path.read_text(encoding="utf-8")

    def block(match: re.Match[str]) -> str:
        if match["name"] not in BLOCKS:
            raise ValueError(f'{path}: unknown part "{match["name"]}"; known parts are {", ".join(BLOCKS)}')
        whole, begin = match[0], match[0].partition("\n")[0]
        return f"{begin}\n{BLOCKS[match['name']]().rstrip()}\n{whole.rpartition(chr(10))[2]}"

    def one_figure(match: re.Match[str]) -> str:
        try:
            return f"<!--= {match['key']} -->{figure(match['key'])}<!--/-->"
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    if _AT_START.search(text):
        raise ValueError(f"{path}: a figure begins a line, where Markdown reads it as HTML; move a word before it")
    filled_text, num_blocks = _BLOCK.subn(block, text)
    if num_blocks != len(_BEGIN.findall(text)):
        raise ValueError(f"{path}: a generated part has no end; put <!-- end of NAME --> on a line of its own below it")
    return _FIGURE.sub(one_figure, filled_text)


@click.command(name="docs")
def command() -> None:
    """Write the documentation's generated parts.

    They are tables, figures and settings in README.md and docs/, and the pictures of results. The sources are the files
    of benchmarks/results and the settings' dataclasses.
    """
    from penstock.benchmarks import plot

    for picture in [*plot.draw_all(results_page.read_all(), results_page.PICTURES), *recipes_page.draw_all()]:
        click.echo(picture.relative_to(ROOT))
    for path in sources():
        before, after = path.read_text(encoding="utf-8"), filled(path)
        if before != after:
            path.write_text(after, encoding="utf-8")
            click.echo(path.relative_to(ROOT))
