"""Model files: word2vec's text (both ways) and binary (read), fastText's binary (both ways), our own safetensors."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow
import pyarrow.csv
from safetensors.numpy import load_file, save_file

from ...contracts import Array
from ...errors import UserError
from .hyperparameters import BlazingTextHyperparameters
from .labels import has_tree
from .model import Model, reachable, stride_of
from .vocabulary import Vocabulary

_MAGIC, _VERSION = 793712314, 12  # fastText 0.9
_HIERARCHICAL, _NEGATIVES, _SOFTMAX, _ONE_VERSUS_ALL = 1, 2, 3, 4
_MODELS = {"cbow": 1, "skipgram": 2, "batch_skipgram": 2, "supervised": 3}
_ARGUMENTS = struct.Struct("<12id")
_CHUNK = 1 << 16  # rows that are converted at once
_LONGEST = 1 << 16  # bytes of a word


def write_text(path: Path, words: Sequence[bytes], vectors: Array) -> None:
    """Write word2vec's text format: a line `V D`, then a word and its numbers a line."""
    with path.open("wb") as file:
        file.write(f"{len(words)} {vectors.shape[1]}\n".encode())
        options = pyarrow.csv.WriteOptions(include_header=False, delimiter=" ")
        for at in range(0, len(words), _CHUNK):
            part = np.asfortranarray(vectors[at : at + _CHUNK])
            table = pyarrow.table({str(column): part[:, column] for column in range(part.shape[1])})
            out = io.BytesIO()
            pyarrow.csv.write_csv(table, out, options)
            lines = out.getvalue().split(b"\n")
            file.write(b"".join(b"%s %s\n" % pair for pair in zip(words[at : at + _CHUNK], lines, strict=False)))


def write_own(path: Path, model: Model) -> None:
    """Write all arrays of a model as safetensors."""
    vocabulary, size = model.vocabulary, model.dimension
    text = b"\n".join([*vocabulary.words, *vocabulary.labels])
    arrays: dict[str, Array] = {
        "words": np.frombuffer(text, np.uint8),
        "counts": vocabulary.counts,
        "label_counts": vocabulary.label_counts,
        "tokens": np.array([vocabulary.tokens]),
        "buckets": model.buckets,
        "inputs": np.ascontiguousarray(model.inputs[:, :size]),
        "outputs": np.ascontiguousarray(model.outputs[:, :size]),
    }
    save_file(arrays, path)


def read_own(path: Path, wanted: BlazingTextHyperparameters) -> Model:
    """Return the model that `write_own` wrote.

    Raises:
        UserError: the arrays do not fit each other.
    """
    try:
        arrays = load_file(path)
        names = arrays["words"].tobytes().split(b"\n")
        words, counts = len(arrays["counts"]), arrays["counts"]
        labels = arrays["label_counts"]
        inputs, outputs, buckets = _padded(arrays["inputs"]), _padded(arrays["outputs"]), arrays["buckets"]
        tokens = int(arrays["tokens"][0])
    except Exception as error:
        raise UserError(f"{path.name} holds no blazingtext model: {error}") from None
    fits = (
        len(names) == words + len(labels)
        and len(inputs) == words + len(buckets)
        and len(outputs) == (len(labels) if wanted.classifies else words)
        and arrays["inputs"].shape[1] == arrays["outputs"].shape[1] == wanted.vector_dim
        and (not len(buckets) or (buckets[0] >= 0 and buckets[-1] < wanted.buckets and (np.diff(buckets) > 0).all()))
    )
    if not fits:
        raise UserError(f"{path.name} holds no blazingtext model: its arrays do not fit each other or the hyperparameters")
    return Model(wanted, Vocabulary(names[:words], counts, names[words:], labels, tokens), buckets, inputs, outputs)


def write_fasttext(path: Path, model: Model) -> None:
    """Write fastText's binary format, version 12."""
    wanted, vocabulary = model.hyperparameters, model.vocabulary
    loss = _NEGATIVES
    if wanted.classifies:
        loss = _HIERARCHICAL if has_tree(wanted, len(vocabulary.labels)) else _SOFTMAX
    least, most = (wanted.min_char, wanted.max_char) if wanted.subwords and not wanted.classifies else (0, 0)
    grams = wanted.word_ngrams if wanted.classifies else 1
    with path.open("wb") as file:
        file.write(struct.pack("<ii", _MAGIC, _VERSION))
        file.write(
            _ARGUMENTS.pack(
                wanted.vector_dim, wanted.window_size, wanted.epochs, max(wanted.min_count, 1), wanted.negative_samples, grams,
                loss, _MODELS[wanted.mode], model.table_size, least, most, 100, wanted.sampling_threshold,
            )
        )  # fmt: skip
        words, labels = len(vocabulary.words), len(vocabulary.labels)
        file.write(struct.pack("<iiiqq", words + labels, words, labels, vocabulary.tokens, -1))
        for names, counts, kind in ((vocabulary.words, vocabulary.counts, 0), (vocabulary.labels, vocabulary.label_counts, 1)):
            for name, count in zip(names, counts.tolist(), strict=True):
                file.write(name + b"\0" + struct.pack("<qb", count, kind))
        file.write(b"\0" + struct.pack("<qq", words + model.table_size, model.dimension))
        file.write(model.inputs[:words, : model.dimension].tobytes())
        _write_buckets(file, model)
        file.write(b"\0" + struct.pack("<qq", len(model.outputs), model.dimension))
        file.write(model.outputs[:, : model.dimension].tobytes())


def _write_buckets(file: IO[bytes], model: Model) -> None:
    """Write the rows of all buckets, zeros for those that training did not meet."""
    words = len(model.vocabulary)
    for at in range(0, model.table_size, _CHUNK):
        part = np.zeros((min(_CHUNK, model.table_size - at), model.dimension), np.float32)
        first, last = np.searchsorted(model.buckets, (at, at + _CHUNK))
        part[model.buckets[first:last] - at] = model.inputs[words + first : words + last, : model.dimension]
        file.write(part.tobytes())


def read_fasttext(path: Path) -> Model:
    """Return the model of a file that fastText, or `write_fasttext`, wrote.

    Raises:
        UserError: no such file, a compressed one, one for a loss that has no counterpart here, or one that is cut off.
    """
    with _opened(path) as file:
        try:
            return _read_fasttext(file, path.name)
        except (struct.error, EOFError, ValueError, MemoryError) as error:
            raise UserError(f"{path.name} is no whole fastText model: {error}") from None


def read_word2vec(path: Path) -> Model:
    """Return word vectors from a file in word2vec's format, text or binary, as `save_word2vec_format` of gensim writes them.

    The format has no counts: words are numbered as they stand, and a word that stands there again is left out.

    Raises:
        UserError: no such file, another format, or one that is cut off.
    """
    with _opened(path) as file:
        head = file.readline(100).split()
        if len(head) != 2 or not all(number.isdigit() for number in head) or not 0 < int(head[1]) < 1 << 16:
            raise UserError(f"{path.name} is no file of word2vec: its first line must say how many words and numbers there are")
        count, size = int(head[0]), int(head[1])
        start = file.tell()
        line = file.readline().split()
        try:
            as_text = len(line) == size + 1 and bool(np.isfinite(np.array(line[1:], np.float64)).all())
        except ValueError:
            as_text = False
        file.seek(start)
        words: dict[bytes, None] = {}
        rows = []
        for number in range(count):
            try:
                word, row = _text_row(file, size) if as_text else _binary_row(file, size)
            except (EOFError, ValueError) as error:
                raise UserError(f"{path.name} holds no whole vector {number + 1} of {count}: {error}") from None
            if word not in words:
                words[word] = None
                rows.append(row)
    settings = BlazingTextHyperparameters(mode="skipgram", vector_dim=size, min_count=0)
    inputs = _padded(np.array(rows, np.float32).reshape(-1, size))
    vocabulary = Vocabulary(list(words), np.arange(len(words), 0, -1), [], np.empty(0), len(words))
    return Model(settings, vocabulary, np.empty(0, np.int32), inputs, np.zeros_like(inputs))


def _text_row(file: IO[bytes], size: int) -> tuple[bytes, Array]:
    parts = file.readline().split()
    if len(parts) != size + 1:
        raise ValueError(f"a word and {size} numbers are expected in a line, {len(parts)} parts are there")
    return parts[0], np.array(parts[1:], np.float64).astype(np.float32)


def _binary_row(file: IO[bytes], size: int) -> tuple[bytes, Array]:
    word = bytearray()
    while (byte := file.read(1)) != b" ":
        if not byte or len(word) > _LONGEST:
            raise EOFError("it ends within a word" if not byte else "a word has no end")
        word += byte
    data = file.read(4 * size)
    if len(data) != 4 * size:
        raise EOFError("it ends within its numbers")
    name = bytes(word).lstrip(b"\n")
    if len(name.split()) != 1 or name.split()[0] != name:
        raise ValueError("its word is empty or has blanks")
    return name, np.frombuffer(data, np.float32)


def _opened(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def _read_fasttext(file: IO[bytes], name: str) -> Model:
    if _unpack(file, "<ii") != (_MAGIC, _VERSION):
        raise UserError(f"{name} is no fastText model of version {_VERSION}; .bin files of fastText 0.2 and later are read")
    (dimension, window, epochs, min_count, negatives, grams, loss, kind, buckets, least, most, _, threshold) = _unpack(
        file, "<12id"
    )
    size, words, _, tokens, pruned = _unpack(file, "<iiiqq")
    if pruned >= 0:
        raise UserError(f"{name} is compressed (quantized or pruned); only whole fastText models are read")
    names, counts = _dictionary(file, size)
    quantized = _unpack(file, "<?")[0]
    if quantized:
        raise UserError(f"{name} is compressed (quantized or pruned); only whole fastText models are read")
    classifies = kind == _MODELS["supervised"]
    if (classifies and (loss not in (_HIERARCHICAL, _SOFTMAX) or most > 0)) or (not classifies and loss != _NEGATIVES):
        raise UserError(f"{name} was learnt with a loss or with subwords that blazingtext has no counterpart of")
    settings = BlazingTextHyperparameters(
        mode="supervised" if classifies else "cbow" if kind == _MODELS["cbow"] else "skipgram",
        vector_dim=dimension, window_size=window, epochs=epochs, min_count=min_count, negative_samples=negatives,
        word_ngrams=grams, loss="hierarchical" if loss == _HIERARCHICAL else "softmax", buckets=max(buckets, 1),
        subwords=not classifies and most > 0 and buckets > 0, min_char=max(least, 1), max_char=max(most, 1),
        sampling_threshold=threshold,
    )  # fmt: skip
    inputs = _matrix(file)
    if _unpack(file, "<?")[0]:
        raise UserError(f"{name} is compressed (quantized or pruned); only whole fastText models are read")
    outputs = _matrix(file)
    vocabulary = Vocabulary(names[:words], counts[:words], names[words:], counts[words:], tokens)
    met = np.empty(0, np.int32)
    model = Model(settings, vocabulary, met, inputs, outputs)
    if model.table_size:
        met = np.flatnonzero(inputs[words:].any(axis=1)).astype(np.int32)
        if settings.subwords:
            met = np.union1d(met, reachable(vocabulary, settings)).astype(np.int32)
        model.inputs = np.concatenate([inputs[:words], inputs[words + met]])
        model.buckets = met
    else:
        model.inputs = inputs[:words].copy()
    return model


def _dictionary(file: IO[bytes], size: int) -> tuple[list[bytes], Array]:
    """Read names and counts of words and labels."""
    names, counts = [], np.empty(size, np.int64)
    for at in range(size):
        name = bytearray()
        while (byte := file.read(1)) != b"\0":
            if not byte:
                raise EOFError("it ends among its words")
            name += byte
        names.append(bytes(name))
        counts[at], _ = _unpack(file, "<qb")
    return names, counts


def _matrix(file: IO[bytes]) -> Array:
    """Read a matrix, its rows made `stride_of(dimension)` long."""
    rows, columns = _unpack(file, "<qq")
    if rows < 0 or not 0 < columns < 1 << 16:
        raise ValueError(f"a matrix of {rows} x {columns}")
    found = np.zeros((rows, stride_of(columns)), np.float32)
    for at in range(0, rows, _CHUNK):
        count = min(_CHUNK, rows - at)
        data = file.read(count * columns * 4)
        if len(data) != count * columns * 4:
            raise EOFError("it ends within a matrix")
        found[at : at + count, :columns] = np.frombuffer(data, np.float32).reshape(count, columns)
    return found


def _unpack(file: IO[bytes], layout: str) -> tuple[int, ...]:
    size = struct.calcsize(layout)
    data = file.read(size)
    if len(data) != size:
        raise EOFError("it ends too early")
    return struct.unpack(layout, data)


def _padded(matrix: Array) -> Array:
    found = np.zeros((len(matrix), stride_of(matrix.shape[1])), np.float32)
    found[:, : matrix.shape[1]] = matrix
    return found
