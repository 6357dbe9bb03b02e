"""Files anywhere: the one home of fsspec. Listing, reading and fetching inputs; packing, publishing and unpacking artifacts.

Everything takes plain local paths and any fsspec URL (`s3://`, `gs://`, `memory://`, `https://`, …). URLs in error texts and
records always go through `redact`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Self, cast

import numpy as np

from . import environment
from .contracts import Array
from .errors import PlatformError, UserError

_CHUNK = 1 << 20
_PART = 16 << 20  # bytes that one request to a storage asks for
_PARTS_AT_ONCE = 8
_SLOWEST = 1 << 20  # bytes/s that a storage must move not to be given up
_PATIENCE_S = 60.0
_LISTING_PATIENCE_S = 300.0  # a million files are a thousand requests
_S3_PART = 50 << 20  # s3fs sends what is shorter than two of its parts in one request
_SKIPPED = ("_SUCCESS",)
_USERINFO = re.compile(r"(?<=://)[^/@\s]+@")
_QUERY = re.compile(r"([?&;][\w.%-]*(?:sig|signature|token|key|secret|password|credential)[\w.%-]*=)[^&;\s'\"]+", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class File:
    """One file of a channel."""

    url: str  # a local path or a URL
    size: int  # bytes

    @property
    def name(self) -> str:
        """The URL as it may be shown."""
        return redact(self.url)


def redact(text: str) -> str:
    """Return `text` without credentials: user:password@ of URLs, signed query values, secrets of the environment."""
    text = _QUERY.sub(r"\1***", _USERINFO.sub("***@", text))
    for secret in environment.secrets():
        text = text.replace(secret, "***")
    return text


def is_local(url: str) -> bool:
    """Return whether `url` is a path of this machine."""
    return "://" not in url or url.startswith("file://")


def local_path(url: str) -> Path:
    """Return the path of a local URL."""
    return Path(url.removeprefix("file://")).expanduser()


def join(url: str, *names: str) -> str:
    """Return `url` with `names` below it."""
    return "/".join([url.rstrip("/") or "/", *names])


def list_files(url: str) -> list[File]:
    """Return the files that `url` means, sorted by path: a file, a glob, a folder (recursed; hidden files, `_SUCCESS` skipped).

    Raises:
        UserError: there is nothing at `url`.
    """
    if is_local(url):
        return _list_local(local_path(url))
    fs, path = _filesystem(url)
    with _translated(url):
        if any(c in path for c in "*?["):
            found = {
                p: about
                for p, about in fs.glob(path, detail=True, **_patience(fs, _LISTING_PATIENCE_S)).items()
                if about.get("type") != "directory"
            }
        elif fs.isfile(path):
            return [File(url, int(fs.size(path) or 0))]
        else:
            found = fs.find(path, detail=True, **_patience(fs, _LISTING_PATIENCE_S))
        kept = sorted(p for p in found if _is_data(str(p)[len(path.rstrip("/")) :] if str(p).startswith(path) else str(p)))
        files = [File(fs.unstrip_protocol(p), int(found[p].get("size") or 0)) for p in kept]
    if not files:
        raise UserError(f"there is no file at {redact(url)}; give a file, a folder or a glob that exists")
    return files


def open_reader(url: str) -> BinaryIO:
    """Return a seekable reader of the bytes at `url`; what a storage raises, then or while it is read, comes as one of ours.

    Raises:
        UserError: there is no such file, or it may not be read.
        PlatformError: the storage does not answer.
    """
    if is_local(url):
        try:
            return local_path(url).open("rb")
        except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
            raise UserError(f"cannot read {url}: {error.strerror}") from None
    fs, path = _filesystem(url)
    with _translated(url):
        return cast(BinaryIO, _RemoteFile(url, fs.open(path, "rb")))


def fetched(files: Sequence[File], folder: Path) -> list[File]:
    """Return where `fetch` puts files: remote ones into `folder`, local ones stay where they are."""
    result = []
    for number, file in enumerate(files):
        name = PurePosixPath(file.url.split("?")[0]).name
        result.append(File(str(local_path(file.url) if is_local(file.url) else folder / f"{number:05d}-{name}"), file.size))
    return result


def fetch(files: Sequence[File], folder: Path) -> list[File]:
    """Copy remote files into `folder`; return all as local ones.

    Raises:
        UserError: a file is not there any more.
        PlatformError: a storage does not answer.
    """
    targets = fetched(files, folder)
    for file, target in zip(files, targets, strict=True):
        if not is_local(file.url):
            download(file.url, Path(target.url))
    return targets


def download(url: str, path: Path) -> None:
    """Copy the file at `url` to a local path, whose folders are made.

    Raises:
        UserError: there is no such file, or it may not be read.
        PlatformError: the storage does not answer.
    """
    with open_reader(url) as source:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as sink, _translated(url):
            shutil.copyfileobj(source, sink, _CHUNK)


def fingerprint(files: Sequence[File]) -> str:
    """Return a short hash of names and sizes, for provenance; contents are not read."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{redact(file.url)}\0{file.size}\n".encode())
    return digest.hexdigest()[:16]


def hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below `folder`, by its relative path."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            found[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def claim_folder(url: str) -> None:
    """Make the folder `url`, which must not exist or must be empty.

    Raises:
        UserError: it is there already, or it cannot be made.
    """
    taken = UserError(f"{redact(url)} exists already; give the job another --name, another --output, or remove it")
    if is_local(url):
        path = local_path(url)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir()
        except FileExistsError:
            if path.is_dir() and not any(path.iterdir()):
                return
            if not path.parent.is_dir():
                raise UserError(f"{path.parent} is no folder; give a place for folders with --output") from None
            raise taken from None
        except OSError as error:
            raise UserError(
                f"cannot make the folder {path}: {error.strerror}; give a place that can be written with --output"
            ) from None
        return
    fs, path_text = _filesystem(url)
    with _translated(url):
        if fs.exists(path_text) and (fs.isfile(path_text) or fs.find(path_text)):
            raise taken


def put_file(source: Path, url: str) -> None:
    """Copy a local file to `url`; readers see the old file or the whole new one, never a part."""
    if is_local(url):
        target = local_path(url)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        shutil.copyfile(source, partial)
        os.replace(partial, target)
        return
    fs, path = _filesystem(url)
    with _translated(url):
        fs.put_file(str(source), path)


def remove(url: str) -> None:
    """Remove the file at `url` where there is one."""
    if is_local(url):
        local_path(url).unlink(missing_ok=True)
        return
    fs, path = _filesystem(url)
    with _translated(url):
        if fs.exists(path):
            fs.rm_file(path)


def _list_local(path: Path) -> list[File]:
    text = str(path)
    if path.is_file():
        return [File(text, path.stat().st_size)]
    if path.is_dir():
        found: Iterable[Path] = (p for p in path.rglob("*") if p.is_file() and _is_data(p.relative_to(path).as_posix()))
    elif any(c in text for c in "*?["):
        anchor = Path(path.anchor or ".")
        found = (
            p
            for p in anchor.glob(str(path.relative_to(path.anchor) if path.anchor else path))
            if p.is_file() and _is_data(p.name)
        )
    else:
        raise UserError(f"there is no file at {path}; give a file, a folder or a glob that exists")
    files = [File(str(p), p.stat().st_size) for p in sorted(found)]
    if not files:
        raise UserError(f"there is no file in {path}; give a file, a folder or a glob that holds data")
    return files


def _is_data(relative: str) -> bool:
    parts = [part for part in relative.split("/") if part]
    return not any(part.startswith(".") for part in parts) and (not parts or parts[-1] not in _SKIPPED)


def _filesystem(url: str) -> tuple[Any, str]:
    import fsspec  # a fifth of a second that local jobs need not pay

    protocol = url.split("://", 1)[0]
    options = {"use_listings_cache": False} if protocol in ("s3", "s3a") else {}
    try:
        fs, path = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        extra = "s3" if protocol in ("s3", "s3a") else None
        hint = f"pip install 'phalanx-train[{extra}]'" if extra else str(error)
        raise UserError(f"{redact(url)}: support for {protocol}:// is not installed; {hint}") from None
    except ValueError as error:
        raise UserError(f"{redact(url)}: {error}") from None
    return fs, cast(str, path)


def _patience(fs: Any, seconds: float) -> dict[str, float]:
    """Return how to tell a file system to give up after so long; those without asyncio cannot be told."""
    return {"timeout": seconds} if getattr(fs, "async_impl", False) else {}


class _translated:
    """Turns what storages raise into our kinds: what is not there is the user's, what does not answer the platform's."""

    def __init__(self, url: str) -> None:
        self._url = redact(url)
        self._userinfo = [found.rstrip("@") for found in _USERINFO.findall(url)]  # libraries repeat it without its "://"

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, (UserError, PlatformError)) or not isinstance(error, Exception):
            return
        text = redact(str(error))
        for secret in self._userinfo:
            text = text.replace(secret, "***")
        if type(error).__name__ == "ParamValidationError":
            raise UserError(f"{self._url} is no address that this storage knows: {text.splitlines()[-1]}") from None
        if isinstance(error, FileNotFoundError):
            raise UserError(f"there is no file at {self._url}") from None
        if isinstance(error, PermissionError):
            raise UserError(f"no permission for {self._url}: {text}; check the credentials") from None
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise PlatformError(f"no room left for {self._url}: make room there, or give another place") from error
        raise PlatformError(f"{self._url}: {type(error).__name__}: {text}") from error


class _RemoteFile:
    """A file of a storage, open for reading."""

    def __init__(self, url: str, inner: Any) -> None:
        self._url = url
        self._inner = inner

    @property
    def closed(self) -> bool:
        return bool(self._inner.closed)

    def read(self, size: int = -1) -> bytes:
        with _translated(self._url):
            return cast(bytes, self._inner.read(size))

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with _translated(self._url):
            return int(self._inner.seek(offset, whence))

    def tell(self) -> int:
        return int(self._inner.tell())

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def flush(self) -> None:
        """Do nothing: nothing is written."""

    def close(self) -> None:
        self._inner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.close()


def read_bytes(url: str, limit: int = 1 << 30) -> bytes:
    """Return the bytes at `url`, at most `limit`."""
    with open_reader(url) as source:
        data = source.read(limit + 1)
    if len(data) > limit:
        raise UserError(f"{redact(url)} is larger than {limit} bytes")
    return data


def read_json(url: str) -> Any:
    """Return the JSON value in a file; None where there is no such file, or it holds none."""
    try:
        return json.loads(read_bytes(url))
    except (UserError, ValueError):
        return None


def fetch_file(url: str, path: Path) -> None:
    """Copy a file to a local path; nothing where there is none."""
    with contextlib.suppress(UserError):
        download(url, path)


@contextmanager
def replacing_writer(url: str) -> Iterator[BinaryIO]:
    """Write to `url` so that nothing is there unless all of it was written; `-` is standard output.

    Raises:
        UserError: it cannot be written there.
    """
    if url == "-":
        with io.FileIO(1, "wb", closefd=False) as out:
            yield cast(BinaryIO, out)
        return
    with tempfile.TemporaryDirectory(prefix="phalanx-write-") as folder:
        partial = Path(folder) / "partial"
        with partial.open("wb") as sink:
            yield sink
        try:
            put_file(partial, url)
        except OSError as error:
            raise UserError(f"cannot write {redact(url)}: {error.strerror}") from None


def put_bytes(url: str, data: bytes | memoryview) -> None:
    """Put `data` at `url` and on the disk; readers see what was there before or all of it, never a part.

    Raises:
        UserError: it may not be written there.
        PlatformError: the storage does not take it, has no room, or does not answer in time.
    """
    with _translated(url):
        if is_local(url):
            _put_local(local_path(url), data)
            return
        fs, path = _filesystem(url)
        if getattr(fs, "async_impl", False):  # these would wait for ever for a server that hangs
            patience_s = _PATIENCE_S + len(data) / _SLOWEST
            if "s3" in fs.protocol and len(data) >= 2 * _S3_PART:
                fs.pipe_file(path, _Parts(memoryview(data)), chunksize=_S3_PART, timeout=patience_s)
            else:
                fs.pipe_file(path, bytes(data), timeout=patience_s)
        else:
            fs.makedirs(fs._parent(path), exist_ok=True)
            fs.pipe_file(path, bytes(data))


def put_new(url: str, data: bytes) -> bool:
    """Put `data` where nothing is yet; return whether nothing was. Of several who try at once one succeeds.

    Raises:
        UserError: it may not be written there.
        PlatformError: the storage does not take it, or does not answer in time.
    """
    with _translated(url):
        if is_local(url):
            target = local_path(url)
            own = target.with_name(f".{target.name}.{secrets.token_hex(4)}.new")
            _put_local(own, data)
            try:
                os.link(own, target)
            except FileExistsError:
                return False
            finally:
                own.unlink()
            return True
        fs, path = _filesystem(url)
        if not getattr(fs, "async_impl", False):
            fs.makedirs(fs._parent(path), exist_ok=True)
        try:
            fs.pipe_file(path, data, mode="create", **_patience(fs, _PATIENCE_S))
        except FileExistsError:
            return False
        return True


def sizes_below(url: str) -> dict[str, int]:
    """Return the sizes of all files below the folder `url`, hidden ones too, by relative path; empty where there is none."""
    if is_local(url):
        root = str(local_path(url))
        return {name[len(root) :].lstrip("/"): size for name, size in _sizes_local(root)}
    fs, path = _filesystem(url)
    root = path.rstrip("/")
    with _translated(url):
        fs.invalidate_cache()
        try:
            found = fs.find(root, detail=True, **_patience(fs, _LISTING_PATIENCE_S))
        except FileNotFoundError:
            return {}
    return {str(name)[len(root) :].lstrip("/"): int(info.get("size") or 0) for name, info in found.items()}


def read_exactly(url: str, size: int) -> Array:
    """Return the bytes at `url` as a writable array (size,) of uint8.

    Raises:
        UserError: there is no file, or it has another size.
        PlatformError: the storage does not answer.
    """
    with _translated(url):
        if is_local(url):
            return _read_local(local_path(url), size)
        fs, path = _filesystem(url)
        options = _patience(fs, _PATIENCE_S + size / _SLOWEST)
        if size <= _PART:
            return _sized(url, np.frombuffer(bytearray(fs.cat_file(path, **options)), dtype=np.uint8), size)
        buffer = np.empty(size, dtype=np.uint8)
        starts = range(0, size, _PART)
        for first in range(0, len(starts), _PARTS_AT_ONCE):
            group = list(starts[first : first + _PARTS_AT_ONCE])
            ends = [start + _PART if start + _PART < size else size + 1 for start in group]  # one more: is it longer?
            parts = fs.cat_ranges([path] * len(group), group, ends, on_error="raise", **options)
            for start, part in zip(group, parts, strict=True):
                expected = min(_PART, size - start)
                buffer[start : start + expected] = _sized(url, np.frombuffer(part, dtype=np.uint8), expected)
        return buffer


def remove_below(url: str, names: Iterable[str]) -> None:
    """Remove the files `names` below the folder `url`, in this order, where they are; then local folders that got empty."""
    if is_local(url):
        root = local_path(url)
        with _translated(url):
            for name in names:
                (root / name).unlink(missing_ok=True)
                _remove_empty((root / name).parent, root)
        return
    fs, path = _filesystem(url)
    with _translated(url):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                fs.rm_file(f"{path.rstrip('/')}/{name}")


class _Parts:
    """Long data for s3fs, which cuts it into parts itself and needs each as `bytes`: no copy of the whole is made."""

    def __init__(self, data: memoryview) -> None:
        self._data = data

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, part: slice) -> bytes:
        return bytes(self._data[part])


def _put_local(path: Path, data: bytes | memoryview) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")  # a name of its own: others may write there too
    try:
        with partial.open("wb", buffering=0) as sink:
            view = memoryview(data)
            while view:
                view = view[sink.write(view[:_PART]) :]
            os.fsync(sink.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _sizes_local(root: str) -> Iterator[tuple[str, int]]:
    for folder, _, names in os.walk(root):
        for name in names:
            path = os.path.join(folder, name)
            with contextlib.suppress(FileNotFoundError):  # somebody removed it meanwhile
                yield path, os.stat(path).st_size


def _read_local(path: Path, size: int) -> Array:
    with path.open("rb", buffering=0) as source:
        _expect(str(path), os.fstat(source.fileno()).st_size, size)
        buffer = np.empty(size, dtype=np.uint8)
        view, done = buffer.data, 0
        while done < size:
            count = source.readinto(view[done : done + _PART])
            if not count:
                break
            done += count
    _expect(str(path), done, size)
    return buffer


def _expect(url: str, found: int, size: int) -> None:
    if found != size:
        raise UserError(f"{redact(url)} has {found} bytes where {size} were expected")


def _sized(url: str, data: Array, size: int) -> Array:
    _expect(url, len(data), size)
    return data


def _remove_empty(folder: Path, root: Path) -> None:
    while folder != root and root in folder.parents:
        try:
            folder.rmdir()
        except OSError:  # it holds something, or is gone
            return
        folder = folder.parent
