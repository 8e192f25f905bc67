"""The columns of a Parquet file: find the image and label columns, check their types, and read their values.

Images can be bytes of any Arrow type, lists of byte values, paths, or `{bytes, path}`. Labels can be whole numbers of
any type, or text.
"""

import json
import re
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # pyarrow is optional, and its import takes half a second
    from pyarrow import Array, DataType, Schema  # type: ignore[import-untyped]

Label = int | str
Feature = dict[str, object]  # Hugging Face's metadata about a column, which may contain anything

IMAGE_NAMES = (
    "image", "img", "images", "jpg", "jpeg", "png", "picture", "photo", "imagebytes", "bytes",
    "imagepath", "path", "filepath", "filename", "file", "imagefile",
)  # fmt: skip
LABEL_NAMES = ("label", "labels", "class", "target", "category", "cls", "wnid", "classname", "labelname")


@dataclass(frozen=True)
class Columns:
    """The chosen columns. image_bytes, image_path: columns (`image.bytes` inside a struct), or "". label: a column, or
    "". names: the class names by label, [] if the schema has none."""

    image: str
    image_bytes: str
    image_path: str
    label: str
    names: list[str]


def pyarrow() -> ModuleType:
    """Import pyarrow. Raises ValueError if it is not installed."""
    try:
        import pyarrow
        import pyarrow.compute  # type: ignore[import-untyped]
        import pyarrow.parquet  # type: ignore[import-untyped]
    except ImportError:
        raise ValueError(
            "reading Parquet needs pyarrow, which is not installed; install the extra: pip install '.[parquet]'"
        ) from None
    library: ModuleType = pyarrow
    return library


def choose_columns(schema: "Schema", image_column: str, label_column: str) -> Columns:
    """Choose columns: the given ones, or by Hugging Face's metadata, or by the usual names.

    Raises:
        ValueError: the image column is unclear, or a column has an unsupported type; the message lacks the file.
    """
    features = _features(schema)
    image = _choose(schema, features, image_column, "Image", IMAGE_NAMES)
    label = _choose(schema, features, label_column, "ClassLabel", LABEL_NAMES)
    if not image:
        raise ValueError(_which("Image", schema, "image-column", image_column))
    inside, outside = _image_parts(image, schema.field(image).type)
    if label and not _is_label(_value_type(schema.field(label).type)):
        raise ValueError(
            f"the column {label} has the type {schema.field(label).type}, but a label is a whole number or a name; "
            "choose another column with --label-column"
        )
    return Columns(image, inside, outside, label, _names(features.get(label, {}), label))


def no_label(schema: "Schema", label_column: str) -> str:
    """The message for a file in which no label column was found."""
    return _which("ClassLabel", schema, "label-column", label_column)


def labels(column: "Array") -> list[Label | None]:
    """The values of a label column. Raises ValueError if a number is not whole."""
    pa = pyarrow()
    column = _decoded(column)
    kind = column.type
    if pa.types.is_floating(kind):
        column = column.cast(pa.float64())
        column = pa.compute.if_else(pa.compute.is_nan(column), None, column)  # pandas writes a missing number as NaN
    try:
        if _is_bytes(kind) or _is_text(kind):
            column = pa.compute.utf8_trim_whitespace(column.cast(pa.large_string()))
        else:
            if pa.types.is_decimal(kind):
                # narrower ones without a fraction do not cast (pyarrow 26.0)
                column = column.cast(pa.decimal128(38, kind.scale))
            column = column.cast(pa.int64())
        values: list[Label | None] = column.to_pylist()
        return values
    except pa.ArrowInvalid as error:
        raise ValueError(f"has labels of the type {kind} that are not classes ({str(error).splitlines()[0]})") from None


def texts(column: "Array") -> list[str | None]:
    """The values of a column of paths."""
    values: list[str | None] = _decoded(column).cast(pyarrow().large_string()).to_pylist()
    return values


def image_bytes(column: "Array") -> list[bytes | None]:
    """The values of an image column. Raises ValueError if a list contains a number that is not a byte."""
    column = _decoded(column)
    if not _is_list(column.type):
        values: list[bytes | None] = column.to_pylist()
        return values
    return [_list_bytes(value.values) if value.is_valid else None for value in column]


def _list_bytes(values: "Array") -> bytes:
    pa = pyarrow()
    try:
        numbers = values.view(pa.uint8()) if values.type == pa.int8() else values.cast(pa.uint8())
        return bytes(numbers.to_numpy(zero_copy_only=True))
    except pa.ArrowInvalid as error:
        raise ValueError(f"has lists of numbers that are not the bytes of an image ({error})") from None


def _features(schema: "Schema") -> dict[str, Feature]:
    """The metadata of Hugging Face's `datasets` about each column; {} if there is none."""
    try:
        found = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return {name: feature for name, feature in found.items() if isinstance(feature, dict)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _names(feature: Feature, column: str) -> list[str]:
    """The class names of a ClassLabel by label. Raises ValueError if they are not a list of text."""
    names = feature.get("names") if feature.get("_type") == "ClassLabel" else []
    if isinstance(names, dict) and set(names) == {str(number) for number in range(len(names))}:  # in older files
        names = [names[str(number)] for number in range(len(names))]
    if not names:
        return []
    if not isinstance(names, list) or not all(isinstance(name, str | int) for name in names):
        raise ValueError(
            f"the class names of the column {column} in Hugging Face's metadata are not a list of text, but "
            f"{str(names)[:60]}; rewrite the file with a list, or without that metadata "
            "(table.replace_schema_metadata(None))"
        )
    return [str(name).strip() for name in names]


def _choose(schema: "Schema", features: dict[str, Feature], given: str, kind: str, usual: tuple[str, ...]) -> str:
    """The column's name; "" if it is unclear."""
    plain = {re.sub(r"[\W_]+", "", name.casefold()): name for name in reversed(schema.names)}
    by_name = [plain[name] for name in usual if name in plain]
    likely = [name for name in schema.names if features.get(name, {}).get("_type") == kind]
    if given:
        likely = [given]
    elif len(likely) != 1:
        likely = by_name
        if kind == "Image":  # prefer a column of bytes over one of file names
            likely = sorted(by_name, key=lambda name: not _is_image(_value_type(schema.field(name).type)))
    elif kind == "ClassLabel" and by_name and likely[0] not in by_name:
        return ""  # e.g. a ClassLabel "gender" beside a text column "label"
    return likely[0] if likely and schema.names.count(likely[0]) == 1 else ""


def _which(kind: str, schema: "Schema", option: str, given: str) -> str:
    what = f"does not have exactly one column {given!r}" if given else f"cannot tell which column is the {kind}"
    return f"{what}; choose one of {', '.join(schema.names)} with --{option}"


def _image_parts(name: str, kind: "DataType") -> tuple[str, str]:
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
            f"the column {name} has the type {kind}, but images are bytes of image files, paths, or {{bytes, path}}; "
            "choose another column with --image-column"
        )
    return found[0], found[1]


def _value_type(kind: "DataType") -> "DataType":
    return kind.value_type if pyarrow().types.is_dictionary(kind) else kind


def _decoded(column: "Array") -> "Array":
    return column.dictionary_decode() if pyarrow().types.is_dictionary(column.type) else column


def _is_any(kind: "DataType", *names: str) -> bool:
    """Whether `kind` is one of the Arrow types with these names."""
    types = pyarrow().types
    return any(getattr(types, f"is_{name}")(kind) for name in names)


def _is_text(kind: "DataType") -> bool:
    return _is_any(kind, "string", "large_string", "string_view")


def _is_bytes(kind: "DataType") -> bool:
    return _is_any(kind, "binary", "large_binary", "binary_view")


def _is_list(kind: "DataType") -> bool:
    return _is_any(kind, "list", "large_list", "list_view", "large_list_view", "fixed_size_list")


def _is_image(kind: "DataType") -> bool:
    is_list = _is_list(kind) and _is_any(kind.value_type, "integer")
    return _is_bytes(kind) or _is_any(kind, "fixed_size_binary") or is_list


def _is_label(kind: "DataType") -> bool:
    is_number = _is_any(kind, "integer", "floating", "boolean", "decimal", "null")
    return is_number or _is_text(kind) or _is_bytes(kind)
