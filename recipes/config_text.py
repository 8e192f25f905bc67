"""A tree of settings as TOML for people: each key under a sentence on it, from its dataclass's docstring.

Such a docstring begins with what the section is. Then `name: text` or `name, name: text` tells of fields, at a line's
begin or after a sentence; a field without is told by the first sentence that has its name.
"""

import dataclasses
import re
import textwrap
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, get_args, get_origin

from recipes.config import field_types, toml_value

WIDTH = 120
_END = re.compile(r"""(?<=[a-z0-9)\]`"'][.])\s+(?=[A-Z`"\[])""")  # of a sentence


class Told(NamedTuple):
    """section: what the docstring begins with. fields: field → a sentence; one for several begins with their names."""

    section: str
    fields: dict[str, str]


def commented_toml(config: Any) -> str:
    """Every key, None as "none", so that `load_config` reads the text back to an equal tree."""
    return "\n".join(_lines(config, "")).lstrip() + "\n"


def told(schema: Any) -> Told:
    """What the docstring of the dataclass `schema` says of it, and of each of its fields that it names."""
    names = [field.name for field in dataclasses.fields(schema)]
    one = "|".join(names)
    parts = re.split(rf"(?:^|(?<=[.:;)] ))((?:{one})(?:, (?:{one}))*): ", " ".join((schema.__doc__ or "").split()))
    section, entries = parts[0].strip(), dict(zip(parts[1::2], map(str.strip, parts[2::2]), strict=True))
    fields: dict[str, str] = {}
    for listed, text in entries.items():
        group = listed.split(", ")
        sentence = _END.split(text)[0]
        fields |= dict.fromkeys(group, f"{listed}: {sentence}" if len(group) > 1 else sentence)
    sentences = [sentence for text in (section, *entries.values()) for sentence in _END.split(text)]
    for name in names:
        mentions = [sentence for sentence in sentences if re.search(rf"\b{name}\b", sentence)]
        if mentions:
            fields.setdefault(name, mentions[0])
    return Told(section, fields)


def _lines(config: Any, prefix: str) -> Iterator[str]:
    about, kinds = told(type(config)), field_types(type(config))
    shown = {about.section}
    sections = [name for name in kinds if dataclasses.is_dataclass(getattr(config, name))]
    if prefix:
        yield from textwrap.wrap(about.section, WIDTH, initial_indent="# ", subsequent_indent="# ")
    for name in kinds:
        if name in sections:
            continue
        comment = about.fields.get(name, "")
        choices = [f'"{choice}"' for choice in _choices(kinds[name]) if isinstance(choice, str)]
        more = f"One of {', '.join(choices)}." if any(choice not in comment for choice in choices) else ""
        if line := " ".join(filter(None, ["" if comment in shown else comment, more])):
            yield f"# {line}"
        yield f"{name} = {toml_value(getattr(config, name))}"
        shown.add(comment)
    for name in sections:
        yield f"\n[{prefix}{name}]"
        yield from _lines(getattr(config, name), f"{prefix}{name}.")


def _choices(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) is Literal else ()
