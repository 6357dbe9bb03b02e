"""What a model is asked and what it answers, in the shapes that users of managed inference know."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from tempfile import NamedTemporaryFile
from typing import BinaryIO, final

import numpy as np

from .. import storage
from ..contracts import Array, Features, Json
from ..errors import UserError, nearest
from .agree import printable
from .channel import ContentType, guess_content_type, parse_content_type
from .format import Options
from .formats import format_named
from .json_rows import features_of
from .json_stream import instances, member
from .source import Source

_END = 1 << 16  # bytes at both ends of a document in which its configuration may stand
_ACCEPTS = {
    "application/json": "json",
    "json": "json",
    "application/jsonlines": "jsonlines",
    "jsonlines": "jsonlines",
    "text/csv": "csv",
    "csv": "csv",
    "application/x-recordio-protobuf": "recordio",
}


def read_requests(
    url: str, content_type: str | None, *, columns: int | None, batch_rows: int, index_base: int = 1
) -> Iterator[Features]:
    """Yield the requests at `url`, at most `batch_rows` at a time, in bounded memory.

    Args:
        url: a file, a folder or a glob.
        content_type: of the requests; None: by the files' names. Labels in libsvm and recordio rows are left out of account.
        columns: features that the model takes; None: those of the data.
        batch_rows: rows at a time.
        index_base: of libsvm rows whose content type does not say.

    Raises:
        UserError: what cannot be read, with its line or number.
    """
    for file in storage.list_files(url):
        content = parse_content_type(content_type) if content_type else guess_content_type(file.url)
        yield from _read(Source(file), content, columns, batch_rows, index_base)


def decode(body: bytes, content_type: str, *, columns: int | None, index_base: int = 1) -> Features:
    """Return the features of one request's body.

    Raises:
        UserError: what cannot be read.
    """
    with NamedTemporaryFile() as file:
        file.write(body)
        file.flush()
        source = Source(storage.File(file.name, len(body)), "none", name="the request")
        pieces = list(_read(source, parse_content_type(content_type), columns, 1 << 62, index_base))
    if not pieces:
        raise UserError("the request holds no rows")
    return pieces[0]


def _read(source: Source, content: ContentType, columns: int | None, batch_rows: int, index_base: int) -> Iterator[Features]:
    try:
        if content.format == "json":
            yield from _read_document(source, columns, batch_rows)
        else:
            yield from _read_rows(source, content, columns, batch_rows, index_base)
    except UserError as error:
        raise UserError(printable(error.message)) from None
    finally:
        source.close()


def _read_document(source: Source, columns: int | None, batch_rows: int) -> Iterator[Features]:
    configuration = _configuration(source) if columns is None else None  # rows of numbers have none
    found = _configured(instances(_from_start(source), source.name), configuration)
    first = 0
    while some := list(islice(found, batch_rows)):

        def where(i: int, first: int = first) -> str:
            return f"{source.name} instance {first + i + 1}"

        yield features_of(some, where, columns)
        first += len(some)


def _from_start(source: Source) -> Callable[[int], bytes]:
    place = 0

    def read(size: int) -> bytes:
        nonlocal place
        data = source.read(place, size)
        place += len(data)
        return data

    return read


def _configuration(source: Source) -> Json:
    """Return what a document wants of all its instances, None where it says nothing; it may stand before or after them."""
    if source.compression == "none":
        size = source.stored_size
        ends = source.read(0, min(_END, size)) + source.read(max(0, size - _END), min(_END, size))
        if b'"configuration"' not in ends:
            return None
    return member(_from_start(source), source.name, "configuration")


def _configured(found: Iterator[Json], configuration: Json) -> Iterator[Json]:
    """Yield instances, records with the document's configuration where they have none of their own."""
    for instance in found:
        is_record = isinstance(instance, dict) and not {"features", "data"} & instance.keys()
        if configuration is not None and is_record:
            yield {"configuration": configuration, **instance}
        elif configuration is not None and isinstance(instance, str):
            yield {"configuration": configuration, "source": instance}
        else:
            yield instance


def _read_rows(
    source: Source, content: ContentType, columns: int | None, batch_rows: int, index_base: int
) -> Iterator[Features]:
    format = format_named(content.format)
    options = Options(
        label_size=content.label_size or 0,
        weight_size=content.weight_size,
        index_base=index_base if content.index_base is None else content.index_base,
        columns=columns,
    )
    index = format.index(source, options)
    if columns is not None and index.columns is not None and not index.sparse and index.columns != columns:
        more = index.columns == columns + 1 and content.format in ("csv", "parquet") and not content.label_size
        hint = "; if the first is a label, say ;label_size=1 in the content type" if more else ""
        raise UserError(f"{source.name} has {index.columns} feature columns, the model takes {columns}{hint}")
    for start in range(0, index.rows, batch_rows):
        yield format.read(source, index, start, min(index.rows, start + batch_rows), options).features


@final
class ResponseWriter:
    """Writes answers as they come: `application/json` (one document), `application/jsonlines`, `text/csv`, recordio-protobuf.

    Args:
        out: where the bytes go.
        accept: the content type of the answers.
        name: of their list in a JSON document.

    Raises:
        UserError: an unknown content type.
    """

    def __init__(self, out: BinaryIO, accept: str, name: str = "predictions") -> None:
        kind = _ACCEPTS.get(accept.split(";")[0].strip().lower())
        if kind is None:
            raise UserError(f"answers cannot be written as '{accept}'; {nearest(accept, _ACCEPTS)}")
        self._out = out
        self._kind = kind
        self._opening = f'{{"{name}": ['
        self._begun = False

    def write(self, columns: Mapping[str, Array]) -> None:
        """Write a row per request; every column has shape (N,) or (N, K), or fields that have."""
        if self._kind == "recordio":
            from .formats.recordio import encode_label_records

            self._out.write(encode_label_records(columns))
            return
        rows = self._csv_rows(columns) if self._kind == "csv" else self._json_rows(columns)
        if self._kind == "json":
            text = (", " if self._begun else self._opening) + ", ".join(rows)
        else:
            text = "".join(row + "\n" for row in rows)
        self._begun = True
        self._out.write(text.encode())

    def close(self) -> None:
        """Finish the document; `out` stays open."""
        if self._kind == "json":
            self._out.write(("" if self._begun else self._opening).encode() + b"]}\n")

    def _json_rows(self, columns: Mapping[str, Array]) -> list[str]:
        texts = [[f"{json.dumps(name)}: {cell}" for cell in _json_cells(column)] for name, column in columns.items()]
        return ["{" + ", ".join(row) + "}" for row in zip(*texts, strict=True)]

    def _csv_rows(self, columns: Mapping[str, Array]) -> list[str]:
        flat = [part for column in columns.values() for part in _parts(column)]
        texts = [_joined(_texts(part, ""), part, "", ",", "") for part in flat]
        return [",".join(row) for row in zip(*texts, strict=True)]


def _parts(column: Array) -> list[Array]:
    """Return the fields of a record array, or the column itself."""
    return [column[name] for name in column.dtype.names] if column.dtype.names else [column]


def _json_cells(column: Array) -> list[str]:
    if column.dtype.names:  # a record array: an object of its fields
        fields = [[f"{json.dumps(name)}: {cell}" for cell in _json_cells(column[name])] for name in column.dtype.names]
        return ["{" + ", ".join(row) + "}" for row in zip(*fields, strict=True)]
    texts = _texts(column, "null")
    kind = np.asarray(column).dtype.kind
    if kind in "OU":
        texts = [json.dumps(text) for text in texts]
    elif kind == "b":
        texts = [text.lower() for text in texts]
    return _joined(texts, column, "[", ", ", "]")


def _texts(column: Array, missing: str) -> list[str]:
    """Return every value of a column as text; numbers in their shortest form that reads back the same."""
    flat = np.asarray(column).ravel()
    text = flat.astype(str)
    if flat.dtype.kind == "f":
        text = np.where(np.isfinite(flat), text, missing)
    found: list[str] = text.tolist()
    return found


def _joined(texts: list[str], column: Array, opening: str, separator: str, closing: str) -> list[str]:
    """Return a text for each row of a column from those of its values."""
    if np.ndim(column) == 1:
        return texts
    width = int(np.prod(np.shape(column)[1:]))
    return [opening + separator.join(texts[i * width : (i + 1) * width]) + closing for i in range(len(column))]
