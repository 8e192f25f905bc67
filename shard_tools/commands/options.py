"""Turn a dataclass of settings with `Option`s into click options, and the parsed values back into the dataclass.

Nested settings become options of the same command, in the order of the fields.
"""

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import click

from penstock.shard_tools.option import Option
from penstock.shards.remote import is_url

F = TypeVar("F", bound=Callable[..., object])
T = TypeVar("T")


def local_path(text: str) -> Path:
    """Parse a local path. Raises click.BadParameter for a URL."""
    if is_url(text):
        raise click.BadParameter(
            f"{text} is a URL, but this command reads local disks only. Copy it to a disk first. "
            "(URLs work with info, and as pack's OUT.)"
        )
    return Path(text)


def path_or_url(text: str) -> Path | str:
    return text if is_url(text) else Path(text)


def options_of(settings: type, *names: str) -> Callable[[F], F]:
    """Add the options of these settings to a command, or only those of the fields called `names`."""

    def decorate(command: F) -> F:
        for name, default, declared in reversed(list(_declared(settings))):
            if not names or name in names:
                command = _click_option(name, default, declared)(command)
        return command

    return decorate


def settings_from(settings: type[T], values: dict[str, object]) -> T:
    """The settings with the values of a command line; None means that the option was not given."""
    chosen: dict[str, Any] = {}
    for name, kind in get_type_hints(settings).items():
        if isinstance(kind, type) and is_dataclass(kind):
            chosen[name] = settings_from(kind, values)
        elif values.get(name) is not None:
            chosen[name] = values[name]
    return settings(**chosen)


def _declared(settings: type) -> Iterator[tuple[str, object, Option]]:
    """Name, default and declaration of each option."""
    types = get_type_hints(settings, include_extras=True)
    for item in fields(settings):
        if is_dataclass(types[item.name]):
            yield from _declared(types[item.name])
        else:
            yield item.name, item.default, types[item.name].__metadata__[0]


def _click_option(name: str, default: object, declared: Option) -> Callable[[F], F]:
    is_flag = default is False
    if isinstance(declared.shown, str):
        default = declared.shown
    return click.option(
        declared.flag or f"--{name.replace('_', '-')}",
        name,
        is_flag=is_flag,
        type=None if is_flag else _kind(declared),
        default=default if declared.shown or is_flag or default == "" else None,
        show_default=bool(declared.shown),
        metavar=declared.metavar or ("TEXT" if declared.kind not in (None, Path) else None),
        help=declared.help,
    )


def _kind(declared: Option) -> click.Choice[str] | click.IntRange | click.Path | Callable[[str], object] | None:
    kind = declared.kind
    if declared.choices:
        return click.Choice(declared.choices)
    if declared.least is not None:
        return click.IntRange(declared.least, declared.most)
    if kind is None:
        return None
    if kind is Path:
        return click.Path(path_type=Path)

    def convert(text: str) -> object:
        try:
            return kind(text)
        except (ValueError, OSError) as error:
            raise click.ClickException(str(error)) from None

    return convert
