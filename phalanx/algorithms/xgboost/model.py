"""Looks through an `xgboost-model` before the library's own reader does, which trusts every length and index in it.

The file is UBJSON (https://ubjson.org) as the library writes it: lengths are int64, numbers big-endian. Nothing is allocated
that the file's own size does not bound; what is unknown, doubled, too deep or out of range is refused.
"""

from __future__ import annotations

import struct
from typing import Any, final

import numpy as np

from ...contracts import Array
from ...errors import UserError

_DEEPEST = 16
_NO_PARENT = (-1, 2147483647)
_DELETED = 2147483647  # split index of a node that pruning took away
_LARGEST = 2**31 - 1
_NUMBERS = {b"i": ">b", b"U": ">B", b"I": ">h", b"l": ">i", b"L": ">q", b"d": ">f", b"D": ">d"}
_ARRAYS = {b"i": ">i1", b"U": ">u1", b"I": ">i2", b"l": ">i4", b"L": ">i8", b"d": ">f4", b"D": ">f8"}
_TREE = {
    "left_children": "i4",
    "right_children": "i4",
    "parents": "i4",
    "split_indices": "i4",
    "split_conditions": "f4",
    "base_weights": "f4",
    "loss_changes": "f4",
    "sum_hessian": "f4",
    "default_left": "u1",
    "split_type": "u1",
}
_CATEGORIES = {"categories": "i4", "categories_nodes": "i4", "categories_segments": "i8", "categories_sizes": "i8"}


class _Wrong(Exception):
    """What is wrong with a model."""


def check_model(data: bytes, name: str) -> None:
    """Check that the library's reader can be given `data`.

    Args:
        data: the whole file.
        name: of the file, for the error.

    Raises:
        UserError: it is damaged, crafted, or of a kind that Phalanx never writes (categorical features, several targets).
    """
    try:
        _check_document(_Walker(data).document())
    except _Wrong as wrong:
        raise UserError(f"{name} is damaged, or no model that Phalanx wrote: {wrong}; train it again") from None


@final
class _Walker:
    """Reads UBJSON into dicts, lists, numpy arrays (typed ones), strings and numbers."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def document(self) -> Any:
        value = self._value(0)
        if self._at != len(self._data):
            raise _Wrong(f"{len(self._data) - self._at} bytes follow its end")
        return value

    def _take(self, size: int) -> bytes:
        if size < 0 or size > len(self._data) - self._at:
            raise _Wrong(f"byte {self._at} announces {size} bytes, {len(self._data) - self._at} are left")
        self._at += size
        return self._data[self._at - size : self._at]

    def _marker(self, expected: bytes) -> None:
        if self._take(1) != expected:
            raise _Wrong(f"byte {self._at - 1} is not {expected.decode()!r}")

    def _length(self) -> int:
        self._marker(b"L")
        (length,) = struct.unpack(">q", self._take(8))
        if not 0 <= length <= len(self._data) - self._at:
            raise _Wrong(f"byte {self._at} has a length of {length}, {len(self._data) - self._at} bytes are left")
        return int(length)

    def _text(self) -> str:
        try:
            return self._take(self._length()).decode()
        except UnicodeDecodeError:
            raise _Wrong(f"the text before byte {self._at} is no UTF-8") from None

    def _value(self, depth: int) -> Any:
        if depth > _DEEPEST:
            raise _Wrong(f"it is nested deeper than {_DEEPEST} levels")
        marker = self._take(1)
        if marker == b"{":
            return self._object(depth)
        if marker == b"[":
            return self._array(depth)
        if marker == b"S":
            return self._text()
        if marker in (b"T", b"F"):
            return marker == b"T"
        if marker not in _NUMBERS:
            raise _Wrong(f"byte {self._at - 1} begins no value")
        code = _NUMBERS[marker]
        return struct.unpack(code, self._take(struct.calcsize(code)))[0]

    def _object(self, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while self._data[self._at : self._at + 1] != b"}":
            key = self._text()
            if key in found:
                raise _Wrong(f"'{key}' comes twice")
            found[key] = self._value(depth + 1)
        self._at += 1
        return found

    def _array(self, depth: int) -> Any:
        kind = self._take(1)
        if kind == b"#":
            return [self._value(depth + 1) for _ in range(self._length())]
        if kind != b"$":
            raise _Wrong(f"byte {self._at - 1} begins an array without a length")
        code = _ARRAYS.get(self._take(1))
        if code is None:
            raise _Wrong(f"byte {self._at - 1} names no kind of numbers")
        self._marker(b"#")
        dtype = np.dtype(code)
        return np.frombuffer(self._take(self._length() * dtype.itemsize), dtype=dtype).astype(dtype.newbyteorder("="))


def _check_document(document: Any) -> None:
    version = _get(document, "version", list, "the model")
    if len(version) != 3 or not all(type(number) is int and number >= 0 for number in version):
        raise _Wrong("its version is not three numbers")
    learner = _get(document, "learner", dict, "the model")
    shape = _get(learner, "learner_model_param", dict, "learner")
    features, classes, targets = (
        _number(shape, name, "learner_model_param") for name in ("num_feature", "num_class", "num_target")
    )
    if targets != 1:
        raise _Wrong(f"it has {targets} targets")
    groups = max(classes, 1)
    _check_base_score(_get(shape, "base_score", str, "learner_model_param"), groups)
    for name in ("feature_names", "feature_types"):
        if name in learner and learner[name] != []:
            raise _Wrong(f"it has {name}")
    if not all(isinstance(value, str) for value in _get(learner, "attributes", dict, "learner").values()):
        raise _Wrong("attributes are no texts")
    _check_objective(_get(learner, "objective", dict, "learner"), classes)
    _check_booster(_get(learner, "gradient_booster", dict, "learner"), features, groups)


def _check_booster(booster: dict[str, Any], features: int, groups: int) -> None:
    name = _get(booster, "name", str, "gradient_booster")
    if name == "gblinear":
        model = _get(booster, "model", dict, name)
        if type(model.get("boosted_rounds")) is not int:
            raise _Wrong("gblinear has no number of rounds")
        weights = model.get("weights")
        if not isinstance(weights, np.ndarray | list) or len(weights) != (features + 1) * groups:
            raise _Wrong("gblinear does not have a weight for every feature")
        if isinstance(weights, list) and not all(type(weight) is float for weight in weights):
            raise _Wrong("weights of gblinear are no numbers")
    elif name == "gbtree":
        _check_trees(_get(booster, "model", dict, name), features, groups)
    elif name == "dart":
        inner = _get(booster, "gbtree", dict, name)
        if _get(inner, "name", str, "dart") != "gbtree":
            raise _Wrong("dart is made of something else than trees")
        trees = _check_trees(_get(inner, "model", dict, name), features, groups)
        weights = _get(booster, "weight_drop", list, name)
        if len(weights) != trees or not all(type(weight) is float for weight in weights):
            raise _Wrong("dart does not have a weight for every tree")
    else:
        raise _Wrong("its booster is none of gbtree, dart, gblinear")


def _check_trees(model: dict[str, Any], features: int, groups: int) -> int:
    """Check the trees of a model; return how many there are."""
    trees, info = _get(model, "trees", list, "model"), _get(model, "tree_info", list, "model")
    given = _get(model, "gbtree_model_param", dict, "model")
    if _number(given, "num_trees", "gbtree_model_param") != len(trees) or len(info) != len(trees):
        raise _Wrong(f"it has {len(trees)} trees, and says otherwise elsewhere")
    if not 1 <= _number(given, "num_parallel_tree", "gbtree_model_param") <= max(len(trees), 1):
        raise _Wrong("num_parallel_tree is out of range")
    if not all(type(group) is int and 0 <= group < groups for group in info):
        raise _Wrong("tree_info names a class that there is not")
    edges = _get(model, "iteration_indptr", list, "model")
    if (
        not edges
        or not all(type(edge) is int for edge in edges)
        or [edges[0], edges[-1], edges] != [0, len(trees), sorted(edges)]
    ):
        raise _Wrong("iteration_indptr does not divide the trees into rounds")
    cats = model.get("cats", {})
    if not isinstance(cats, dict) or any(not isinstance(part, list | np.ndarray) or len(part) for part in cats.values()):
        raise _Wrong("it has categorical features")
    for number, tree in enumerate(trees):
        if not isinstance(tree, dict) or type(tree.get("id")) is not int or tree["id"] != number:
            raise _Wrong(f"tree {number} is not where it belongs")
        _check_tree(tree, f"tree {number}", features)
    return len(trees)


def _check_tree(tree: dict[str, Any], name: str, features: int) -> None:
    given = _get(tree, "tree_param", dict, name)
    nodes = _number(given, "num_nodes", name)
    if nodes < 1 or _number(given, "size_leaf_vector", name) > 1 or _number(given, "num_feature", name) != features:
        raise _Wrong(f"tree_param of {name} does not fit the model")
    if _number(given, "num_deleted", name) >= nodes:
        raise _Wrong(f"{name} has more deleted nodes than nodes")
    parts = {part: _typed(tree, part, kind, nodes, name) for part, kind in _TREE.items()}
    for part, kind in _CATEGORIES.items():
        _typed(tree, part, kind, 0, name)
    left, right, parents = parts["left_children"], parts["right_children"], parts["parents"]
    if parts["split_type"].any() or (parts["default_left"] > 1).any():
        raise _Wrong(f"{name} has splits of another kind")
    for children in (left, right):
        if ((children < -1) | (children == 0) | (children >= nodes)).any():
            raise _Wrong(f"a child in {name} is no node of it")
    if parents[0] not in _NO_PARENT or ((parents[1:] < 0) | (parents[1:] >= nodes)).any():
        raise _Wrong(f"a parent in {name} is no node of it")
    reached = _reached(left, right, parents, name)
    splits = parts["split_indices"]
    if (reached & ((splits < 0) | (splits >= features))).any() or (~reached & (splits != _DELETED)).any():
        raise _Wrong(f"{name} splits by a feature that there is not, or holds nodes that nothing leads to")


def _reached(left: Array, right: Array, parents: Array, name: str) -> Array:
    """Return which nodes (N,) the root leads to, each in one way."""
    reached = np.zeros(len(left), dtype=bool)
    level = np.zeros(1, dtype=np.int64)
    while len(level):
        if reached[level].any() or len(np.unique(level)) != len(level):
            raise _Wrong(f"{name} is no tree: a node of it is reached twice")
        reached[level] = True
        inner = level[left[level] != -1]
        if (right[level[left[level] == -1]] != -1).any() or (right[inner] == -1).any():
            raise _Wrong(f"a node of {name} has one child")
        children = np.concatenate([left[inner], right[inner]]).astype(np.int64)
        if (parents[children] != np.concatenate([inner, inner])).any():
            raise _Wrong(f"a child in {name} names another parent")
        level = children
    return reached


def _check_objective(objective: dict[str, Any], classes: int) -> None:
    name = _get(objective, "name", str, "objective")
    for part in (value for key, value in objective.items() if key != "name"):
        if not isinstance(part, dict) or not all(isinstance(value, str) for value in part.values()):
            raise _Wrong(f"a parameter of the objective {name[:40]!r} is no text")
        if "num_class" in part and _number(part, "num_class", "objective") != classes:
            raise _Wrong("objective and model differ in their classes")
    if name.startswith("multi:") and classes < 2:
        raise _Wrong(f"the objective {name[:40]!r} has {classes} classes")


def _check_base_score(text: str, groups: int) -> None:
    try:
        scores = [float(part) for part in text.strip("[]").split(",")]
    except ValueError:
        raise _Wrong("base_score is no number") from None
    if len(scores) not in (1, groups):
        raise _Wrong("base_score does not have a number for every class")


def _get(holder: Any, key: str, kind: type, where: str) -> Any:
    value = holder.get(key) if isinstance(holder, dict) else None
    if not isinstance(value, kind):
        raise _Wrong(f"{where} has no '{key}' of the right kind")
    return value


def _number(holder: dict[str, Any], key: str, where: str) -> int:
    text = _get(holder, key, str, where)
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= _LARGEST):
        raise _Wrong(f"'{key}' of {where} is no whole number")
    return int(text)


def _typed(tree: dict[str, Any], key: str, kind: str, length: int, name: str) -> Array:
    values: Array = _get(tree, key, np.ndarray, name)
    if values.dtype != np.dtype(kind) or len(values) != length:
        raise _Wrong(f"'{key}' of {name} does not hold {length} values of the right kind")
    return values
