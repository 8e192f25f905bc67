"""The members of a tar, streamed: of a file, or of a tar that lies inside another file. Nothing is extracted."""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

MAX_HEADER_BYTES = 1 << 20  # of the long names and PAX fields before a member


class _Headers:
    """What tarfile reads of a tar, which is headers alone: it would ask for as much memory as a damaged one says."""

    def __init__(self, stream: BinaryIO) -> None:
        self.tell, self.seek, self._read = stream.tell, stream.seek, stream.read

    def read(self, size: int) -> bytes:
        if size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._read(size)


def iterate_tar(path: Path, start: int = 0, end: int | None = None) -> Iterator[tarfile.TarInfo]:
    """Every member but directories, in order; `offset_data` counts from the start of the file.

    The tar lies in bytes `start`…`end` of the file (the whole of it, unless told otherwise).

    Raises:
        ValueError: it is compressed, damaged or cut short. OSError: it cannot be read.
    """
    with open(path, "rb") as stream:
        end = path.stat().st_size if end is None else end
        stream.seek(start)
        head = stream.read(6)
        if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")):
            raise ValueError(f"{path}: is a compressed tar, whose members cannot be read in place; decompress it first")
        stream.seek(start)
        try:
            with tarfile.open(fileobj=_Headers(stream), mode="r:") as tar:  # type: ignore[call-overload]
                while (member := tar.next()) is not None:
                    tar.members.clear()  # else it keeps every header in memory
                    if member.offset_data + member.size > end:
                        raise tarfile.ReadError(f"{member.name} ends beyond byte {end}")
                    if member.issparse():
                        raise tarfile.ReadError(f"{member.name} is stored as a sparse file")
                    if not member.isdir():
                        yield member
                last = tar.offset
        except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
            raise ValueError(f"{path}: is not a whole tar ({error}); get it again") from None
        stream.seek(last)  # tarfile takes anything that is no header for the end
        if last + tarfile.BLOCKSIZE > end or any(stream.read(tarfile.BLOCKSIZE)):
            raise ValueError(f"{path}: is not a whole tar (no member and no end at byte {last}); get it again")
