"""The instances of a JSON document, one after another, without holding the document in memory."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Generator, Iterator
from typing import final

from ..contracts import Json
from ..errors import UserError

_CHUNK = 1 << 20
_MAX_VALUE = 1 << 26  # characters of one instance
_TAIL = 4  # characters that decide whether a number goes on: "1" may be cut from "1.5" or "1e-5"
_SPACE = " \t\r\n"


def instances(read: Callable[[int], bytes], name: str) -> Iterator[Json]:
    """Yield the elements of `{"instances": [...]}`, or of a document that is a list.

    Args:
        read: returns the next bytes, at most as many as asked for, none at the end.
        name: of the document, for errors.

    Raises:
        UserError: the document is of another shape, or no valid JSON; instances before the fault are yielded first.
    """
    text = _Text(read, name)
    first = text.peek()
    if first == "[":
        yield from _elements(text, name)
    elif first != "{" or not (yield from _members(text, name, {})):
        raise _shape(name)
    if text.peek():
        raise UserError(f"{name} goes on after the end of its JSON document")


def member(read: Callable[[int], bytes], name: str, wanted: str) -> Json:
    """Return a member of a document beside its instances, None where there is none or the document is no object.

    Args:
        read: as for `instances`.
        name: of the document, for errors.
        wanted: the member's name.

    Raises:
        UserError: the document is no valid JSON.
    """
    text = _Text(read, name)
    beside: dict[str, Json] = {wanted: None}
    if text.peek() == "{":
        for _ in _members(text, name, beside):
            pass
    return beside[wanted]


def _members(text: _Text, name: str, beside: dict[str, Json]) -> Generator[Json, None, bool]:
    """Yield the instances among an object's members; return whether there were any. Members named in `beside` are put there."""
    text.expect("{")
    found = False
    while text.peek() != "}":
        if text.peek() != '"':
            raise UserError(f"{name} is no valid JSON: a name between quotes is missing")
        key = text.value("the document")
        text.expect(":")
        if key == "instances" and text.peek() == "[":
            for instance in _elements(text, name):
                found = True
                yield instance
        else:
            value = text.value(f"'{key}'"[:80])
            if key in beside:
                beside[key] = value
        if text.peek() != "}":
            text.expect(",")
    text.expect("}")
    return found


def _elements(text: _Text, name: str) -> Iterator[Json]:
    text.expect("[")
    number = 0
    while text.peek() != "]":
        number += 1
        yield text.value(f"instance {number}")
        if text.peek() != "]":
            text.expect(",")
    text.expect("]")


def _shape(name: str) -> UserError:
    return UserError(f'{name} must be {{"instances": [...]}} with at least one instance')


@final
class _Text:
    """A document that is read as far as its values are asked for."""

    def __init__(self, read: Callable[[int], bytes], name: str) -> None:
        self._read = read
        self._name = name
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self._scan = json.JSONDecoder().raw_decode
        self._buffer = ""
        self._at = 0
        self._ended = False

    def peek(self) -> str:
        """Return the next character that is no space, "" at the end."""
        while True:
            while self._at < len(self._buffer) and self._buffer[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._more(_CHUNK):
                return ""

    def expect(self, character: str) -> None:
        """Go past `character`.

        Raises:
            UserError: something else comes next.
        """
        if (found := self.peek()) != character:
            what = f"'{found}' stands where '{character}' belongs" if found else f"it ends where '{character}' belongs"
            raise UserError(f"{self._name} is no valid JSON: {what}")
        self._at += 1

    def value(self, what: str) -> Json:
        """Return the next value.

        Raises:
            UserError: it is not valid, or too long; `what` names it.
        """
        self.peek()
        size = _CHUNK
        while True:
            try:
                found, end = self._scan(self._buffer, self._at)
            except json.JSONDecodeError as error:
                if self._more(size):  # it may only be cut off
                    size *= 2
                    continue
                raise UserError(f"{self._name}, {what}: no valid JSON: {error.msg}") from None
            except RecursionError:
                raise UserError(f"{self._name}, {what}: nested too deeply") from None
            except ValueError as error:  # a number of thousands of digits
                raise UserError(f"{self._name}, {what}: {error}") from None
            if len(self._buffer) - end < _TAIL and self._more(size):
                continue
            self._at = end
            return found

    def _more(self, size: int) -> bool:
        """Read on; return whether there was more."""
        if self._ended:
            return False
        self._buffer, self._at = self._buffer[self._at :], 0
        if len(self._buffer) > _MAX_VALUE:
            raise UserError(f"{self._name} has a value longer than {_MAX_VALUE >> 20} million characters, or is no valid JSON")
        data = self._read(size)
        self._ended = not data
        try:
            self._buffer += self._decode(data, self._ended)
        except UnicodeDecodeError as error:
            raise UserError(f"{self._name} is no UTF-8 text: {error.reason}") from None
        return True
