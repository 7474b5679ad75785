"""Filler: a capture's prompts, answers and ids replaced by `x`, so that the capture can be shown to others.

Room: messages. Imports the standard library, `msgspec` and its neighbours in this room. Promises, for any bytes: as
many bytes as were given, line breaks where they were, linear time, no recursion, never an exception. What is not known
to be safe is filled, so a field that the API adds one day is filled until it is listed here. Kept are the framing of
events, the structure of JSON, the names of the API's own fields, short plain labels as a model or a stop reason, and of
answers the message's id and its usage where the reader looks for them: all that `MessageReader` judges by. It gives the
same verdict on what was filled, as long as upstream's labels and ids are plain. Of JSON that is broken only the fields
of usage that are known are kept, since what follows may stand in it because its end is missing.

JSON is not decoded but scanned, token by token, because the bodies worth showing are the broken ones. Each value
stands in a zone (`_Zone`) that the names above it decide. Where brackets do not match, or are nested deeper than any
reader goes, all that follows is opaque.
Of an event or answer that cannot be decoded, or is too long to be, the words that the reader searches for (`error`,
`message_`, `"usage"`) are left also where they stand in a text, because nothing else decides its verdict.
"""

import enum
import json
import re

import msgspec

from usage_ledger.messages import lenient
from usage_ledger.messages.sse import EVENT_LIMIT
from usage_ledger.messages.text import BOM
from usage_ledger.messages.usage import COUNT_PATHS, PRICED_BY


class _Zone(enum.Enum):
    """Where a value stands, and so what of it is kept."""

    ANSWER = enum.auto()  # a JSON answer: as PLAIN, and the message's id and usage are kept
    EVENT = enum.auto()  # an event's data: as PLAIN, and usage is kept, also that of its `delta`
    MESSAGE = enum.auto()  # the `message` of an event: as ANSWER
    DELTA = enum.auto()  # the `delta` of an event: as PLAIN, and usage is kept
    PLAIN = enum.auto()  # known names, literals, the numbers and labels listed
    USAGE = enum.auto()  # every name of a field, number and literal, and the labels listed
    COUNTS = enum.auto()  # usage that may have no end: its known names with their numbers, and the labels listed
    OPAQUE = enum.auto()  # nothing but structure


_CONTENT = frozenset({b"content_block_start", b"content_block_delta", b"content_block_stop"})
_READ = _CONTENT | {b"message_start", b"message_delta", b"message_stop", b"ping", b"error", b"usage"}
"""What the reader looks for in data that it cannot decode; kept in responses wherever it stands as a token."""

_MARKERS = re.compile(rb'message_|error|(?<!\\)\\*+"(?:usage|content_block_(?:start|delta|stop))"')
"""What the reader looks for anywhere in an event; with the backslashes that say whether a quote is one."""

_NUMBER_FIELDS = """
budget_tokens cleared_input_tokens cleared_thinking_turns cleared_tool_uses index max_content_tokens max_tokens
max_tokens_to_sample max_uses original_input_tokens temperature top_k top_p
"""
_NUMBERS = frozenset(_NUMBER_FIELDS.split())
"""Fields whose number is kept."""

_USAGE_LABELS = frozenset({"type", "model", *PRICED_BY})
_LABELS = _USAGE_LABELS | {"role", "stop_reason", "category", "ttl", "media_type"}
"""Fields whose text is kept where it is plain."""

_STAND_IN: dict[str, frozenset[str]] = {
    "role": frozenset({"", "messages", "message"}),
    "stop_reason": frozenset({"", "message", "delta"}),
    "category": frozenset({"stop_details"}),
    "ttl": frozenset({"cache_control"}),
    "media_type": frozenset({"source"}),
    "service_tier": frozenset({"", "message"}),
    "inference_geo": frozenset({"", "message"}),
    "speed": frozenset({"", "message", "fallbacks"}),
    "model": frozenset({"", "message", "tools", "fallbacks", "fallback_credit", "from", "to"}),
}
"""Labels that stand in some objects alone, by the names of these ("" is the whole); elsewhere they are a caller's."""

_HELD_IN = """
messages system content tools citations mcp_servers skills edits applied_edits fallbacks allowed_tools tool_references

message delta content_block usage error stop_details fallback_credit source cache_control tool_choice thinking
output_config format output_format container context_management trigger keep clear_at_least tool_configuration
default_config user_location caller task_budget from to
"""
_LISTS, _OBJECTS = (frozenset(names.split()) for names in _HELD_IN.split("\n\n"))
"""Fields under which the API has a list of objects, and an object. `citations` is either. Others are a caller's own."""

_BLOCK_WORDS = """
audio base64 bash block char citation code compaction computer container content custom delta document editor encrypted
error execution fallback fetch file image input json list location mcp memory page pdf plain redacted reference result
results search server text thinking tool uploads url use video web
"""
_BLOCK = re.compile(rf"(?:{'|'.join(_BLOCK_WORDS.split())})(?:_(?:{'|'.join(_BLOCK_WORDS.split())}|[0-9]{{8}}))*")
"""How the API calls content blocks; what a tool gave back may have a `type` of its own."""

_USAGE_NAMES = _USAGE_LABELS | {"iterations"} | {name for path in COUNT_PATHS for name in path}
"""Fields of usage; in JSON that is broken nobody knows whether what stands behind them is usage still."""

_FIELD = re.compile(r"[a-z][a-z0-9_]{0,47}")
"""How the API names the fields of usage."""

_OPAQUE = frozenset({"input", "input_schema", "metadata", "properties"})
"""Fields of the API whose inside is the caller's."""

_OTHER_FIELDS = """
messages system tools tool_choice stream stop_sequences prompt betas fallbacks mcp_servers output_config output_format
format effort thinking display container skills skill_id version context_management edits trigger keep clear_at_least
clear_tool_inputs exclude_tools pause_after_compaction instructions task_budget total cache_control strict
defer_loading allowed_callers disable_parallel_tool_use allowed_domains blocked_domains user_location user_id
tool_configuration default_config configuration allowed_tools enabled authorization_token

id name content source data url title context text citations citation cited_text document_index document_title
start_char_index end_char_index start_page_number end_page_number start_block_index end_block_index
search_result_index encrypted_index signature tool_use_id tool_name tool_reference tool_references is_error caller
tool_id server_name mcp_server_name file_id file_type encrypted_content page_age retrieved_at error_code stdout stderr
encrypted_stdout return_code lines num_lines start_line total_lines old_start old_lines new_start new_lines
is_file_update from to value

message delta content_block usage stop_sequence stop_details explanation fallback_credit recommended_model
abort_reason partial_json applied_edits expires_at error request_id status completion created_at
"""
_NAMES = _NUMBERS | _LABELS | _OPAQUE | frozenset(_OTHER_FIELDS.split())
"""Fields of the Messages API: requests, content blocks, answers. Of their values only what is listed above is kept."""

_TOKEN = re.compile(rb'"((?:[^"\\]++|\\.?+)*+)"?+|([{}\[\],:])|([^"{}\[\],: \t\r\n]++)')
_BEFORE = re.compile(rb"[ \t\r\n\xef\xbb\xbf]*+")
_SOUND = re.compile(rb'(?:[^"\\\x00-\x1f]++|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*+')
_NUMBER = re.compile(rb"-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?|NaN|-?Infinity")
_LITERALS = frozenset({b"true", b"false", b"null"})
_LABEL = re.compile(r"(?!.*sk-ant-)[a-z0-9][a-z0-9_./+-]{0,63}")
_MODEL = re.compile(r"(?!.*sk-ant-)[A-Za-z0-9][A-Za-z0-9_.:@/\[\]-]{0,127}")
_ID = re.compile(r"(?!.*sk-ant-)[A-Za-z0-9_.:-]{1,128}")
_ROLES = frozenset({"user", "assistant", "system"})
_DEEPEST = 10_000
"""Levels of JSON beyond which no reader here goes (Python's own limit is below that)."""

_LINE = re.compile(
    rb"(?:(data|event|id|retry)(?::\x20?+|(?=[\r\n]|\Z))|(:))?+"  # a field, or a comment
    rb"([^\r\n]*+)(?:\r\n?+|\n|\Z)"
)
_KEY_KIND = re.compile(r"sk-ant-(?:(?:api|oat|admin|ort|sid)[0-9]{0,3}-)?")

_FILL = bytes(byte if byte in b"\r\n" else ord("x") for byte in range(256))
_STRUCTURE = b'{}[],:" \t\r\n'
_FILL_DEEP = bytes(byte if byte in _STRUCTURE else ord("x") for byte in range(256))
_FILL_NUMBER = bytes(byte if byte in b"+-.eE" else ord("1") for byte in range(256))

_anything = msgspec.json.Decoder(dict[str, msgspec.Raw])


def fill_request(body: bytes) -> bytes:
    """Fill a request body of the Messages API, decoded from its content encoding."""
    return _fill_json(body, _Zone.PLAIN, frozenset(), _Zone.OPAQUE)


def fill_response(body: bytes) -> bytes:
    """Fill a response body, decoded from its content encoding: a JSON answer, an event stream or anything else."""
    if not body.startswith(b"{", _end_of(_BEFORE, body)):
        return _fill_events(body)
    is_whole = _is_readable(body)
    out = bytearray(_fill_json(body, _Zone.ANSWER, _READ, _Zone.USAGE if is_whole else _Zone.COUNTS))
    if not is_whole:
        _put_markers_back(body, out, 0, len(body))
    return bytes(out)


def fill_text(text: str) -> str:
    """Fill a text of which nothing is known, as a header's value."""
    return "x" * len(text)


def fill_key(credential: str) -> str:
    """Fill a credential but for the prefix that says which kind of key it is."""
    kind = _KEY_KIND.match(credential)
    kept = kind.group() if kind else ""
    return kept + fill_text(credential[len(kept) :])


def _fill_events(body: bytes) -> bytes:
    """Fill an event stream. A line that is no field stays none, as `x` is none."""
    out = bytearray(body)
    begin = len(BOM) if body.startswith(BOM) else 0
    name, data = b"", list[tuple[int, int]]()
    for line in _LINE.finditer(body, begin):
        start, end = line.span(3)
        if line.start() == end:
            if begin < end:
                _fill_event(body, out, (begin, end), name, data)
            begin, name, data = line.end(), b"", []
            continue
        field, value = line[1], line[3]
        if field == b"data":
            data.append((start, end))
            continue
        if field == b"event" and end - begin <= EVENT_LIMIT:  # the reader sees no name behind the limit
            name = value
        if field == b"retry" and value.isdigit():
            out[start:end] = value.translate(_FILL_NUMBER)
        elif field != b"event" or value not in _READ:
            out[start:end] = value.translate(_FILL)
    return bytes(out)


def _fill_event(body: bytes, out: bytearray, span: tuple[int, int], name: bytes, lines: list[tuple[int, int]]) -> None:
    """Fill the data of one event, which is one text in however many lines."""
    begin, end = span
    data = b"\n".join([body[start:end] for start, end in lines])
    is_whole = end - begin <= EVENT_LIMIT and (not lines or _is_readable(data))
    filled, at = _fill_json(data, _Zone.EVENT, _READ, _Zone.USAGE if is_whole else _Zone.COUNTS), 0
    for start, end in lines:
        out[start:end] = filled[at : at + end - start]
        at += end - start + 1
    if name not in _CONTENT and not is_whole:
        _put_markers_back(body, out, begin, end)


def _is_readable(data: bytes) -> bool:
    return lenient.decode(_anything, data) is not None


def _put_markers_back(body: bytes, out: bytearray, begin: int, end: int) -> None:
    """Undo the filling where markers stood: they are all that the reader can judge by where it cannot decode."""
    for marker in _MARKERS.finditer(body, begin, end):
        out[marker.start() : marker.end()] = marker.group()


def _fill_json(body: bytes, root: _Zone, words: frozenset[bytes], usage: _Zone) -> bytes:
    """Fill JSON as far as it goes, and what is none.

    `words` are kept wherever they are a token of their own. `usage` is the zone of usage where the reader looks for it.
    """
    out = bytearray(body)
    stack: list[tuple[_Zone, bool, str]] = []
    # The object or list we are in: its zone, whether it is an object, the name it stands under (or the list that it is
    # in), and whether it waits for a name.
    zone, is_object, owner, unnamed = _Zone.OPAQUE, False, "", False
    # The value that comes next: the name it stands under ("" in a list), and its zone.
    at = _end_of(_BEFORE, body)
    name, inner = "", root if body.startswith(b"{", at) else _Zone.OPAQUE
    for token in _TOKEN.finditer(body, at):
        text, mark, bare = token.groups()
        if mark == b":":
            unnamed = False
        elif mark == b",":
            unnamed, name, inner = is_object, "", _Zone.OPAQUE if is_object else zone
        elif mark == b"{" or mark == b"[":
            stack.append((zone, is_object, owner))
            if len(stack) > _DEEPEST:
                return bytes(out[: token.start()]) + body[token.start() :].translate(_FILL_DEEP)
            if inner is _Zone.PLAIN and not _holds(name, is_object, mark):
                inner = _Zone.OPAQUE
            owner = name if is_object else owner
            is_object = unnamed = mark == b"{"
            zone = inner if is_object or inner in (usage, _Zone.OPAQUE) else _Zone.PLAIN
            name, inner = "", _Zone.OPAQUE if is_object else zone
        elif text is not None and unnamed:
            name = _decoded(text)
            inner = _zone_of(name, zone, usage)
            if not _is_name(name, zone) and text not in words:
                out[slice(*token.span(1))] = _filled(text)
        else:
            if mark:  # the end of an object or list
                if stack and is_object == (mark == b"}"):
                    zone, is_object, owner = stack.pop()
                else:
                    stack.clear()
                    zone, is_object, owner = _Zone.OPAQUE, False, ""
                unnamed = False
            elif text is not None:
                if text not in words and not _is_label(name, _decoded(text), inner, zone, owner):
                    out[slice(*token.span(1))] = _filled(text)
            elif bare not in words:
                out[slice(*token.span(3))] = _filled_bare(bare, name, inner, owner)
            # A value has ended. Another one under the same name is no JSON, and so not what the name promises.
            name, inner = "", _Zone.OPAQUE if is_object else zone
    return bytes(out)


def _is_name(name: str, zone: _Zone) -> bool:
    """Whether a name in an object in `zone` is kept."""
    if zone is _Zone.USAGE:
        return _FIELD.fullmatch(name) is not None  # whatever the API adds, and no text that somebody put in its place
    if zone is _Zone.OPAQUE:
        return False
    return name in _NAMES or (zone is _Zone.COUNTS and name in _USAGE_NAMES)


def _zone_of(name: str, zone: _Zone, usage: _Zone) -> _Zone:
    """Return the zone of a value under `name` in an object in `zone`; of usage it is `usage`."""
    if zone in (_Zone.USAGE, _Zone.OPAQUE):
        return zone
    if zone is _Zone.COUNTS:
        return zone if name in _USAGE_NAMES else _Zone.OPAQUE
    if name not in _NAMES or name in _OPAQUE:
        return _Zone.OPAQUE
    if name == "usage":
        return _Zone.OPAQUE if zone is _Zone.PLAIN else usage
    if zone is _Zone.EVENT and name in ("message", "delta"):
        return _Zone.MESSAGE if name == "message" else _Zone.DELTA
    return _Zone.PLAIN


def _holds(name: str, is_object: bool, mark: bytes) -> bool:
    """Whether the API has an object or list (by its `mark`) under a name in an object, or as an entry of a list."""
    if not is_object:
        return mark == b"{"
    return name in _OBJECTS or name == "citations" if mark == b"{" else name in _LISTS


def _is_label(name: str, text: str, inner: _Zone, zone: _Zone, owner: str) -> bool:
    """Whether a text under `name` is one of the labels that are kept.

    `inner` is its zone, `zone` its object's, `owner` the name under which that stands.
    """
    if inner is _Zone.OPAQUE:
        return False
    if inner is _Zone.PLAIN and owner not in _STAND_IN.get(name, {owner}):
        return False
    if name == "model":
        return _MODEL.fullmatch(text) is not None
    if name == "id":
        return zone in (_Zone.ANSWER, _Zone.MESSAGE) and _ID.fullmatch(text) is not None
    if name not in (_USAGE_LABELS if inner in (_Zone.USAGE, _Zone.COUNTS) else _LABELS):
        return False
    if name == "type" and owner == "content":
        return _BLOCK.fullmatch(text) is not None
    return text in _ROLES if name == "role" else _LABEL.fullmatch(text) is not None


def _filled(text: bytes) -> bytes:
    """Fill what stands between quotes. Blanks stay, as empty content and blank content are read alike.

    The first thing that makes it no JSON (a bad escape, a control character) stays one, as it decides whether the
    whole can be read.
    """
    if not text.strip(b" \t\r\n"):
        return text
    sound = _end_of(_SOUND, text)
    if sound == len(text):
        return b"x" * sound
    bad = text[sound : sound + 1]
    if bad != b"\\" and bad not in b"\r\n":
        bad = b"\t"
    return b"x" * sound + bad + text[sound + 1 :].translate(_FILL)


def _filled_bare(bare: bytes, name: str, inner: _Zone, owner: str) -> bytes:
    """Fill a number or a literal; anything else that stands outside quotes is filled as text."""
    if bare in _LITERALS:
        return bare if inner is not _Zone.OPAQUE else b"null".ljust(len(bare))
    if _NUMBER.fullmatch(bare):
        is_of_api = inner is not _Zone.OPAQUE and name in _NUMBERS and owner != "content"
        is_kept = inner in (_Zone.USAGE, _Zone.COUNTS) or is_of_api
        return bare if is_kept else bare.translate(_FILL_NUMBER)
    return bare.translate(_FILL)


def _decoded(text: bytes) -> str:
    """Read what stands between quotes, where it is short enough for a name or a label; else empty."""
    if len(text) > 1024:
        return ""
    if b"\\" not in text:
        return text.decode("utf-8", "replace")
    try:
        return str(json.loads(f'"{text.decode()}"'))
    except ValueError:
        return ""


def _end_of(pattern: re.Pattern[bytes], data: bytes) -> int:
    """Return where a pattern that matches anywhere, if only nothing, ends at the beginning of `data`."""
    match = pattern.match(data)
    return match.end() if match else 0
