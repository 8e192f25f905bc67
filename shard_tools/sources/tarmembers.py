"""Stream the members of a tar file, or of a tar inside another file, without extracting them."""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

MAX_HEADER_BYTES = 1 << 20  # maximum size of the long names and PAX fields before a member


class _Headers:
    """The stream for tarfile, which reads only headers. Limits their size: a damaged header could claim any size, and
    tarfile would allocate it."""

    def __init__(self, stream: BinaryIO) -> None:
        self.tell, self.seek, self._read = stream.tell, stream.seek, stream.read

    def read(self, size: int) -> bytes:
        if size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._read(size)


def iterate_tar(path: Path, start: int = 0, end: int | None = None) -> Iterator[tarfile.TarInfo]:
    """Yield every member except directories, in order; `offset_data` counts from the start of the file.

    The tar occupies bytes `start`…`end` of the file; by default the whole file.

    Raises:
        ValueError: the tar is compressed, damaged or truncated. OSError: it cannot be read.
    """
    with open(path, "rb") as stream:
        end = path.stat().st_size if end is None else end
        stream.seek(start)
        head = stream.read(6)
        if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")):
            raise ValueError(f"{path}: is a compressed tar and cannot be read in place; decompress it first")
        stream.seek(start)
        try:
            with tarfile.open(fileobj=_Headers(stream), mode="r:") as tar:  # type: ignore[call-overload]
                while (member := tar.next()) is not None:
                    tar.members.clear()  # otherwise it keeps every header in memory
                    if member.offset_data + member.size > end:
                        raise tarfile.ReadError(f"{member.name} ends after byte {end}")
                    if member.issparse():
                        raise tarfile.ReadError(f"{member.name} is stored as a sparse file")
                    if not member.isdir():
                        yield member
                last = tar.offset
        except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
            raise ValueError(f"{path}: is damaged or not a tar ({error}); get a new copy") from None
        stream.seek(last)  # tarfile accepts anything that is not a header as the end
        if last + tarfile.BLOCKSIZE > end or any(stream.read(tarfile.BLOCKSIZE)):
            raise ValueError(f"{path}: is damaged (neither a member nor an end at byte {last}); get a new copy")
