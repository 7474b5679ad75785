"""The request body yields the model, whether a stream was asked for and the session, and never an exception."""

import gzip
import json
import zlib

import brotli
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from usage_ledger.messages import RequestFields, read_request

BODY = {"model": "claude-sonnet-4-6", "stream": True, "messages": [{"role": "user", "content": "Grüße"}]}
NOTHING = RequestFields()
SESSION = "0b6e9a3c-1111-2222-3333-444455556666"


def body(**more: object) -> bytes:
    return json.dumps({**BODY, **more}, ensure_ascii=False).encode()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, RequestFields("claude-sonnet-4-6", True, None)),
        ({"stream": False}, RequestFields("claude-sonnet-4-6", False, None)),
        ({"stream": None}, RequestFields("claude-sonnet-4-6", False, None)),
        ({"stream": "true"}, RequestFields("claude-sonnet-4-6", False, None)),
        ({"stream": 1}, RequestFields("claude-sonnet-4-6", False, None)),
        ({"model": None}, RequestFields(None, True, None)),
        ({"model": 5}, RequestFields(None, True, None)),
        ({"model": ""}, RequestFields(None, True, None)),
        ({"model": ["a"]}, RequestFields(None, True, None)),
        ({"model": "a\nb"}, RequestFields("a\ufffdb", True, None)),
        ({"model": "x" * 9999}, RequestFields("x" * 256, True, None)),
        ({"metadata": None}, RequestFields("claude-sonnet-4-6", True, None)),
        ({"metadata": []}, RequestFields("claude-sonnet-4-6", True, None)),
    ],
)
def test_which_fields_are_taken(fields: dict[str, object], expected: RequestFields) -> None:
    assert read_request(body(**fields)) == expected


@pytest.mark.parametrize(
    ("user_id", "session"),
    [
        (f"user_abc_account_def_session_{SESSION}", SESSION),
        (json.dumps({"device_id": "d", "account_uuid": "a", "session_id": SESSION}), SESSION),
        (json.dumps({"device_id": "d"}), None),
        (json.dumps({"session_id": 5}), None),
        ('{"session_id": ', None),
        ("{" * 3000, None),
        ("[]", None),
        ("someone", None),
        ("user_abc_session_", None),
        ("user_abc_session_" + "x" * 100, None),
        ("x" * 100_000 + "_session_abc", None),
        ("", None),
        (None, None),
        (7, None),
        ({"session_id": SESSION}, None),
    ],
)
def test_the_session_comes_from_the_user_id_in_either_form(user_id: object, session: str | None) -> None:
    assert read_request(body(metadata={"user_id": user_id})).session_id == session


@pytest.mark.parametrize(
    "unreadable",
    [
        b"",
        b"null",
        b"[]",
        b"5",
        b'"text"',
        b"{",
        body()[:-1],
        b"\xff\xfe",
        b"\0" * 10,
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"model=claude",
        b'{"messages": ' + b"9" * 10_000,
    ],
    ids=lambda value: repr(value[:12]),
)
def test_a_body_that_cannot_be_read_yields_empty_fields(unreadable: bytes) -> None:
    assert read_request(unreadable) == NOTHING


@pytest.mark.parametrize(
    "odd",
    [
        b'{"model": "m", "stream": true, "x": "\\ud800"}',
        b'{"model": "m", "stream": true, "x": NaN}',
        b'\xef\xbb\xbf{"model": "m", "stream": true}',
        b' \r\n{"stream" : true ,\t"model": "m"}\n\n',
    ],
)
def test_a_body_other_readers_let_pass_is_read(odd: bytes) -> None:
    assert read_request(odd) == RequestFields("m", True, None)


@pytest.mark.parametrize(
    ("encoding", "encoded"),
    [
        ("gzip", gzip.compress(body())),
        ("GZIP", gzip.compress(body())),
        ("deflate", zlib.compress(body())),
        ("br", brotli.compress(body())),
        ("zstd", zstandard.compress(body())),
        ("gzip, zstd", zstandard.compress(gzip.compress(body()))),
        ("identity", body()),
        ("gzip", body()),
        ("br", body()),
    ],
)
def test_a_compressed_body_is_read(encoding: str, encoded: bytes) -> None:
    assert read_request(encoded, encoding) == RequestFields("claude-sonnet-4-6", True, None)


@pytest.mark.parametrize(
    ("encoding", "bomb"),
    [
        ("gzip", gzip.compress(bytes(80_000_000))),
        ("br", brotli.compress(bytes(80_000_000), quality=1)),
        ("zstd", zstandard.compress(bytes(80_000_000))),
        ("br", b"\x0b\xff not brotli"),
    ],
    ids=["gzip bomb", "br bomb", "zstd bomb", "not br"],
)
def test_a_bomb_or_a_broken_body_yields_empty_fields(encoding: str, bomb: bytes) -> None:
    assert read_request(bomb, encoding) == NOTHING


@given(st.binary(max_size=200), st.sampled_from(["", "gzip", "deflate", "br", "zstd", "gzip, br", "?"]))
def test_any_bytes_yield_fields_and_never_an_exception(data: bytes, encoding: str) -> None:
    assert isinstance(read_request(data, encoding), RequestFields)
