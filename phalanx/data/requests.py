"""What a model is asked and what it answers, in the shapes that users of managed inference know."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from tempfile import NamedTemporaryFile
from typing import BinaryIO, final

import numpy as np

from .. import storage
from ..contracts import Array, Features, Json
from ..errors import UserError, nearest
from .channel import ContentType, guess_content_type, parse_content_type
from .format import Options
from .formats import format_named
from .json_rows import features_of, kind_of, parse_json
from .source import Source

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
    """Yield the requests at `url`, about `batch_rows` at a time, in bounded memory (a JSON document is read whole).

    Args:
        url: a file, a folder or a glob.
        content_type: of the requests; None: by the files' names. Labels in libsvm rows are left out of account.
        columns: features that the model takes; None: those of the data.
        batch_rows: rows at a time.
        index_base: of libsvm rows whose content type does not say.

    Raises:
        UserError: what cannot be read, with its line or number.
    """
    for file in storage.list_files(url):
        content = parse_content_type(content_type) if content_type else guess_content_type(file.url)
        if content.format == "json":
            document = parse_json(storage.read_bytes(file.url), file.name)
            instances = _instances(document, file.name)
            for start in range(0, len(instances), batch_rows):
                yield _decoded(instances[start : start + batch_rows], file.name, start, columns)
        else:
            yield from _read_rows(file, content, columns, batch_rows, index_base)


def decode(body: bytes, content_type: str, *, columns: int | None, index_base: int = 1) -> Features:
    """Return the features of one request's body.

    Raises:
        UserError: what cannot be read.
    """
    content = parse_content_type(content_type)
    if content.format == "json":
        return _decoded(_instances(parse_json(body, "the request"), "the request"), "the request", 0, columns)
    with NamedTemporaryFile() as file:
        file.write(body)
        file.flush()
        named = storage.File(file.name, len(body))
        try:
            pieces = list(_read_rows(named, content, columns, 1 << 62, index_base))
        except UserError as error:
            raise UserError(error.message.replace(file.name, "the request")) from None
    if not pieces:
        raise UserError("the request holds no rows")
    return pieces[0]


def _read_rows(
    file: storage.File, content: ContentType, columns: int | None, batch_rows: int, index_base: int
) -> Iterator[Features]:
    source = Source(file)
    try:
        format = format_named(content.format)
        options = Options(
            label_size=content.label_size or 0,
            weight_size=content.weight_size,
            index_base=index_base if content.index_base is None else content.index_base,
            columns=columns,
        )
        index = format.index(source, options)
        for start in range(0, index.rows, batch_rows):
            yield format.read(source, index, start, min(index.rows, start + batch_rows), options).features
    finally:
        source.close()


def _instances(document: Json, name: str) -> list[Json]:
    found = document.get("instances") if isinstance(document, dict) else document
    if not isinstance(found, list) or not found:
        raise UserError(f'{name} must be {{"instances": [...]}} with at least one instance')
    return found


def _decoded(instances: Sequence[Json], name: str, first: int, columns: int | None) -> Features:
    def where(i: int) -> str:
        return f"{name} instance {first + i + 1}"

    known = columns if kind_of(instances[0]) == "sparse" else None
    return features_of(instances, where, known)


@final
class ResponseWriter:
    """Writes answers as they come: `application/json` (one document), `application/jsonlines`, `text/csv`, recordio-protobuf.

    Args:
        out: where the bytes go.
        accept: the content type of the answers.

    Raises:
        UserError: an unknown content type.
    """

    def __init__(self, out: BinaryIO, accept: str) -> None:
        kind = _ACCEPTS.get(accept.split(";")[0].strip().lower())
        if kind is None:
            raise UserError(f"answers cannot be written as '{accept}'; {nearest(accept, _ACCEPTS)}")
        self._out = out
        self._kind = kind
        self._begun = False

    def write(self, columns: Mapping[str, Array]) -> None:
        """Write a row per request; every column has shape (N,) or (N, K)."""
        if self._kind == "recordio":
            from .formats.recordio import encode_label_records

            self._out.write(encode_label_records(columns))
            return
        rows = self._csv_rows(columns) if self._kind == "csv" else self._json_rows(columns)
        if self._kind == "json":
            text = ("" if self._begun else '{"predictions": [') + (", " if self._begun else "") + ", ".join(rows)
        else:
            text = "".join(row + "\n" for row in rows)
        self._begun = True
        self._out.write(text.encode())

    def close(self) -> None:
        """Finish the document; `out` stays open."""
        if self._kind == "json":
            self._out.write(b"]}\n" if self._begun else b'{"predictions": []}\n')

    def _json_rows(self, columns: Mapping[str, Array]) -> list[str]:
        texts = [[f'"{name}": {cell}' for cell in _cells(column, "null", "[", ", ", "]")] for name, column in columns.items()]
        return ["{" + ", ".join(row) + "}" for row in zip(*texts, strict=True)]

    def _csv_rows(self, columns: Mapping[str, Array]) -> list[str]:
        texts = [_cells(column, "", "", ",", "") for column in columns.values()]
        return [",".join(row) for row in zip(*texts, strict=True)]


def _cells(column: Array, missing: str, opening: str, separator: str, closing: str) -> list[str]:
    """Return each row of a column as text; numbers in their shortest form that reads back the same."""
    flat = np.asarray(column).ravel()
    text = flat.astype(str)
    if flat.dtype.kind == "f":
        text = np.where(np.isfinite(flat), text, missing)
    cells: list[str] = text.tolist()
    if np.ndim(column) == 1:
        return cells
    width = int(np.prod(np.shape(column)[1:]))
    return [opening + separator.join(cells[i : i + width]) + closing for i in range(0, len(cells), width)]
