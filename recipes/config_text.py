"""Print a tree of settings as commented TOML. The comment of a section is its dataclass's docstring; that of a key is
the first sentence of its text (`settings.setting`) and its choices."""

import dataclasses
import re
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, get_args, get_origin

from penstock.recipes.config import field_types, toml_value
from penstock.settings import settings_of

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

WIDTH = 120
_END = re.compile(r"""(?<=[a-z0-9)\]`"'][.])\s+(?=[A-Z`"\[])""")  # the end of a sentence


def commented_toml(config: "DataclassInstance") -> str:
    """All keys with comments, None as "none". `load_config` reads the text back to an equal tree."""
    return "\n".join(_lines(config, "")).lstrip() + "\n"


def _lines(config: "DataclassInstance", prefix: str) -> Iterator[str]:
    kinds, known = field_types(type(config)), settings_of(config)
    sections = [name for name in kinds if dataclasses.is_dataclass(getattr(config, name))]
    if prefix:
        about = " ".join((type(config).__doc__ or "").split())
        yield from textwrap.wrap(about, WIDTH, initial_indent="# ", subsequent_indent="# ")
    for name, kind in kinds.items():
        if name in sections:
            continue
        comment = _END.split(known[name].text)[0] if name in known else ""
        words = [f'"{choice}"' for choice in _choices(kind) if isinstance(choice, str)]
        if any(word not in comment for word in words):
            comment = f"{comment} One of {', '.join(words)}.".lstrip()
        if comment:
            yield f"# {comment}"
        yield f"{name} = {toml_value(getattr(config, name))}"
    for name in sections:
        yield f"\n[{prefix}{name}]"
        yield from _lines(getattr(config, name), f"{prefix}{name}.")


def _choices(kind: object) -> tuple[object, ...]:
    return get_args(kind) if get_origin(kind) is Literal else ()
