"""A minimal reader of MATLAB 5 files: struct arrays of numbers and strings, as in the devkit's meta.mat.

Source: "MAT-File Format" (MathWorks), chapter 1, level 5. SciPy can read these files, but the project does not need it
for anything else.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

MATRIX, COMPRESSED = 14, 15
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
WIDE = (4, 17, 18)  # kinds of text with several bytes per code unit
TEXT = {2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}  # 2 and 4: code units of a char array
STRUCT, CHAR = 2, 4
Struct: TypeAlias = "dict[str, Value]"
Value: TypeAlias = "str | NDArray[np.generic] | list[Struct] | None"  # None for anything else


def read_structs(data: bytes, name: str) -> list[Struct]:
    """Read the elements of the struct array `name`, in MATLAB's order; arrays of numbers are 1-d.

    Raises:
        ValueError: it is not such a file, or has no such variable.
    """
    try:
        order = {b"IM": "<", b"MI": ">"}[data[126:128]]
        for kind, content in _elements(data[128:], order):
            found, value = _matrix(content, order) if kind == MATRIX else ("", None)
            if found == name and isinstance(value, list):
                return value
    except (KeyError, IndexError, struct.error, zlib.error, UnicodeError, TypeError) as error:
        raise ValueError(f"is not a MATLAB 5 file ({type(error).__name__}: {error})") from None
    raise ValueError(f"has no struct array {name!r}")


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """(type, content) of each element, compressed ones unpacked."""
    position = 0
    while position + 8 <= len(data):
        kind, size = struct.unpack_from(f"{order}II", data, position)
        if kind >> 16:  # a small one: both numbers in the first word, up to 4 bytes in the second
            yield kind & 0xFFFF, data[position + 4 : position + 4 + (kind >> 16)]
            position += 8
            continue
        content = data[position + 8 : position + 8 + size]
        if len(content) < size:
            raise ValueError("is not a MATLAB 5 file (truncated)")
        if kind == COMPRESSED:
            yield from _elements(zlib.decompress(content), order)
            position += 8 + size
        else:
            yield kind, content
            position += 8 + (size + 7) // 8 * 8


def _matrix(content: bytes, order: str) -> tuple[str, Value]:
    """Name and value of one array; numbers are 1-d."""
    if not content:
        return "", np.empty(0)
    elements = _elements(content, order)
    flags, shape, name = (next(elements)[1] for _ in range(3))
    kind = struct.unpack(f"{order}I", flags[:4])[0] & 0xFF
    count = int(np.prod(np.frombuffer(shape, f"{order}i4")))
    value: Value = None
    if kind == STRUCT:
        width = struct.unpack(f"{order}i", next(elements)[1])[0]
        text = next(elements)[1]
        fields = [text[i : i + width].split(b"\0")[0].decode() for i in range(0, len(text), width)]
        value = [{field: _matrix(next(elements)[1], order)[1] for field in fields} for _ in range(count)]
    elif kind == CHAR:
        number, data = next(elements, (2, b""))
        byte_order = "-le" if order == "<" else "-be"
        value = data.decode(TEXT[number] + (byte_order if number in WIDE else ""))
    elif 6 <= kind <= 15:
        number, data = next(elements, (9, b""))
        value = np.frombuffer(data, order + NUMBERS[number])
    return name.decode(), value
