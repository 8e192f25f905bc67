"""Read a recipe and overrides into a frozen dataclass tree. Precedence: defaults < TOML file < `section.key=value`.

It works for any frozen dataclass with fields of type bool, int, float, str, Path, Literal, tuple, unions of these, or
another such dataclass (a section). An unknown or ill-typed key is an error. If a section has a field `preset`, the
keys that are not given come from its `presets`.

TOML has no null. In a field that may be None, the word "none" is read as None.
"""

import dataclasses
import json
import tomllib
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeGuard, TypeVar, Union, get_args, get_origin, get_type_hints

from penstock.recipes.config_names import unknown_key, unknown_section

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


class _Given(NamedTuple):
    """A value that was given, and where."""

    value: object
    where: str  # a file name, or "--set section.key=value"
    text: str | None = None  # the literal text of an override, for fields that accept it as a bare string


class _WrongType(Exception):
    """A value does not fit its field; the message says what was expected."""


def load_config(
    schema: type[T],
    recipe_file: Path | None,
    overrides: Sequence[str] = (),
    defaults: Mapping[str, object] = MappingProxyType({}),
) -> T:
    """Build the `schema` dataclass from its defaults, then a TOML file, then `section.key=value` strings. `defaults`,
    by dotted key, replace the schema's.

    An override's value is read as TOML, or as a bare string if that does not fit (`model.name=resnet50`). A float field
    accepts an int, and an array becomes a tuple. A bool is never a number.

    Raises ValueError, with the file or the override, for a missing or malformed file, an unknown section or key (with
    the nearest valid one), a value of the wrong type, a missing required key, and a value that a dataclass's
    `__post_init__` or `check_given` refuses. `check_given` is optional. It is for mistakes with which an earlier
    version may have trained, so `from_toml` does not call it.
    """
    given = {key: _Given(value, "default") for key, value in defaults.items()}
    return _build(schema, None, "", given | _given(schema, recipe_file, overrides), check_given=True)


def given_values(
    schema: "type[DataclassInstance]", recipe_file: Path | None, overrides: Sequence[str]
) -> dict[str, object]:
    """The values that the file and the overrides give, by dotted key. Raises ValueError as `load_config` for each."""
    leaves = _leaf_types(schema)
    given = _given(schema, recipe_file, overrides)
    return {key: _coerce_given(one, leaves[key], key) for key, one in given.items()}


def _given(schema: "type[DataclassInstance]", recipe_file: Path | None, overrides: Sequence[str]) -> dict[str, _Given]:
    """The given values, by dotted key, before they are converted."""
    given: dict[str, _Given] = {}
    if recipe_file is not None:
        _collect(schema, _read_toml(recipe_file), "", str(recipe_file), given)
    for override in overrides:
        key, equals, text = (part.strip() for part in override.partition("="))
        where = f"--set {override}"
        if not equals:
            raise ValueError(f"{where}: expected section.key=value")
        if key not in _leaf_types(schema):
            raise unknown_key(key, keys(schema), where)
        given[key] = _Given(_parse_override(text), where, text)
    return given


def from_values(schema: type[T], values: Mapping[str, object], where: str) -> T:
    """Build the tree from values by dotted key that a caller in Python gives. Raises ValueError for keys and values as
    `load_config` does. `where` is the start of its messages."""
    if unknown := [key for key in values if key not in _leaf_types(schema)]:
        raise unknown_key(unknown[0], keys(schema), where)
    return _build(schema, None, "", {key: _Given(value, where) for key, value in values.items()}, check_given=True)


def to_toml(config: "DataclassInstance") -> str:
    """The whole tree as TOML. `load_config` reads it back to an equal tree. A None that is the default is omitted."""
    return "\n".join(_toml_lines(config, "")) + "\n"


def from_toml(schema: type[T], text: str, where: str) -> T:
    """Read the tree that `to_toml` wrote. `where` names the text in errors. Raises ValueError as `load_config`."""
    given: dict[str, _Given] = {}
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not TOML: {error}") from None
    _collect(schema, table, "", where, given)
    return _build(schema, None, "", given)


def diff(a: T, b: T) -> list[str]:
    """The changes from `a` to `b`, two trees of one schema, as lines like `optimizer.lr: 0.1 → 0.2`."""
    lines = []
    for key in _leaf_types(type(a)):
        old, new = _get(a, key), _get(b, key)
        if old != new:
            lines.append(f"{key}: {old!r} → {new!r}")
    return lines


def keys(schema: "type[DataclassInstance]") -> list[str]:
    """The dotted keys of all settings, in the order of declaration."""
    return list(_leaf_types(schema))


def _read_toml(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # Windows editors write a byte order mark
    except OSError as error:
        raise ValueError(f"{path}: cannot read the recipe: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a TOML file: {error}") from None


def _parse_override(text: str) -> object:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return parsed["value"] if len(parsed) == 1 else text


def _collect(
    schema: "type[DataclassInstance]", table: dict[str, object], prefix: str, where: str, given: dict[str, _Given]
) -> None:
    """Flatten a TOML table into `given`, checking every key."""
    leaves = _leaf_types(schema)
    for name, value in table.items():
        key = prefix + name
        if key in leaves:
            given[key] = _Given(value, where)
        elif not any(leaf.startswith(f"{key}.") for leaf in leaves):
            unknown = unknown_section if isinstance(value, dict) else unknown_key
            raise unknown(key, list(leaves), where)
        elif isinstance(value, dict):
            _collect(schema, value, f"{key}.", where, given)
        else:
            raise ValueError(f"{where}: {key} = {value!r}: expected a section, [{key}]")


def _build(schema: type[T], default: object, prefix: str, given: dict[str, _Given], check_given: bool = False) -> T:
    """An instance of `schema`. Precedence: values `given` under `prefix`, the given preset, `default`, the fields' own
    defaults. `check_given`: also call the method of this name."""
    make: Callable[..., T] = schema
    values: dict[str, object] = {}
    if f"{prefix}preset" in given:  # such a schema has the values of each preset in its attribute `presets`
        chosen = _coerce_given(given[f"{prefix}preset"], field_types(schema)["preset"], f"{prefix}preset")
        presets: dict[object, dict[str, object]] = getattr(schema, "presets", {})
        default = make(**presets[chosen])
    for field in dataclasses.fields(schema):
        kind, key = field_types(schema)[field.name], prefix + field.name
        if _is_section(kind):
            values[field.name] = _build(kind, _default_of(field, default), f"{key}.", given, check_given)
        elif key in given:
            values[field.name] = _coerce_given(given[key], kind, key)
        elif default is not None:
            values[field.name] = getattr(default, field.name)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{key} has no default: set it in the recipe or with --set {key}=…")
    try:
        built = make(**values)
        if check_given and hasattr(built, "check_given"):
            built.check_given()
        return built
    except ValueError as error:
        culprit = given.get(prefix + str(error).partition(":")[0])  # messages begin with the field's name
        where = f"{culprit.where}: " if culprit else ""
        raise ValueError(f"{where}{prefix}{error}") from None


def _coerce_given(given: _Given, kind: object, key: str) -> object:
    try:
        return _coerce(given.value, kind)
    except _WrongType as error:
        if given.text is not None:
            try:
                return _coerce(given.text, kind)
            except _WrongType:
                pass
        raise ValueError(f"{given.where}: {key} = {given.value!r}: expected {error}") from None


def _coerce(value: object, kind: object) -> object:
    """`value` converted to the type annotation `kind`. Raises _WrongType with a description of the type."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _coerce_to_one_of(value, kind)
    if origin is tuple:
        return _coerce_to_tuple(value, kind)
    if origin is Literal:
        if any(value == arg and type(value) is type(arg) for arg in args):
            return value
    elif kind is float:
        if isinstance(value, int | float) and not isinstance(value, bool) and value == value:  # no NaN
            try:
                return float(value)
            except OverflowError:
                pass
    elif kind is Path:
        if isinstance(value, str | Path):
            return Path(value)
    elif kind in (bool, int, str):
        if type(value) is kind:
            return value
    elif kind is not type(None):
        raise TypeError(f"config fields of type {kind} are not supported")
    raise _WrongType(_describe(kind))


def _coerce_to_one_of(value: object, kind: object) -> object:
    """`value` as one of the types of a union."""
    args = get_args(kind)
    if type(None) in args and (value is None or value == "none"):
        return None
    if type(value) in args:  # 1 stays an int in `float | int`
        return value
    for arg in args:
        try:
            return _coerce(value, arg)
        except _WrongType:
            continue
    raise _WrongType(_describe(kind))


def _coerce_to_tuple(value: object, kind: object) -> tuple[object, ...]:
    if isinstance(value, list | tuple):
        args = get_args(kind)
        kinds = [args[0] for _ in value] if args[-1] is Ellipsis else args
        if len(kinds) == len(value):
            try:
                return tuple(_coerce(item, kind) for item, kind in zip(value, kinds, strict=True))
            except _WrongType:
                pass
    raise _WrongType(_describe(kind))


def _describe(kind: object) -> str:
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(arg) for arg in args)
    if origin is Literal:
        return "one of " + ", ".join(repr(arg) if isinstance(arg, str) else toml_value(arg) for arg in args)
    if origin is tuple and args and args[-1] is Ellipsis:
        return "an array of " + {int: "integers", float: "numbers", str: "texts"}.get(args[0], _describe(args[0]))
    if origin is tuple:
        return f"an array of {len(args)}: " + ", ".join(_describe(arg) for arg in args)
    names = {bool: "true or false", int: "an integer", float: "a number", str: "text", Path: "a path"}
    return '"none"' if kind is type(None) else names.get(kind, str(kind))  # type: ignore[call-overload]


def _leaf_types(schema: "type[DataclassInstance]", prefix: str = "") -> dict[str, object]:
    """Dotted key → type of every field that is not a section, in the order of declaration."""
    leaves: dict[str, object] = {}
    for name, kind in field_types(schema).items():
        if _is_section(kind):
            leaves |= _leaf_types(kind, f"{prefix}{name}.")
        else:
            leaves[prefix + name] = kind
    return leaves


def field_types(schema: "type[DataclassInstance]") -> dict[str, object]:
    hints = get_type_hints(schema)
    return {field.name: hints[field.name] for field in dataclasses.fields(schema)}


def _is_section(kind: object) -> TypeGuard["type[DataclassInstance]"]:
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def _get(config: object, key: str) -> object:
    for name in key.split("."):
        config = getattr(config, name)
    return config


def _default_of(field: dataclasses.Field[object], owner: object) -> object:
    """The default of a section's field: the value in `owner`, an instance, or the field's own default, or None."""
    if owner is not None:
        return getattr(owner, field.name)
    if field.default is not dataclasses.MISSING:
        return field.default
    return None if field.default_factory is dataclasses.MISSING else field.default_factory()


def _toml_lines(config: "DataclassInstance", prefix: str) -> Iterator[str]:
    sections = [field for field in dataclasses.fields(config) if _is_section(type(getattr(config, field.name)))]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field not in sections and (value is not None or field.default is not None):
            yield f"{field.name} = {toml_value(value)}"
    for field in sections:
        yield f"\n[{prefix}{field.name}]"
        yield from _toml_lines(getattr(config, field.name), f"{prefix}{field.name}.")


def toml_value(value: object) -> str:
    match value:
        case None:
            return '"none"'
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str() | Path():
            return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
        case tuple() | list():
            return f"[{', '.join(toml_value(item) for item in value)}]"
    raise TypeError(f"no TOML for {value!r}")
