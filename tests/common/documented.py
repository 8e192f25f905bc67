"""The shell commands of README.md and the docs, as a reader would type them."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

import click

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "tests/README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(r"^(?P<indent> *)```bash\n(?P<text>.*?)^ *```$", re.DOTALL | re.MULTILINE)
_WITH_VALUE = ("--group", "--no-group", "--extra", "--with", "--torch-backend")  # uv's


class Documented(NamedTuple):
    """One command. words: without the comment. line: its number in the page, from 1."""

    page: str
    line: int
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {shlex.join(self.words)}"


class Program(NamedTuple):
    """A program of this project (`train`, `bench`, `shard_tools`, `penstock` or a module) and its arguments."""

    name: str
    words: tuple[str, ...]


def blocks() -> list[tuple[str, str]]:
    """(page, text) of each block of shell commands."""
    return [(str(page.relative_to(ROOT)), match["text"])
            for page in PAGES for match in _BLOCK.finditer(page.read_text(encoding="utf-8"))]  # fmt: skip


def commands() -> list[Documented]:
    """Every command of every block; `a && b` are two."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in _BLOCK.finditer(text):
            line = text.count("\n", 0, match.start("text")) + 1
            for shown in match["text"].replace("\\\n", "  ").splitlines():
                for words in _split(shown):
                    found.append(Documented(str(page.relative_to(ROOT)), line, words))
                line += 1
    return found


def _split(line: str) -> list[tuple[str, ...]]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;")
    lexer.whitespace_split, lexer.commenters = True, "#"
    found, words = [], []
    for word in [*lexer, "&&"]:
        if set(word) <= set("&|;"):
            found += [tuple(words)] if words else []
            words = []
        else:
            words.append(word)
    return found


def program_of(words: tuple[str, ...]) -> Program | None:
    """The project's program that a command starts, without `uv run` and `torchrun`; None for other programs."""
    redirected = next((place for place, word in enumerate(words) if re.fullmatch(r"\d?>+", word)), len(words))
    rest = list(words[:redirected])
    while rest and re.fullmatch(r"[A-Z_]+=.*", rest[0]):  # the environment
        rest.pop(0)
    if rest[:2] == ["uv", "run"]:
        rest = rest[2:]
        while rest and rest[0].startswith("-"):
            rest = rest[2:] if rest[0] in _WITH_VALUE else rest[1:]
    if rest and rest[0] == "torchrun":
        scripts = [place for place, word in enumerate(rest) if word.endswith(".py") or word == "-m"]
        rest = ["python", *rest[scripts[0] :]]
    if rest and rest[0].endswith(".py"):
        rest = ["python", *rest]
    if rest and rest[0] == "penstock":
        return Program("penstock", tuple(rest[1:]))
    if rest[:2] == ["python", "-m"]:
        return Program(rest[2].removeprefix("penstock."), tuple(rest[3:]))
    if rest[:1] == ["python"] and len(rest) > 1 and rest[1] != "-c":
        return Program(rest[1].removesuffix(".py"), tuple(rest[2:]))
    return None


def is_placeholder(word: str) -> bool:
    """Whether a word stands for the reader's own file, such as PHOTOS or NEW_PHOTO.jpg."""
    return re.fullmatch(r"[A-Z][A-Z0-9_-]*(/\S*|\.\w+)?", word) is not None or "…" in word


def parsed(command: click.Command, name: str, words: tuple[str, ...]) -> dict[str, list[str]]:
    """The values of each parameter that the command, or its sub-command, is given.

    Raises click.UsageError for an unknown command or option, a missing or superfluous argument, and a value that is not
    among the choices or not in the range. Files need not exist.
    """
    context = click.Context(command, info_name=name)
    if "--help" in words:
        words = tuple(word for word in words if word != "--help")
    options, rest, _ = command.make_parser(context).parse_args(list(words))
    if isinstance(command, click.Group) and rest:
        found = command.get_command(context, rest[0])
        if not found:
            raise click.UsageError(f"no command {rest[0]}")
        return parsed(found, f"{name} {rest[0]}", tuple(rest[1:]))
    if rest:
        raise click.UsageError(f"too many arguments: {shlex.join(rest)}")
    values: dict[str, list[str]] = {}
    for param in command.params:
        given = options.get(param.name or "")
        listed = [one for one in (given if isinstance(given, list | tuple) else [given]) if isinstance(one, str)]
        if param.required and not listed:
            raise click.UsageError(f"missing {param.name}")
        for value in listed:
            checked = isinstance(param.type, click.Choice | click.IntRange | click.FloatRange) or param.type in (
                click.INT, click.FLOAT)  # fmt: skip
            if checked and not is_placeholder(value):
                param.type.convert(value, param, context)
        values[param.name or ""] = listed
    return values
