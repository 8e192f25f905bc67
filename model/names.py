"""Check the names of networks without torch: a wrong name is an error after half a second, with the nearest names.

The names of torchvision and timm are read from their sources, since importing either takes seconds.
"""

import importlib.util
import re
from collections.abc import Collection
from difflib import get_close_matches
from functools import cache
from pathlib import Path

OWN_NAMES = ("airbench94", *(f"cifar_resnet{depth}" for depth in (8, 14, 20, 32, 44, 56)))  # model.networks has them
TIMM = "timm/"  # prefix of the names of timm's networks


def check_network(name: str) -> None:
    """Raises ValueError for a network that `build_model` cannot build, with the nearest names."""
    timms = timm_names()
    if name.startswith(TIMM):
        check_timm_name(name, timms)
        return
    known = (*OWN_NAMES, *torchvision_names())
    if name not in known and len(known) > len(OWN_NAMES):
        raise unknown_network(name, [TIMM + name] if name in timms else known)


def check_teacher(teacher: str, weights: str) -> None:
    """Raises ValueError if `loss.teacher` and `loss.teacher_weights` name no network; both may be empty."""
    if not teacher:
        return
    if Path(teacher).expanduser().exists():
        if weights:
            raise ValueError(
                f"loss.teacher_weights: has no effect if loss.teacher is a file or a run ({teacher}); for bare weights "
                "set loss.teacher to the network's name"
            )
        return
    try:
        check_network(teacher)
    except ValueError as error:
        raise ValueError(f"loss.teacher: {teacher}: no such file or run, and {error}") from None
    if not weights:
        raise ValueError(f"loss.teacher_weights: which weights of {teacher}? Give a file, or DEFAULT")


def check_timm_name(name: str, known: Collection[str]) -> None:
    """Raises ValueError if `name`, without its "timm/", is not in `known`. An empty `known` allows every name."""
    bare, dot, tag = name.removeprefix(TIMM).partition(".")
    if dot:
        raise ValueError(
            f'unknown network {name!r}: the part after the dot names weights; set name = "{TIMM}{bare}", '
            f'pretrained = "{tag}"'
        )
    if known and bare not in known:
        raise unknown_network(name, [TIMM + one for one in known], "timm.list_models()")


def unknown_network(
    name: str, known: Collection[str], listed_by: str = "torchvision.models.list_models()"
) -> ValueError:
    near = [TIMM + name] if TIMM + name in known else get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else f"{listed_by} lists all names"
    return ValueError(f"unknown network {name!r}: {hint}")


def lacks(name: str, option: str, reason: str = "remove it") -> ValueError:
    """The error for a setting that the network of this name does not support."""
    return ValueError(f"{name} has no {option}: {reason}")


@cache
def torchvision_names() -> tuple[str, ...]:
    """The classification networks of the installed torchvision; empty if its sources cannot be found."""
    registered = re.compile(r'^@register_model\((?:name="(\w+)")?\)$.*?^def (\w+)', re.MULTILINE | re.DOTALL)
    found = [pair for source in _sources("torchvision") for pair in registered.findall(source)]
    return tuple(sorted(name or function for name, function in found))


@cache
def timm_names() -> tuple[str, ...]:
    """The networks of the installed timm, without "timm/"; empty if its sources cannot be found."""
    registered = re.compile(r"^@register_model\ndef (\w+)", re.MULTILINE)
    return tuple(sorted(name for source in _sources("timm") for name in registered.findall(source)))


def _sources(package: str) -> list[str]:
    """The source text of a package's modules in `models/`."""
    found = importlib.util.find_spec(package)
    folders = list(found.submodule_search_locations or ()) if found else []
    return [file.read_text(encoding="utf-8") for folder in folders for file in Path(folder).glob("models/*.py")]
