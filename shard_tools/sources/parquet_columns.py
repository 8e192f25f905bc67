"""The columns of a Parquet file: which ones are image and label, of which types, and their values as Python's.

Images are bytes of any of Arrow's types, lists of numbers that are bytes, paths, or `{bytes, path}`. Labels are whole
numbers of any type, or text.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

IMAGE_NAMES = (
    "image", "img", "images", "jpg", "jpeg", "png", "picture", "photo", "imagebytes", "bytes",
    "imagepath", "path", "filepath", "filename", "file", "imagefile",
)  # fmt: skip
LABEL_NAMES = ("label", "labels", "class", "target", "category", "cls", "wnid", "classname", "labelname")


@dataclass(frozen=True)
class Columns:
    """image_bytes, image_path: columns (`image.bytes` inside a struct), "" for none. label: "" if there is none.
    names: of the classes by label, [] if the schema has none."""

    image: str
    image_bytes: str
    image_path: str
    label: str
    names: list[str]


def pyarrow() -> Any:
    try:
        import pyarrow  # type: ignore[import-untyped]
        import pyarrow.compute  # type: ignore[import-untyped]
        import pyarrow.parquet  # type: ignore[import-untyped]
    except ImportError:
        raise ValueError(
            "reading Parquet needs pyarrow, which is not installed; install the extra: pip install '.[parquet]'"
        ) from None
    return pyarrow


def choose_columns(schema: Any, image_column: str, label_column: str) -> Columns:
    """As the caller says, by Hugging Face's metadata, or by the usual names.

    Raises:
        ValueError: the image column cannot be told, or a column has a type that cannot be read; without the file.
    """
    features = _features(schema)
    image = _choose(schema, features, image_column, "Image", IMAGE_NAMES)
    label = _choose(schema, features, label_column, "ClassLabel", LABEL_NAMES)
    if not image:
        raise ValueError(_which("Image", schema, "image-column", image_column))
    inside, outside = _image_parts(image, schema.field(image).type)
    if label and not _is_label(_value_type(schema.field(label).type)):
        raise ValueError(
            f"the column {label} has the type {schema.field(label).type}; a label is a whole number or a name; choose "
            "another with --label-column"
        )
    return Columns(image, inside, outside, label, _names(features.get(label, {}), label))


def no_label(schema: Any, label_column: str) -> str:
    """The message for a file in which no label column was found."""
    return _which("ClassLabel", schema, "label-column", label_column)


def labels(column: Any) -> list[int | str | None]:
    """The values of a label column. Raises ValueError if one is a number that is not whole."""
    pa = pyarrow()
    column = _decoded(column)
    kind = column.type
    if pa.types.is_floating(kind):
        column = column.cast(pa.float64())
        column = pa.compute.if_else(pa.compute.is_nan(column), None, column)  # as pandas writes a missing number
    try:
        if _is_bytes(kind) or _is_text(kind):
            return pa.compute.utf8_trim_whitespace(column.cast(pa.large_string())).to_pylist()
        if pa.types.is_decimal(kind):
            column = column.cast(pa.decimal128(38, kind.scale))  # narrower ones without a fraction do not cast (26.0)
        return column.cast(pa.int64()).to_pylist()
    except pa.ArrowInvalid as error:
        raise ValueError(f"has labels of the type {kind} that are no classes ({str(error).splitlines()[0]})") from None


def texts(column: Any) -> list[str | None]:
    """The values of a column of paths."""
    return _decoded(column).cast(pyarrow().large_string()).to_pylist()


def image_bytes(column: Any) -> list[bytes | None]:
    """The values of a column of images. Raises ValueError if a list holds what is no byte."""
    column = _decoded(column)
    if not _is_list(column.type):
        return column.to_pylist()
    return [_list_bytes(value.values) if value.is_valid else None for value in column]


def _list_bytes(values: Any) -> bytes:
    pa = pyarrow()
    try:
        numbers = values.view(pa.uint8()) if values.type == pa.int8() else values.cast(pa.uint8())
        return numbers.to_numpy(zero_copy_only=True).tobytes()
    except pa.ArrowInvalid as error:
        raise ValueError(f"has lists of numbers that are not the bytes of an image ({error})") from None


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """What Hugging Face's `datasets` notes about each column; {} without such a note."""
    try:
        found = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return {name: feature for name, feature in found.items() if isinstance(feature, dict)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _names(feature: dict[str, Any], column: str) -> list[str]:
    """The names of a ClassLabel's classes by label. Raises ValueError if they are no list of text."""
    names = feature.get("names") if feature.get("_type") == "ClassLabel" else []
    if isinstance(names, dict) and set(names) == {str(number) for number in range(len(names))}:  # of older files
        names = [names[str(number)] for number in range(len(names))]
    if not isinstance(names or [], list) or not all(isinstance(name, str | int) for name in names or []):
        raise ValueError(
            f"the names of the column {column} in Hugging Face's note are no list of text, but {str(names)[:60]}; "
            "write the file anew with the list, or without the note (table.replace_schema_metadata(None))"
        )
    return [str(name).strip() for name in names or []]


def _choose(schema: Any, features: dict[str, dict[str, Any]], given: str, kind: str, usual: tuple[str, ...]) -> str:
    """The column's name, "" if it cannot be told."""
    plain = {re.sub(r"[\W_]+", "", name.casefold()): name for name in reversed(schema.names)}
    by_name = [plain[name] for name in usual if name in plain]
    likely = [name for name in schema.names if features.get(name, {}).get("_type") == kind]
    if given:
        likely = [given]
    elif len(likely) != 1:
        likely = by_name
        if kind == "Image":  # the bytes, where another column has the name that they had
            likely = sorted(by_name, key=lambda name: not _is_image(_value_type(schema.field(name).type)))
    elif kind == "ClassLabel" and by_name and likely[0] not in by_name:
        return ""  # a ClassLabel gender beside the text of label
    return likely[0] if likely and schema.names.count(likely[0]) == 1 else ""


def _which(kind: str, schema: Any, option: str, given: str) -> str:
    what = f"has no one column {given!r}:" if given else f"which column is the {kind}?"
    return f"{what} it has {', '.join(schema.names)}; name one with --{option}"


def _image_parts(name: str, kind: Any) -> tuple[str, str]:
    """The columns of the bytes and of the paths."""
    pa = pyarrow()
    if pa.types.is_struct(kind):
        inner = {field.name: _value_type(field.type) for field in kind}
        found = [
            f"{name}.{part}" if part in inner and (is_kind(inner[part]) or pa.types.is_null(inner[part])) else ""
            for part, is_kind in (("bytes", _is_image), ("path", _is_text))
        ]
    else:
        value = _value_type(kind)
        found = [name if _is_image(value) else "", name if _is_text(value) or pa.types.is_null(value) else ""]
    if not any(found):
        raise ValueError(
            f"the column {name} has the type {kind}; images are bytes of image files, paths, or {{bytes, path}}; "
            "choose another with --image-column"
        )
    return found[0], found[1]


def _value_type(kind: Any) -> Any:
    return kind.value_type if pyarrow().types.is_dictionary(kind) else kind


def _decoded(column: Any) -> Any:
    return column.dictionary_decode() if pyarrow().types.is_dictionary(column.type) else column


def _is_text(kind: Any) -> bool:
    types = pyarrow().types
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _is_bytes(kind: Any) -> bool:
    types = pyarrow().types
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def _is_list(kind: Any) -> bool:
    types = pyarrow().types
    is_view = types.is_list_view(kind) or types.is_large_list_view(kind)
    return is_view or types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def _is_image(kind: Any) -> bool:
    types = pyarrow().types
    is_list = _is_list(kind) and types.is_integer(kind.value_type)
    return _is_bytes(kind) or types.is_fixed_size_binary(kind) or is_list


def _is_label(kind: Any) -> bool:
    types = pyarrow().types
    is_number = types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_decimal(kind)
    return is_number or _is_text(kind) or _is_bytes(kind) or types.is_null(kind)
