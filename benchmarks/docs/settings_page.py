"""The settings' dataclasses → the tables of docs/reference/settings.md."""

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, get_args, get_origin

from penstock.recipes import Recipe
from penstock.recipes.config import field_types, toml_value
from penstock.settings import Setting, settings_of

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

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
        yield f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"
    yield ""


def _values(kind: object, about: Setting) -> str:
    if get_origin(kind) is Literal:
        return ", ".join(f"`{toml_value(choice)}`" for choice in get_args(kind))
    names = {bool: "`true`, `false`", int: "integer", float: "number", str: "text"}
    named = names.get(kind, "list") if isinstance(kind, type) else _name_of(kind)
    bounds = about.bounds()
    return f"{named}, {bounds}" if bounds else named


def _name_of(kind: object) -> str:
    if get_origin(kind) is tuple:
        inner = get_args(kind)
        one = {int: "integers", float: "numbers", str: "texts"}.get(inner[0], "values")
        return f"list of {one}" if inner[-1] is Ellipsis else f"{len(inner)} {one}"
    return " or ".join("none" if one is type(None) else _values_name(one) for one in get_args(kind))


def _values_name(kind: object) -> str:
    if get_origin(kind) is Literal:
        return ", ".join(f"`{toml_value(choice)}`" for choice in get_args(kind))
    return {bool: "`true`, `false`", int: "integer", float: "number", str: "text"}.get(kind, "") or _name_of(kind)  # type: ignore[call-overload]


def _text(about: Setting) -> str:
    notes = [FAST] if about.only_speed else [FREE] if about.free_on_resume else []
    if about.belongs_to:
        when = " or ".join(f'"{value}"' for value in about.when)
        notes.append(f"only with `{about.belongs_to}`" + (f" = {when}" if when else ""))
    return about.text + (f" *({'; '.join(notes)})*" if notes else "")
