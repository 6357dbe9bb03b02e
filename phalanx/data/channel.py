"""What a channel is: where its data lies, what it is, how it is spread over the workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, final

from ..errors import UserError, nearest

SPREADS = ("shard", "replicate")
MODES = ("file", "stream")
COMPRESSIONS = ("none", "gzip", "zstd")
_ALIASES = {
    "text/csv": "csv",
    "csv": "csv",
    "text/libsvm": "libsvm",
    "text/x-libsvm": "libsvm",
    "libsvm": "libsvm",
    "application/x-recordio-protobuf": "recordio",
    "recordio-protobuf": "recordio",
    "recordio": "recordio",
    "application/x-parquet": "parquet",
    "parquet": "parquet",
    "application/jsonlines": "jsonlines",
    "application/x-jsonlines": "jsonlines",
    "jsonlines": "jsonlines",
    "application/json": "json",
    "text/plain": "text",
    "text": "text",
}
_SUFFIXES = {
    ".csv": "csv",
    ".libsvm": "libsvm",
    ".svm": "libsvm",
    ".svmlight": "libsvm",
    ".recordio": "recordio",
    ".rec": "recordio",
    ".pbr": "recordio",
    ".parquet": "parquet",
    ".jsonl": "jsonlines",
    ".jsonlines": "jsonlines",
    ".ndjson": "jsonlines",
    ".txt": "text",
    ".json": "json",
}
_PARAMETERS: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "csv": {"label_size": (0, 1), "weight_size": (0, 1)},
    "libsvm": {"index_base": (0, 1)},
    "parquet": {"label_size": (0, 1), "weight_size": (0, 1)},
}


@dataclass(frozen=True, slots=True)
class ContentType:
    """A content type taken apart."""

    format: str  # csv, libsvm, recordio, parquet, jsonlines, json, text
    label_size: int | None = None  # None: the reader's default
    weight_size: int = 0
    index_base: int | None = None


@final
@dataclass(frozen=True)
class Channel:
    """One named input of a job.

    Args:
        url: a path or any fsspec URL of a file, a folder or a glob; or several of them.
        content_type: as "text/csv;label_size=0"; default: by the file's name.
        spread: "shard": every row goes to one worker; "replicate": every worker sees all rows; default: `train` is sharded, the
            others are replicated.
        mode: "file": remote files are copied before training; "stream": they are read as they are needed, in bounded memory.
        compression: "none", "gzip", "zstd"; default: found out from the files.

    Raises:
        UserError: a value that is not allowed.
    """

    url: str | Sequence[str]
    content_type: str | None = None
    spread: str | None = None
    mode: str = "file"
    compression: str | None = None

    def __post_init__(self) -> None:
        if not self.urls or not all(isinstance(url, str) and url for url in self.urls):
            raise UserError(f"a channel needs a URL, or a list of URLs, not {self.url!r}")
        if self.content_type is not None:
            parse_content_type(self.content_type)
        for name, value, allowed in (
            ("spread", self.spread, SPREADS),
            ("mode", self.mode, MODES),
            ("compression", self.compression, COMPRESSIONS),
        ):
            if value is not None and value not in allowed:
                raise UserError(f"{name}={value} is not allowed for a channel; {nearest(str(value), allowed)}")

    @property
    def urls(self) -> list[str]:
        """The URLs as a list."""
        return [self.url] if isinstance(self.url, str) else list(self.url)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values that `Channel(**values)` takes."""
        return {
            "url": self.urls,
            "content_type": self.content_type,
            "spread": self.spread,
            "mode": self.mode,
            "compression": self.compression,
        }


def parse_content_type(text: str) -> ContentType:
    """Return a content type taken apart.

    Raises:
        UserError: an unknown type or parameter, with the nearest known one.
    """
    name, *given = [part.strip() for part in text.split(";")]
    format = _ALIASES.get(name.lower())
    if format is None:
        raise UserError(f"content type '{name}' is not known; {nearest(name.lower(), _ALIASES)}")
    allowed = _PARAMETERS.get(format, {})
    values: dict[str, int] = {}
    for part in filter(None, given):
        key, _, value = (piece.strip() for piece in part.partition("="))
        if key == "charset":
            continue
        if key not in allowed:
            known = nearest(key, allowed) if allowed else "it takes none"
            raise UserError(f"content type '{name}' has no parameter '{key}'; {known}")
        if value not in [str(number) for number in allowed[key]]:
            raise UserError(
                f"{key}={value} in content type '{text}' is not allowed: it must be {' or '.join(map(str, allowed[key]))}"
            )
        values[key] = int(value)
    return ContentType(format, values.get("label_size"), values.get("weight_size", 0), values.get("index_base"))


def guess_content_type(file_name: str) -> ContentType:
    """Return the content type that a file's name says.

    Raises:
        UserError: the name says nothing.
    """
    path = PurePosixPath(file_name.split("?")[0].lower())
    suffixes = [s for s in path.suffixes if s not in (".gz", ".gzip", ".zst", ".zstd")]
    format = _SUFFIXES.get(suffixes[-1]) if suffixes else None
    if format is None:
        raise UserError(
            f"the name {path.name} does not say what the file holds; give a content type, as text/csv or text/libsvm"
        )
    return ContentType(format)


def says(channel: Channel, format: str) -> bool:
    """Return whether a channel's content type, or else one of its names, says that it holds `format`."""
    if channel.content_type is not None:
        return parse_content_type(channel.content_type).format == format
    return any(PurePosixPath(url.split("?")[0].lower()).match(f"*{end}*") for url in channel.urls for end in _ends_of(format))


def _ends_of(format: str) -> list[str]:
    return [suffix for suffix, found in _SUFFIXES.items() if found == format]


def parse_channel(text: str) -> tuple[str, Channel]:
    """Return name and channel from `NAME=URL,content_type=…,spread=…,mode=…` (the command line's form)."""
    name, equals, rest = text.partition("=")
    if not equals or not name or not rest:
        raise UserError(f"--channel takes NAME=URL[,content_type=…][,spread=…][,mode=…], not '{text}'")
    known = ("content_type", "spread", "mode", "compression")
    urls: list[str] = []
    fields: dict[str, str] = {}
    for part in rest.split(","):
        key, found, value = part.partition("=")
        if found and key in known:
            fields[key] = value
        elif found and not urls:
            urls.append(part)
        elif found and "/" not in key:
            raise UserError(f"--channel {name} has no field '{key}'; {nearest(key, known)}")
        else:
            urls.append(part)
    return name, Channel(url=urls[0] if len(urls) == 1 else urls, **fields)
