"""The content blocks of a message, put together from the deltas of its stream."""

import json

from usage_ledger.messages import assembling
from usage_ledger.messages.assembling import Assembler, Block
from usage_ledger.messages.tracing import Tracer

from scripts.fake_console import MESSAGE, NORMAL, WORDS, event


def assembled(body: bytes) -> Assembler:
    assembler = Assembler()
    tracer = Tracer("", assembler.take)
    tracer.feed(body)
    tracer.finish(clean=True)
    return assembler


def told(body: bytes) -> list[tuple[str, str | None, str]]:
    return [(block.type, block.name, block.text) for block in assembled(body).blocks]


def start_of(index: object, **block: object) -> bytes:
    return event("content_block_start", index=index, content_block=block)


def delta_of(index: object, **delta: object) -> bytes:
    return event("content_block_delta", index=index, delta=delta)


def test_text_is_put_together_in_the_order_it_came() -> None:
    assert told(b"".join(NORMAL)) == [("text", None, WORDS + " ")]


def test_blocks_are_told_apart_by_their_index_also_where_their_deltas_alternate() -> None:
    body = b"".join(
        [
            start_of(0, type="thinking", thinking=""),
            start_of(1, type="tool_use", name="weather", input={}),
            delta_of(1, type="input_json_delta", partial_json='{"city":'),
            delta_of(0, type="thinking_delta", thinking="Hm"),
            delta_of(1, type="input_json_delta", partial_json='"Ulm"}'),
            delta_of(0, type="signature_delta", signature="c2ln"),
        ]
    )
    assert told(body) == [("thinking", None, "Hm"), ("tool_use", "weather", '{"city":"Ulm"}')]


def test_a_block_that_is_whole_from_its_start_is_shown() -> None:
    body = start_of(0, type="server_tool_use", name="web_search", input={"query": "tokens"})
    assert told(body) == [("server_tool_use", "web_search", '{"query":"tokens"}')]


def test_deltas_without_a_start_are_shown() -> None:
    body = delta_of(0, type="text_delta", text="a") + delta_of(0, type="text_delta", text="b")
    assert told(body) == [("block without a start", None, "ab")]


def test_a_json_answer_has_its_blocks() -> None:
    assert told(json.dumps(MESSAGE).encode()) == [("text", None, WORDS)]


def test_what_is_not_of_the_shape_it_should_have_is_left_out() -> None:
    bodies = [start_of(None), start_of(0), start_of("x", type=5, name=[], text={}, input="x"), b"data: {\n\n"]
    bodies += [delta_of([], text=5), event("content_block_delta", delta="x")]
    assert all(isinstance(block, Block) for body in bodies for block in assembled(body).blocks)


def test_text_beyond_the_limit_is_left_out_and_said() -> None:
    part = delta_of(0, type="text_delta", text="x" * 100_000)
    assembler = assembled(start_of(0, type="text") + part * 12)
    assert (len(assembler.blocks[0].text), assembler.is_cut) == (assembling.TEXT_LIMIT, True)
