"""Damage valid inputs (bytes, JSON-like trees and tars) with the draws of a `random.Random`."""

import copy
import io
import json
import math
import tarfile
from collections.abc import Callable
from random import Random
from typing import Any

INTERESTING = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1]
NAMES = ["../x", "../../../../etc/passwd", "/etc/passwd", "/dev/zero", "/dev/stdin", ".", "..", "", "a/b.jpg", "\0",
         "a\0b", "x" * 300, "\udcff\udc80", "a\nb", "a b.jpg", "é.jpg", "-x", "~", "con", "train-000000.tar", "val",
         "000000000.jpg", "000000000.cls", "dataset.json", ".x.jpg", "x.", "file://x", "s3://x/y", "%s%n"]  # fmt: skip
ODD: list[Any] = [None, True, False, 0, -1, 1, 2, 2**31, -(2**31), 2**63 - 1, 2**63, 2**64, 10**30, 10**400,
                  0.5, -0.0, 1e308, math.inf, -math.inf, math.nan, "0", "1e999", "nan", "none", [], {}, [[]], [{}],
                  {"": ""}, ["a", 1], {"a": {"b": []}}, *NAMES]  # fmt: skip
DEEP = "@deep@"


def damaged(rng: Random, data: bytes, other: bytes = b"") -> bytes:
    """One to eight edits: bits flipped, bytes set, inserted, removed, repeated,
    spliced from elsewhere; or cut short."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randint(0, len(out))
        end = min(len(out), at + rng.choice((1, 2, 4, 8, 64, 512)))
        match rng.randint(0, 8):
            case 0 if at < len(out):
                out[at] ^= 1 << rng.randint(0, 7)
            case 1 if at < len(out):
                out[at] = rng.randint(0, 255)
            case 2:
                out[at:at] = rng.randbytes(rng.choice((1, 2, 8, 100)))
            case 3:
                del out[at:end]
            case 4:
                out[at:at] = out[at:end] * rng.choice((1, 1, 3))
            case 5:
                number, size = rng.choice(INTERESTING), rng.choice((1, 2, 4, 8))
                out[at : at + size] = (number % 256**size).to_bytes(size, rng.choice(("little", "big")))
            case 6:
                source = other or data
                begin = rng.randint(0, len(source))
                out[at:end] = source[begin : begin + rng.choice((1, 8, 64, 512))]
            case 7:
                text = rng.choice([*map(str, INTERESTING), "-1", "nan", "9" * 30, "9" * 5000, *NAMES])
                out[at:end] = text.encode("utf-8", "surrogateescape")
            case 8:
                del out[at:]
    return bytes(out)


def damaged_tree(rng: Random, tree: Any) -> Any:
    """One to four edits: a value or key replaced, removed, repeated, moved elsewhere, retyped."""
    root = [copy.deepcopy(tree)]
    for _ in range(rng.choice((1, 1, 2, 4))):
        places = list(_places(root, 0))[1:] or [(root, 0)]
        holder, key = rng.choice(places)
        match rng.randint(0, 7):
            case 0 | 1 | 2:
                holder[key] = copy.deepcopy(rng.choice(ODD))
            case 3:
                del holder[key]
                if not root:
                    root = [None]
            case 4:
                other, there = rng.choice(places)
                holder[key] = copy.deepcopy(other[there])
            case 5 if isinstance(holder, dict):
                holder[rng.choice(NAMES)] = holder.pop(key)
            case 5:
                holder.insert(key, copy.deepcopy(holder[key]))
            case 6 if isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
                holder[key] = rng.choice((-holder[key], holder[key] + 1, holder[key] * 2**32, str(holder[key])))
            case 6 | 7:
                holder[key] = rng.choice((DEEP, [holder[key]], {"": holder[key]}, str(holder[key])))
    return root[0]


def _places(holder: Any, key: Any) -> Any:
    yield holder, key
    value = holder[key]
    if isinstance(value, dict | list):
        for inner in list(value) if isinstance(value, dict) else range(len(value)):
            yield from _places(value, inner)


def json_text(rng: Random, tree: Any) -> bytes:
    """A tree as JSON, sometimes with brackets a hundred thousand deep where it says DEEP."""
    text = json.dumps(tree, ensure_ascii=rng.random() < 0.9)
    deep = rng.choice(("[" * 100_000, "[" * 100_000 + "]" * 100_000, '{"a":' * 50_000, "9" * 6000))
    return text.replace(f'"{DEEP}"', deep).encode("utf-8", "surrogatepass")


def damaged_json(rng: Random, data: bytes) -> bytes:
    """A JSON file: half of the time its bytes are damaged, half of the time its tree."""
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):  # damaged before
        return damaged(rng, data)
    return damaged(rng, data) if rng.random() < 0.4 else json_text(rng, damaged_tree(rng, tree))


def damaged_lines(rng: Random, data: bytes, line_of: Callable[[Random, bytes], bytes] = damaged_json) -> bytes:
    """A file of lines: some damaged by `line_of`, removed, repeated or swapped; or the bytes."""
    if rng.random() < 0.3:
        return damaged(rng, data)
    lines = data.splitlines()
    for _ in range(rng.choice((1, 2, 5))):
        if not lines:
            break
        at = rng.randrange(len(lines))
        match rng.randint(0, 4):
            case 0 | 1:
                lines[at] = line_of(rng, lines[at])
            case 2:
                del lines[at]
            case 3:
                lines.insert(rng.randrange(len(lines)), lines[at])
            case 4:
                other = rng.randrange(len(lines))
                lines[at], lines[other] = lines[other], lines[at]
    return b"\n".join(lines) + b"\n"


TYPES = [tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE,
         tarfile.FIFOTYPE, tarfile.CONTTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_SPARSE, tarfile.XHDTYPE,
         tarfile.XGLTYPE, b"z", b"\xff"]  # fmt: skip
FIELDS = {
    "name": (0, 100),
    "mode": (100, 8),
    "size": (124, 12),
    "mtime": (136, 12),
    "checksum": (148, 8),
    "type": (156, 1),
    "linkname": (157, 100),
    "magic": (257, 8),
    "prefix": (345, 155),
    "sparse": (386, 96),
}
PAX = ["path", "size", "linkpath", "GNU.sparse.major", "GNU.sparse.map", "GNU.sparse.size", "GNU.sparse.realsize",
       "hdrcharset", "mtime", "uid", "comment"]  # fmt: skip


def damaged_tar(rng: Random, data: bytes) -> bytes:
    """A tar: its bytes damaged, fields of its headers with the checksum set right again, or members put in."""
    match rng.randint(0, 3):
        case 0:
            return damaged(rng, data)
        case 1:
            return _with_member(rng, data)
        case _:
            out = bytearray(data)
            for _ in range(rng.choice((1, 1, 2, 5))):
                _edit_header(rng, out)
            return bytes(out)


def _edit_header(rng: Random, out: bytearray) -> None:
    headers = [at for at in range(0, len(out) - 511, 512) if out[at + 257 : at + 262] == b"ustar"]
    if not headers:
        return
    at = rng.choice(headers)
    field, (begin, size) = rng.choice(list(FIELDS.items()))
    if field == "type":
        value = rng.choice(TYPES)
    elif field in ("name", "linkname", "prefix"):
        value = rng.choice(NAMES).encode("utf-8", "surrogateescape")
    elif rng.random() < 0.5:
        value = f"{rng.choice(INTERESTING) % 8 ** (size - 1):0{size - 1}o}".encode()
    else:  # base 256, as GNU tar writes what is large or negative
        value = bytes([rng.choice((0x80, 0xFF))]) + (rng.choice(INTERESTING) % 256 ** (size - 1)).to_bytes(
            size - 1, "big"
        )
    out[at + begin : at + begin + size] = value[:size].ljust(size, b"\0")
    if field != "checksum":
        out[at + 148 : at + 156] = b" " * 8
        out[at + 148 : at + 156] = b"%06o\0 " % sum(out[at : at + 512])


def _with_member(rng: Random, data: bytes) -> bytes:
    """One member more, at the front or among the others: a link, a device, a PAX header, a huge or negative size."""
    info = tarfile.TarInfo(rng.choice(NAMES).replace("\0", "") or "x")
    info.type = rng.choice(TYPES[:8])
    info.linkname = rng.choice(NAMES).replace("\0", "")
    info.size = rng.choice((0, 0, 1, 512, 2**33, 2**63))
    if rng.random() < 0.5:
        info.pax_headers = {rng.choice(PAX): str(rng.choice(ODD)) for _ in range(rng.randint(1, 3))}
    stream = io.BytesIO()
    form = tarfile.PAX_FORMAT if info.pax_headers else tarfile.GNU_FORMAT
    try:
        stream.write(info.tobuf(form, "utf-8", "surrogateescape"))
    except (ValueError, UnicodeError):
        return damaged(rng, data)
    at = rng.choice([0, *(at for at in range(0, len(data), 512) if data[at + 257 : at + 262] == b"ustar")])
    padding = b"\0" * min(512, -(-info.size // 512) * 512)
    return data[:at] + stream.getvalue() + padding + data[at:]
