"""Write tars that are byte-identical to those of `webdataset.TarWriter` (tested), in a fifth of `tarfile`'s time.

This does not use webdataset, because importing it imports torch: 5 s and 0.4 GB in every worker.
"""

import hashlib
import tarfile
from typing import BinaryIO

BLOCK = tarfile.BLOCKSIZE
FLUSH_BYTES = 1 << 20
_ZEROS = bytes(tarfile.RECORDSIZE)


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = size
    member.mode = 0o444
    member.mtime = 0  # an int: a float costs a PAX header of 1 KiB
    member.uname = member.gname = "bigdata"
    return member.tobuf(tarfile.USTAR_FORMAT)


_BLANK = bytearray(_header("", 0))  # POSIX ustar: name at 0, size at 124, checksum (with itself as spaces) at 148
_BLANK[124:136], _BLANK[148:156] = bytes(12), b" " * 8
_BLANK_SUM, _BEFORE_SUM, _AFTER_SUM, _NAME_BYTES = sum(_BLANK), bytes(_BLANK[136:148]), bytes(_BLANK[156:]), 100
_AFTER_NAME = bytes(_BLANK[100:124])


def header(name: str, size: int) -> bytes:
    """(512,) the ustar header of a file with fixed metadata. Raises ValueError if the name or the size is too large."""
    raw = name.encode()
    if len(raw) > _NAME_BYTES or size >= 8**11:
        return _header(name, size)
    digits = b"%011o\0" % size
    checksum = _BLANK_SUM + sum(raw) + sum(digits)
    return b"%b%b%b%b%06o\0 %b" % (
        raw.ljust(_NAME_BYTES, b"\0"),
        _AFTER_NAME,
        digits,
        _BEFORE_SUM,
        checksum,
        _AFTER_SUM,
    )


class TarWriter:
    """Appends members to a binary stream and hashes what it writes. `close` ends the tar, not the stream."""

    def __init__(self, stream: BinaryIO):
        self.stream = stream
        self.sha256 = hashlib.sha256()
        self.size_bytes = 0  # of what has been added
        self._pieces: list[bytes] = []
        self._pending = 0

    def add(self, name: str, payload: bytes) -> int:
        """Append a member; returns the payload's offset in the tar."""
        size = len(payload)
        padding = -size % BLOCK
        offset = self.size_bytes + BLOCK
        self._pieces += (header(name, size), payload, _ZEROS[:padding])
        self.size_bytes = offset + size + padding
        self._pending += BLOCK + size + padding
        if self._pending >= FLUSH_BYTES:
            self._flush()
        return offset

    def close(self) -> None:
        end = 2 * BLOCK
        end += -(self.size_bytes + end) % tarfile.RECORDSIZE
        self._pieces.append(_ZEROS[:end].ljust(end, b"\0"))
        self.size_bytes += end
        self._flush()

    def _flush(self) -> None:
        data = b"".join(self._pieces)
        self.sha256.update(data)
        self.stream.write(data)
        self._pieces.clear()
        self._pending = 0


def member_bytes(size: int) -> int:
    """The bytes that a payload of `size` bytes occupies in a tar, including its header."""
    return BLOCK + size + -size % BLOCK
