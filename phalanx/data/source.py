"""Bytes of one file by offset, compressed or not, in bounded memory."""

from __future__ import annotations

import gzip
import tempfile
import zlib
from pathlib import Path
from typing import BinaryIO, Protocol, cast, final

from .. import storage
from ..errors import UserError

CHUNK = 4 << 20
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_HISTORY = 8 << 20
_JUMPS = 4  # back, before a compressed file is unpacked to disk


class _Stream(Protocol):
    def read(self, size: int, /) -> bytes: ...
    def close(self) -> None: ...


class Decoder(Protocol):
    """What a format keeps for a file while it is open."""

    def close(self) -> None:
        """Give back what it holds but for the file itself."""
        ...


@final
class Source:
    """A file's bytes, decompressed; opened when it is first read.

    Reading forward goes at full speed. Going back is free in a plain file; in a compressed one it is so within the last 8 MiB
    and starts over beyond. A compressed file that is read here and there is unpacked to disk.

    Args:
        file: what to read.
        compression: "none", "gzip", "zstd", or None to find out from the first bytes.
        name: what errors call it; default: its URL without credentials.
        scratch: folder for unpacked copies; None: the system's.

    Attributes:
        decoder: what a format keeps for this file while it is open; dropped by `close`.
        scattered: its rows are being read here and there.
    """

    def __init__(
        self, file: storage.File, compression: str | None = None, *, name: str | None = None, scratch: Path | None = None
    ) -> None:
        self.name = file.name if name is None else name
        self.decoder: Decoder | None = None
        self.scattered = False
        self._file = file
        self._scratch = scratch
        self._compression = compression
        self._raw: BinaryIO | None = None
        self._stream: _Stream | None = None
        self._spool: BinaryIO | None = None
        self._jumps = 0
        self._buffer = bytearray()  # the last bytes decompressed
        self._buffer_start = 0

    @property
    def raw(self) -> BinaryIO:
        """The file itself, for libraries that read a format of their own; seekable."""
        if self._raw is None:
            self._raw = storage.open_reader(self._file.url)
        return self._raw

    @property
    def scratch(self) -> Path | None:
        """Folder for what is too large for memory."""
        return self._scratch

    @property
    def plain(self) -> bool:
        """Whether the bytes are those of the file."""
        return self.compression == "none"

    @property
    def compression(self) -> str:
        """How the file is compressed; "none" where it is not."""
        if self._compression is None:
            self.raw.seek(0)
            head = _read_all(self.raw, 4)
            self._compression = "gzip" if head[:2] == _GZIP else "zstd" if head == _ZSTD else "none"
        return self._compression

    @property
    def stored_size(self) -> int:
        """Bytes of the file as it is stored."""
        return self._file.size

    def read(self, offset: int, size: int) -> bytes:
        """Return at most `size` bytes from `offset`; fewer only at the end.

        Raises:
            UserError: the file is damaged.
        """
        if self.compression == "none":
            self.raw.seek(offset)
            return _read_all(self.raw, size)
        if self._spool is not None:
            self._spool.seek(offset)
            return self._spool.read(size)
        try:
            return self._read_compressed(offset, size)
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise UserError(f"{self.name} is damaged: it cannot be unpacked as {self.compression}: {error}") from None

    def close(self) -> None:
        """Give handles and memory back; the next read would open the file again."""
        self._close_stream()
        for handle in (self.decoder, self._raw, self._spool):
            if handle is not None:
                handle.close()
        self.decoder = self._raw = self._spool = None

    def _read_compressed(self, offset: int, size: int) -> bytes:
        if self._stream is None:
            self._restart()
        elif offset < self._buffer_start:
            self._jumps += 1
            self._restart()
            if self._jumps > _JUMPS:
                return self._read_unpacked(offset, size)
        stream = cast(_Stream, self._stream)
        while self._buffer_start + len(self._buffer) < offset + size:
            data = stream.read(min(CHUNK, max(1 << 16, offset + size - self._buffer_start - len(self._buffer))))
            if not data:
                self._jumps = 0  # a pass over the whole file is no jumping about
                break
            self._buffer += data
            surplus = min(len(self._buffer) - _HISTORY, offset - self._buffer_start)
            if surplus > 0:
                del self._buffer[:surplus]
                self._buffer_start += surplus
        begin = offset - self._buffer_start
        return bytes(self._buffer[begin : begin + size])

    def _read_unpacked(self, offset: int, size: int) -> bytes:
        stream = cast(_Stream, self._stream)
        if self._scratch is not None:
            self._scratch.mkdir(parents=True, exist_ok=True)
        spool = cast(BinaryIO, tempfile.TemporaryFile(dir=self._scratch))  # noqa: SIM115 - close() does
        try:
            while data := stream.read(CHUNK):
                spool.write(data)
        except BaseException:
            spool.close()
            raise
        self._close_stream()
        self._spool = spool
        spool.seek(offset)
        return spool.read(size)

    def _restart(self) -> None:
        self._close_stream()
        if self._raw is not None:
            self._raw.close()
            self._raw = None
        if self.compression == "gzip":
            self._stream = cast(_Stream, gzip.GzipFile(fileobj=self.raw, mode="rb"))
        else:
            import pyarrow  # its reader, unlike others, notices a file that is cut short

            self._stream = cast(_Stream, pyarrow.CompressedInputStream(self.raw, "zstd"))

    def _close_stream(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._stream = None
        self._buffer, self._buffer_start = bytearray(), 0


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
