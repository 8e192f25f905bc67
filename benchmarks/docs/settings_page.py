"""The settings' dataclasses → the tables of docs/reference/settings.md."""

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, get_args, get_origin

from penstock.benchmarks.text import markdown_row
from penstock.recipes import Recipe
from penstock.recipes.config import field_types, toml_value
from penstock.settings import Setting, settings_of

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_NAMES: dict[object, str] = {
    bool: "`true`, `false`", int: "integer", float: "number", str: "text", type(None): "none",
}  # fmt: skip
_PLURALS: dict[object, str] = {int: "integers", float: "numbers", str: "texts"}
FREE, FAST = "may change when a run is resumed", "changes the speed only"


def settings_block() -> str:
    """Return the tables of the page: for each section of a recipe its settings, with default, values and text."""
    recipe = Recipe()
    sections = [one.name for one in dataclasses.fields(recipe)]
    return "\n".join(line for name in sections for line in _section(name, getattr(recipe, name)))


def _section(name: str, section: "DataclassInstance") -> Iterator[str]:
    kinds = field_types(type(section))
    yield from (f"## `[{name}]`", "", " ".join((type(section).__doc__ or "").split()), "")
    yield from ("| setting | default | values | what it does |", "| --- | --- | --- | --- |")
    for field, about in settings_of(section).items():
        # of the class, not of the recipe at hand, which fills in what depends on other settings
        default = next(one.default for one in dataclasses.fields(section) if one.name == field)
        cells = [f"`{field}`", f"`{toml_value(default)}`", _values(kinds[field], about), _text(about)]
        yield markdown_row(cells)
    yield ""


def _values(kind: object, about: Setting) -> str:
    """The type, then the range: "integer, at least 1"."""
    return ", ".join(part for part in (_named(kind), about.bounds()) if part)


def _named(kind: object) -> str:
    """A type in words; of a Literal its choices."""
    if kind in _NAMES:
        return _NAMES[kind]
    arguments = get_args(kind)
    if get_origin(kind) is Literal:
        return ", ".join(f"`{toml_value(choice)}`" for choice in arguments)
    if get_origin(kind) is tuple:
        of_list = arguments[-1] is Ellipsis
        return f"{'list of' if of_list else len(arguments)} {_PLURALS[arguments[0]]}"
    return " or ".join(_named(one) for one in arguments)  # a union


def _text(about: Setting) -> str:
    notes = [FAST] if about.only_speed else [FREE] if about.free_on_resume else []
    if about.belongs_to:
        when = " or ".join(f'"{value}"' for value in about.when)
        notes.append(f"only with `{about.belongs_to}`" + (f" = {when}" if when else ""))
    return about.text + (f" *({'; '.join(notes)})*" if notes else "")
