"""What classes are called: readable names from the source, from ImageNet's list, or from a file of the user's."""

import json
from pathlib import Path

from shard_tools.format import ClassInfo
from shard_tools.sources.imagenet import imagenet_names


def class_infos(keys: tuple[str, ...], source_names: dict[str, str], given: dict[str, str]) -> list[ClassInfo]:
    """One for each class key, in order. A name comes from `given`, the source, ImageNet's list, or else is the key."""
    names = imagenet_names(keys) | source_names | given
    return [ClassInfo(key, names.get(key) or key) for key in keys]


def read_class_file(path: Path, keys: tuple[str, ...]) -> dict[str, str]:
    """Class key → readable name from a file: lines `KEY NAME` (blank ones and those with # are skipped), or JSON
    `{"KEY": "NAME"}`. Keys that are numbers may be written with or without leading zeros. It may name more classes.

    Raises:
        ValueError: it cannot be read, or names none of the classes.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeError) as error:
        raise ValueError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if text.lstrip().startswith("{"):
        try:
            names = dict(json.loads(text))
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{path}: is no JSON object ({error})") from None
    else:
        lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
        names = dict(
            (line.split(maxsplit=1) * 2)[:2] if len(line.split()) == 1 else line.split(maxsplit=1) for line in lines
        )
    if not all(isinstance(name, str) for name in names.values()):
        raise ValueError(f'{path}: must give each class a text, as {{"n01440764": "tench"}}')
    found = {key: names.get(key, names.get(_plain(key))) for key in keys}
    known = {key: name.strip() for key, name in found.items() if name}
    if not known:
        raise ValueError(
            f"{path}: names none of the classes {', '.join(keys[:3])} …; its lines are like: {keys[0]} NAME"
        )
    return known


def _plain(key: str) -> str:
    return str(int(key)) if key.isascii() and key.isdecimal() else key
