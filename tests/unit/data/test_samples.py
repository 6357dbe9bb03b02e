"""The sample data: real rows, split once and for all, the same in every format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets  # sets environment variables, which a test must not

from phalanx.contracts import Array
from phalanx.data.formats.recordio import decode_records
from phalanx.data.samples import write_sample
from phalanx.errors import UserError

_SETS = {"iris": (150, 4), "wine": (178, 13), "breast_cancer": (569, 30), "digits": (1797, 64), "diabetes": (442, 10)}
_FILES = {f"{split}.{kind}" for split in ("train", "validation", "test") for kind in ("csv", "libsvm", "recordio")}


def table(path: Path) -> Array:
    found: Array = np.loadtxt(path, delimiter=",", dtype=np.float32, ndmin=2)
    return found


@pytest.mark.parametrize("name", _SETS)
def test_every_row_is_in_one_split(name: str, tmp_path: Path) -> None:
    rows, columns = _SETS[name]
    written = write_sample(name, tmp_path)
    assert (
        {path for path, _ in written} == {tmp_path / file for file in _FILES | {"test-features.csv"}} == {*tmp_path.iterdir()}
    )
    splits = [table(tmp_path / f"{split}.csv") for split in ("train", "validation", "test")]
    assert [len(split) for split in splits] == [
        round(0.7 * rows),
        round(0.15 * rows),
        rows - round(0.7 * rows) - round(0.15 * rows),
    ]
    features, label = getattr(sklearn.datasets, f"load_{name}")(return_X_y=True)
    whole = np.column_stack([label, features]).astype(np.float32)
    assert whole.shape == (rows, columns + 1)
    found = np.concatenate(splits)
    np.testing.assert_array_equal(found[np.lexsort(found.T)], whole[np.lexsort(whole.T)])  # float32 came through unchanged
    assert not np.array_equal(found, whole)  # shuffled: some of these sets are sorted by their label
    np.testing.assert_array_equal(table(tmp_path / "test-features.csv"), splits[2][:, 1:])
    if name != "diabetes":
        assert set(splits[0][:, 0]) == set(label)  # every class can be learned


def test_formats_hold_the_same_rows(tmp_path: Path) -> None:
    write_sample("digits", tmp_path)
    for split in ("train", "validation", "test"):
        rows = table(tmp_path / f"{split}.csv")
        np.testing.assert_array_equal(decode_records((tmp_path / f"{split}.recordio").read_bytes(), 64), rows[:, 1:])
        sparse = np.zeros_like(rows)
        for row, line in zip(sparse, (tmp_path / f"{split}.libsvm").read_text().splitlines(), strict=True):
            label, *entries = line.split(" ")
            row[0] = float(label)
            for index, value in (entry.split(":") for entry in entries):
                row[int(index)] = float(value)  # indices from 1: the label's place is 0
                assert float(value) != 0
        np.testing.assert_array_equal(sparse, rows)


def test_each_file_says_how_to_read_it(tmp_path: Path) -> None:
    says = {path.name: text for path, text in write_sample("iris", tmp_path / "new" / "folder")}
    assert says["train.csv"] == "105 rows, 4 features, label first: text/csv"
    assert says["validation.libsvm"] == "22 rows, 4 features, indices from 1: text/libsvm;index_base=1"
    assert says["train.recordio"] == "105 rows, 4 features: application/x-recordio-protobuf"
    assert says["test-features.csv"] == "23 rows, 4 features, no label, for predict: text/csv;label_size=0"


def test_the_same_bytes_every_time(tmp_path: Path) -> None:
    for folder in ("one", "two", "two"):  # over files that are there, too
        write_sample("wine", tmp_path / folder)
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()} for folder in ("one", "two"))
    assert one == two


def test_numbers_are_short(tmp_path: Path) -> None:
    write_sample("iris", tmp_path)
    first = (tmp_path / "train.csv").read_text().splitlines()[0]
    assert first.count(",") == 4
    assert len(first) <= len("0,5.1,3.5,1.4,0.2")


def test_an_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no sample data 'irsi'; did you mean 'iris'\? allowed: breast_cancer, .*wine"):
        write_sample("irsi", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=r"cannot write to .*file"):
            write_sample("iris", folder)
