"""Assembling: the content blocks of a message, put together from the deltas of its stream.

Room: messages. Imports the standard library, `msgspec` and its neighbours in this room. For looking at a body that is
there; what it returns is the completion itself and is stored nowhere. Promises bounded text, and no exception.
"""

from typing import Any

import msgspec

from usage_ledger.messages import lenient
from usage_ledger.messages.text import text_or_none
from usage_ledger.messages.tracing import JSON_ANSWER, TracedEvent

TEXT_LIMIT = 1024 * 1024
"""Characters that are put together of one body; what comes after them is left out."""

_DELTA_TEXTS = ("text", "thinking", "partial_json")
_BLOCK_TEXTS = ("text", "thinking")


class Block(msgspec.Struct):
    """A content block: its type, the name of the tool where it has one, and its text (of a tool, its input as JSON)."""

    type: str
    name: str | None = None
    parts: list[str] = msgspec.field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.parts)


class _Fields(msgspec.Struct):
    index: Any = None
    content_block: Any = None
    delta: Any = None
    content: Any = None


_decoder = msgspec.json.Decoder(_Fields)


class Assembler:
    """Takes the events of a traced body; `blocks` are its content blocks so far. `is_cut`: there was more text."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.is_cut = False
        self._open: dict[int, Block] = {}
        self._left = TEXT_LIMIT

    def take(self, event: TracedEvent, data: bytes) -> None:
        """Take an event, with its data."""
        if not event.kind.startswith("content_block_") and event.kind != JSON_ANSWER:
            return
        fields = lenient.decode(_decoder, data)
        if fields is None:
            return
        if event.kind == JSON_ANSWER:
            for content in fields.content if isinstance(fields.content, list) else ():
                self._begin(content)
        elif event.kind == "content_block_start" and isinstance(fields.index, int):
            self._open[fields.index] = self._begin(fields.content_block)
        elif event.kind == "content_block_delta" and isinstance(fields.delta, dict):
            block = self._open.get(fields.index) if isinstance(fields.index, int) else None
            if block is None:
                block = self._begin({"type": "block without a start"})
                self._open[fields.index if isinstance(fields.index, int) else -1] = block
            self._add(block, fields.delta, _DELTA_TEXTS)

    def _begin(self, content: object) -> Block:
        told = content if isinstance(content, dict) else {}
        block = Block(text_or_none(told.get("type"), 64) or "block", text_or_none(told.get("name"), 128))
        self._add(block, told, _BLOCK_TEXTS)
        if told.get("input"):
            self._add(block, {"text": msgspec.json.encode(told["input"]).decode()}, _BLOCK_TEXTS)
        self.blocks.append(block)
        return block

    def _add(self, block: Block, told: dict[str, Any], names: tuple[str, ...]) -> None:
        for name in names:
            text = told.get(name)
            if isinstance(text, str) and text:
                kept = text[: self._left]
                self.is_cut = self.is_cut or len(kept) < len(text)
                self._left -= len(kept)
                block.parts.append(kept)
