"""JSON from outside, decoded field by field, also where strict readers refuse it.

Room: messages. Imports the standard library, `msgspec` and `text`. Typed decoding skips what nobody asked for, so a
body of many megabytes costs little; it refuses byte order marks, lone surrogates, bytes that are not UTF-8 and NaN, all
of which clients let pass. Such a body is mended and decoded once more, never as a whole tree.
"""

import re
from typing import Any

import msgspec

from usage_ledger.messages.text import BOM

FIELD_LIMIT = 64 * 1024
"""A field whose JSON is longer than this many bytes is not decoded."""

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
_TEXT_OR_NO_NUMBER = re.compile(rb'"(?:[^"\\]++|\\.?+)*+"?+|(?<=[\s:\[,])(?:NaN|-?Infinity)(?=[\s,\]}])', re.DOTALL)
_anything = msgspec.json.Decoder()
_FAILURES = (msgspec.MsgspecError, ValueError, RecursionError)


def decode[T](decoder: "msgspec.json.Decoder[T]", data: bytes) -> T | None:
    """Decode JSON; None where it is none, or not of the decoder's shape."""
    try:
        return decoder.decode(data)
    except _FAILURES:
        try:
            return decoder.decode(_mended(data))
        except _FAILURES:
            return None


def field(raw: msgspec.Raw) -> Any:
    """Decode one field of a body whose fields were kept raw; None where it is too long to be what is wanted."""
    data = bytes(raw)
    return decode(_anything, data) if len(data) <= FIELD_LIMIT else None


def _mended(data: bytes) -> bytes:
    """Replace what strict readers refuse. What no number can be becomes a text, and so stays no number."""
    data = data.removeprefix(BOM)
    data = data.decode("utf-8", "replace").encode()
    data = _SURROGATE.sub(rb"\\ufffd", data)
    if b"NaN" in data or b"Infinity" in data:
        data = _TEXT_OR_NO_NUMBER.sub(lambda found: found[0] if found[0][:1] == b'"' else b'"not a number"', data)
    return data
