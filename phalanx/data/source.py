"""Bytes of one file by offset, compressed or not, in bounded memory."""

from __future__ import annotations

import gzip
import zlib
from typing import BinaryIO, cast, final

from .. import storage
from ..errors import UserError

CHUNK = 4 << 20
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_HISTORY = 8 << 20


@final
class Source:
    """A file's bytes, decompressed.

    Reading forward goes at full speed. Going back is free in a plain file; in a compressed one it is so within the last 8 MiB
    and starts over beyond.

    Args:
        file: what to read.
        compression: "none", "gzip", "zstd", or None to find out from the first bytes.
    """

    def __init__(self, file: storage.File, compression: str | None = None) -> None:
        self.name = file.name
        self._file = file
        self._raw = storage.open_reader(file.url)
        self._compression = compression or self._detect()
        self._stream: BinaryIO | None = None
        self._buffer = bytearray()  # the last bytes decompressed
        self._buffer_start = 0

    @property
    def plain(self) -> bool:
        """Whether the bytes are those of the file."""
        return self._compression == "none"

    @property
    def raw(self) -> BinaryIO:
        """The file itself, for libraries that read a format of their own; seekable."""
        return self._raw

    @property
    def size(self) -> int | None:
        """Bytes of a plain file; None for a compressed one."""
        return self._file.size if self.plain else None

    def read(self, offset: int, size: int) -> bytes:
        """Return at most `size` bytes from `offset`; fewer only at the end.

        Raises:
            UserError: the file is damaged.
        """
        if self.plain:
            self._raw.seek(offset)
            return _read_all(self._raw, size)
        try:
            return self._read_compressed(offset, size)
        except (OSError, EOFError, zlib.error, _zstd_error()) as error:
            raise UserError(f"{self.name} is damaged: not readable as {self._compression}: {error}") from None

    def close(self) -> None:
        """Give the file back."""
        if self._stream is not None:
            self._stream.close()
        self._raw.close()

    def _detect(self) -> str:
        head = self._raw.read(4)
        self._raw.seek(0)
        return "gzip" if head[:2] == _GZIP else "zstd" if head == _ZSTD else "none"

    def _read_compressed(self, offset: int, size: int) -> bytes:
        if self._stream is None or offset < self._buffer_start:
            self._restart()
        stream = cast(BinaryIO, self._stream)
        while self._buffer_start + len(self._buffer) < offset + size:
            data = stream.read(min(CHUNK, max(1 << 16, offset + size - self._buffer_start - len(self._buffer))))
            if not data:
                break
            self._buffer += data
            surplus = min(len(self._buffer) - _HISTORY, offset - self._buffer_start)
            if surplus > 0:
                del self._buffer[:surplus]
                self._buffer_start += surplus
        begin = offset - self._buffer_start
        return bytes(self._buffer[begin : begin + size])

    def _restart(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._raw = storage.open_reader(self._file.url)
        self._buffer, self._buffer_start = bytearray(), 0
        self._raw.seek(0)
        if self._compression == "gzip":
            self._stream = cast(BinaryIO, gzip.GzipFile(fileobj=self._raw, mode="rb"))
        else:
            import zstandard

            reader = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(self._raw, read_across_frames=True)
            self._stream = cast(BinaryIO, reader)


def _read_all(raw: BinaryIO, size: int) -> bytes:
    """Read until `size` bytes are there or the file ends (raw and remote files may give less at once)."""
    data = raw.read(size)
    if len(data) == size or not data:
        return data
    parts = [data]
    size -= len(data)
    while size and (data := raw.read(size)):
        parts.append(data)
        size -= len(data)
    return b"".join(parts)


def _zstd_error() -> type[Exception]:
    import zstandard

    return cast(type[Exception], zstandard.ZstdError)
