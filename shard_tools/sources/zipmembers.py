"""Stream the members of a zip from its central directory, without extracting them.

No list of members is kept: `zipfile` needs about 1 KB for each, 2 GB for Kaggle's ImageNet.

Source: PKWARE's APPNOTE.TXT, sections 4.3.7 (local header), 4.3.12 (central directory), 4.3.14–16 (its ends), 4.5.3.
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from penstock.shard_tools.sources.base import Method, Place

END, LOCATOR, END64 = struct.Struct("<4s4H2IH"), struct.Struct("<4sIQI"), struct.Struct("<4sQ2H2I4Q")
CENTRAL, LOCAL = struct.Struct("<4s6H3I5H2I"), struct.Struct("<4s5H3I2H")
METHODS: dict[int, Method] = {0: "stored", 8: "deflate"}
ENCRYPTED, UTF8 = 0x1, 0x800


class ZipMember(NamedTuple):
    """One file in a zip; `place` finds its content. `stored_bytes` is the compressed size, `size_bytes` the size of the
    content."""

    name: str
    flags: int
    method: int
    stored_bytes: int
    size_bytes: int
    header: int


def iterate_zip(path: Path) -> Iterator[ZipMember]:
    """Yield every member except directories, in the order of the central directory.

    Raises:
        ValueError: the zip is damaged. OSError: it cannot be read.
    """
    with open(path, "rb") as stream:
        try:
            count, position = _directory(stream)
            stream.seek(position)
            for _ in range(count):
                fields = CENTRAL.unpack(stream.read(CENTRAL.size))
                if fields[0] != b"PK\1\2":
                    raise ValueError(f"no member at byte {stream.tell() - CENTRAL.size}")
                flags, method, name_bytes, extra_bytes, comment_bytes = (fields[i] for i in (3, 4, 10, 11, 12))
                name = stream.read(name_bytes).decode("utf-8" if flags & UTF8 else "cp437")
                extra = stream.read(extra_bytes)
                stream.seek(comment_bytes, os.SEEK_CUR)
                size, stored, header = _zip64(extra, [fields[9], fields[8], fields[16]])
                if not name.endswith("/"):
                    yield ZipMember(name, flags, method, stored, size, header)
        except (ValueError, struct.error) as error:
            raise ValueError(f"{path}: is damaged or not a zip ({error}); get a new copy") from None


def place(stream: BinaryIO, path: Path, member: ZipMember) -> Place:
    """The place of a member's content. `stream` is the open zip.

    Raises:
        ValueError: the member is encrypted, compressed with a method other than DEFLATE, or has a damaged local header.
    """
    if member.flags & ENCRYPTED:
        raise ValueError(f"{path}: {member.name} is encrypted; unzip the archive and give the directory")
    if member.method not in METHODS:
        raise ValueError(
            f"{path}: {member.name} uses the unsupported compression method {member.method}; unzip the archive and "
            "give the directory"
        )
    head = os.pread(stream.fileno(), LOCAL.size, member.header)
    if len(head) < LOCAL.size or not head.startswith(b"PK\3\4"):
        raise ValueError(f"{path}: is damaged (no {member.name} at byte {member.header}); get a new copy")
    name_bytes, extra_bytes = LOCAL.unpack(head)[-2:]  # this header's own: they may differ from the directory's
    offset = member.header + LOCAL.size + name_bytes + extra_bytes
    return Place(METHODS[member.method], str(path), offset, member.stored_bytes)


def _directory(stream: BinaryIO) -> tuple[int, int]:
    """Number of members and position of the central directory."""
    size = stream.seek(0, os.SEEK_END)
    start = max(0, size - END.size - 0xFFFF)  # a comment may follow
    stream.seek(start)
    tail = stream.read()
    at = tail.rfind(b"PK\5\6")
    if at < 0:
        raise ValueError("no end of central directory")
    count, position = (END.unpack_from(tail, at)[i] for i in (4, 6))
    if at >= LOCATOR.size and tail[at - LOCATOR.size :].startswith(b"PK\6\7"):
        stream.seek(LOCATOR.unpack_from(tail, at - LOCATOR.size)[2])
        end = END64.unpack(stream.read(END64.size))
        if end[0] != b"PK\6\6":
            raise ValueError("no zip64 end of central directory")
        count, position = end[7], end[9]
    return count, position


def _zip64(extra: bytes, values: list[int]) -> list[int]:
    """Size, stored size and header position. Values that do not fit 32 bits come from the zip64 field."""
    at = 0
    while 0xFFFFFFFF in values and at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            large = iter(struct.unpack_from(f"<{length // 8}Q", extra, at + 4))
            return [next(large, value) if value == 0xFFFFFFFF else value for value in values]
        at += 4 + length
    return values
