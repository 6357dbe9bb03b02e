"""Channels and content types: what is taken, what is refused, and in which words."""

from __future__ import annotations

import pytest

from phalanx.data.channel import Channel, ContentType, guess_content_type, parse_channel, parse_content_type, says
from phalanx.errors import UserError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("text/csv", ContentType("csv")),
        ("CSV", ContentType("csv")),
        ("text/csv; label_size=0", ContentType("csv", label_size=0)),
        ("text/csv;label_size=1;weight_size=1", ContentType("csv", label_size=1, weight_size=1)),
        ("text/csv; charset=utf-8", ContentType("csv")),
        ("text/libsvm;index_base=0", ContentType("libsvm", index_base=0)),
        ("text/x-libsvm", ContentType("libsvm")),
        ("application/x-recordio-protobuf", ContentType("recordio")),
        ("parquet;label_size=0", ContentType("parquet", label_size=0)),
        ("application/jsonlines", ContentType("jsonlines")),
        ("text/plain", ContentType("text")),
    ],
)
def test_content_types(text: str, expected: ContentType) -> None:
    assert parse_content_type(text) == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("text/cvs", "did you mean 'text/csv'"),
        ("text/csv;labelsize=0", "did you mean 'label_size'"),
        ("text/csv;label_size=2", "0 or 1"),
        ("text/csv;label_size", "0 or 1"),
        ("application/jsonlines;index_base=1", "takes none"),
    ],
)
def test_bad_content_types(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        Channel("data", content_type=text)


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("a.csv", "csv"),
        ("A.CSV.gz", "csv"),
        ("s3://b/x.libsvm.zst", "libsvm"),
        ("http://h/a.parquet?sig=x.csv", "parquet"),
        ("a.v2.jsonl", "jsonlines"),
    ],
)
def test_names_say_what_a_file_holds(name: str, format: str) -> None:
    assert guess_content_type(name).format == format


@pytest.mark.parametrize("name", ["data", "part-0000", "a.csv.d", "a.gz"])
def test_a_name_that_says_nothing(name: str) -> None:
    with pytest.raises(UserError, match="give a content type"):
        guess_content_type(name)


def test_channels_are_checked() -> None:
    for field, value, nearest in (("spread", "shards", "shard"), ("mode", "pipe", "file"), ("compression", "gz", "gzip")):
        with pytest.raises(UserError, match=nearest):
            Channel("data", **{field: value})
    for url in ("", [], ["a", ""]):
        with pytest.raises(UserError, match="needs a URL"):
            Channel(url)


@pytest.mark.parametrize(
    ("channel", "expected"),
    [
        (Channel("data/a.csv"), False),
        (Channel("s3://bucket/part-*.pbr"), True),
        (Channel(["data/a.csv", "data/b.RecordIO.gz"]), True),
        (Channel("data", content_type="application/x-recordio-protobuf"), True),
        (Channel("data/a.recordio", content_type="text/csv"), False),
        (Channel("data"), False),
    ],
)
def test_what_a_channel_says_it_holds(channel: Channel, expected: bool) -> None:
    assert says(channel, "recordio") is expected


def test_channels_as_json() -> None:
    channel = Channel(["a", "b"], content_type="csv", spread="replicate", mode="stream", compression="gzip")
    assert Channel(**channel.to_json()) == channel
    assert Channel(**Channel("a").to_json()).urls == ["a"]


@pytest.mark.parametrize(
    ("text", "name", "channel"),
    [
        ("train=a.csv", "train", Channel("a.csv")),
        (
            "test=s3://b/k=1/x.csv,content_type=text/csv;label_size=1,spread=replicate,mode=stream",
            "test",
            Channel("s3://b/k=1/x.csv", content_type="text/csv;label_size=1", spread="replicate", mode="stream"),
        ),
        ("train=a.csv,b/k=1/c.csv,mode=file", "train", Channel(["a.csv", "b/k=1/c.csv"], mode="file")),
    ],
)
def test_channels_of_the_command_line(text: str, name: str, channel: Channel) -> None:
    assert parse_channel(text) == (name, channel)


@pytest.mark.parametrize(
    ("text", "says"), [("a.csv", "NAME=URL"), ("=a", "NAME=URL"), ("a=", "NAME=URL"), ("a=b,modus=file", "did you mean 'mode'")]
)
def test_bad_channels_of_the_command_line(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        parse_channel(text)
