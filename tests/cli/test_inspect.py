"""`inspect`: what captures tell of each request, and whether the ledger says the same."""

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from mitmproxy.io import FlowReader, FlowWriter

from scripts.make_samples import SAMPLES
from scripts.real_proxy import replay, rows_of
from tests.cli.inspecting import DEMO, LEFT, NORMAL, inspected, run, states


@pytest.fixture(scope="module")
def demo_ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger with the rows of the demo's capture."""
    ledger = tmp_path_factory.mktemp("demo") / "usage.db"
    replay(DEMO, ledger)
    return ledger


@pytest.fixture
def ledger(demo_ledger: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    path = tmp_path / "usage.db"
    path.write_bytes(demo_ledger.read_bytes())
    return path


def change(ledger: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(ledger)) as connection, connection:
        connection.execute(statement, values)


def test_every_metered_flow_is_shown_with_its_verdict_and_why(tmp_path: Path) -> None:
    done = run(LEFT, home=tmp_path)
    assert done.returncode == 0
    assert "verdict  partial, flagged client_disconnected\n" in done.stdout
    assert "`message_delta` never came: the client left after" in done.stdout
    assert "message_start" in done.stdout
    assert done.stderr.startswith("there is no ledger at ")


def test_flows_of_several_captures_are_shown_in_their_order() -> None:
    found = inspected(LEFT, NORMAL)
    assert [each["row"]["review_reason"] for each in found] == ["client_disconnected", None]


def test_the_ledger_that_the_capture_made_says_the_same(demo_ledger: Path) -> None:
    found = inspected(DEMO, "--db", demo_ledger)
    assert states(found) == ["same"] * len(rows_of(demo_ledger))
    assert [each["ledger"]["row"] for each in found] == [row["id"] for row in rows_of(demo_ledger)]


def test_a_row_that_differs_is_told_column_by_column_with_both_values(ledger: Path) -> None:
    row = rows_of(ledger)[0]
    change(ledger, "UPDATE usage_records SET output_tokens = 7, stop_reason = NULL WHERE id = ?", row["id"])
    found = inspected(DEMO, "--db", ledger)
    assert states(found)[0] == "differs"
    assert found[0]["ledger"]["differences"] == {
        "stop_reason": {"ledger": None, "capture": "end_turn"},
        "output_tokens": {"ledger": 7, "capture": 42},
    }
    assert "           output_tokens: 7 there, 42 here\n" in run(DEMO, "--db", ledger).stdout


def test_a_row_that_is_not_there_is_told_as_absent(ledger: Path) -> None:
    change(ledger, "DELETE FROM usage_records WHERE id = ?", rows_of(ledger)[1]["id"])
    assert states(inspected(DEMO, "--db", ledger))[:3] == ["same", "absent", "same"]


@pytest.mark.parametrize(("flag", "mark"), [("_manually_updated", "corrected"), ("_accepted", "accepted")])
def test_a_row_that_a_person_has_changed_says_so(ledger: Path, flag: str, mark: str) -> None:
    row = rows_of(ledger)[1]
    change(ledger, "UPDATE usage_records SET metadata = ? WHERE id = ?", json.dumps({flag: True}), row["id"])
    assert inspected(DEMO, "--db", ledger)[1]["ledger"]["mark"] == mark
    assert f"  ledger   same ({mark})\n" in run(DEMO, "--db", ledger).stdout


def test_one_flow_is_found_by_any_of_its_ids(demo_ledger: Path) -> None:
    for each in inspected(DEMO):
        for name in filter(None, (each["flow"], each["row"]["id"], each["row"]["request_id"])):
            found = inspected(DEMO, "--flow", name)
            assert [one["flow"] for one in found] == [each["flow"]]


def test_all_events_are_shown_where_that_is_asked_for() -> None:
    few, every = inspected(NORMAL), inspected(NORMAL, "--events")
    assert len(every[0]["events"]) == sum(every[0]["events_by_kind"].values()) > len(few[0]["events"])
    assert "content_block_stop" in run(NORMAL, "--events").stdout


def test_a_har_finds_the_rows_of_its_flows(tmp_path: Path) -> None:
    """Its flows have new ids at each read; what upstream called the request lasts."""
    names = ("normal-stream", "gzipped-stream", "json-answer", "stream-without-usage", "rate-limited")
    capture, har = tmp_path / "some.mitm", tmp_path / "some.har"
    capture.write_bytes(b"".join((SAMPLES / f"{name}.mitm").read_bytes() for name in names))
    ledger, other = tmp_path / "usage.db", tmp_path / "other.db"
    replay(capture, ledger, "--set", f"hardump={har}")
    found = inspected(har, "--db", ledger)
    assert states(found) == ["same"] * len(names)
    assert {each["ledger"]["row"] for each in found} == {row["id"] for row in rows_of(ledger)}
    replay(har, other)
    again = inspected(capture, "--db", other)
    assert states(again) == ["same"] * len(names)
    assert all(each["ledger"]["row"] != each["row"]["id"] for each in again)
    row = found[0]["row"]["id"]
    assert [each["row"]["id"] for each in inspected(har, "--flow", row)] == [row]


def test_a_har_does_not_tell_how_a_response_ended(tmp_path: Path) -> None:
    har, ledger = tmp_path / "left.har", tmp_path / "usage.db"
    replay(LEFT, ledger, "--set", f"hardump={har}")
    found, *_ = inspected(har, "--db", ledger)  # mitmproxy puts a flow that broke off there twice
    assert found["ended"] is None
    assert "no more is there, and a HAR does not tell why" in found["why"]
    done = run(har, "--db", ledger)
    assert "  ended    a HAR does not tell how" in done.stdout
    assert "  ledger   differs, as row " in done.stdout
    assert ", perhaps for a HAR does not tell how the response ended\n" in done.stdout


def test_a_body_that_was_not_captured_is_why_rows_differ(tmp_path: Path) -> None:
    ledger, bare = tmp_path / "usage.db", tmp_path / "bare.mitm"
    replay(NORMAL, ledger)
    with NORMAL.open("rb") as file, bare.open("wb") as out:
        (flow,) = FlowReader(file).stream()
        flow.response.raw_content = None  # type: ignore[attr-defined]
        flow.metadata.clear()
        FlowWriter(out).add(flow)
    assert "  ledger   differs, for the capture does not hold the body\n" in run(bare, "--db", ledger).stdout


def test_what_leaves_no_row_and_what_is_compared_with_nothing_say_so(tmp_path: Path, demo_ledger: Path) -> None:
    answered = SAMPLES / "answered-by-server-replay.mitm"
    (found,) = inspected(answered, "--db", demo_ledger)
    assert found["ledger"]["state"] == "leaves no row"
    assert "  request  20" in run(answered).stdout
    done = run(NORMAL, "--format", "json", home=tmp_path)
    assert json.loads(done.stdout)[0]["ledger"]["state"] == "not compared"


def test_flows_of_several_files_say_which_they_are_from() -> None:
    assert [Path(each["file"]) for each in inspected(LEFT, NORMAL)] == [LEFT, NORMAL]
    assert f", in {NORMAL}\n" in run(LEFT, NORMAL).stdout
    assert str(NORMAL) not in run(NORMAL).stdout


def test_what_no_eye_sees_is_escaped_in_json(tmp_path: Path) -> None:
    """A character that turns a line's direction would make what is shown another thing than what is there."""
    capture = tmp_path / "odd.mitm"
    with NORMAL.open("rb") as file, capture.open("wb") as out:
        (flow,) = FlowReader(file).stream()
        flow.response.raw_content = 'data: {"usage": {"a\u202eb\x85": "\u202e"}}\n\n'.encode()  # type: ignore[attr-defined]
        FlowWriter(out).add(flow)
    done = run(capture, "--format", "json", home=tmp_path)
    assert all(character.isprintable() for character in done.stdout if character != "\n")
    assert json.loads(done.stdout)[0]["events"][0]["usage"] == {"a\u202eb\x85": "\u202e"}


def test_a_page_and_a_json_answer_have_no_events(tmp_path: Path) -> None:
    capture = tmp_path / "page.mitm"
    with NORMAL.open("rb") as file, capture.open("wb") as out:
        (flow,) = FlowReader(file).stream()
        flow.response.raw_content = b"<html>\n\n</html>"  # type: ignore[attr-defined]
        flow.response.headers["content-type"] = "text/html"  # type: ignore[attr-defined]
        FlowWriter(out).add(flow)
    assert "  response 200 text/html, 15 bytes\n" in run(capture, home=tmp_path).stdout
    assert "event" not in run(SAMPLES / "json-answer.mitm").stdout.split("  response ")[1].splitlines()[0]


def test_nothing_that_was_said_is_shown() -> None:
    for form in ("text", "json"):
        done = run(DEMO, "--events", "--format", form)
        assert "to the last token" not in done.stdout
        assert "Do the books match" not in done.stdout
        assert "no-value-whatsoever" not in done.stdout


def test_reading_leaves_the_ledger_alone(ledger: Path) -> None:
    before = ledger.read_bytes()
    run(DEMO, "--db", ledger)
    assert ledger.read_bytes() == before
    assert sorted(path.name for path in ledger.parent.iterdir()) == ["usage.db"]


def test_what_is_not_metered_is_counted_and_not_shown(tmp_path: Path) -> None:
    capture = tmp_path / "other.mitm"
    with NORMAL.open("rb") as file, capture.open("wb") as out:
        (flow,) = FlowReader(file).stream()
        FlowWriter(out).add(flow)
        flow.metadata.clear()
        flow.request.path = "/v1/messages/count_tokens"  # type: ignore[attr-defined]
        FlowWriter(out).add(flow)
    done = run(capture)
    assert done.stdout.count("verdict") == 1
    assert "1 other flow(s) are not metered\n" in done.stderr


def test_a_flow_that_is_not_there_is_told(tmp_path: Path) -> None:
    done = run(NORMAL, "--flow", "nonsense")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"usage-ledger: there is no metered flow 'nonsense' in {NORMAL}\n" in done.stderr
    done = run(NORMAL, tmp_path / "none.mitm", "--flow", "nonsense")
    assert "none.mitm: No such file or directory; there is no metered flow 'nonsense' in" in done.stderr


def test_a_flow_may_be_named_by_the_beginning_of_an_id() -> None:
    (flow,) = inspected(NORMAL)
    for whole in (flow["flow"], flow["row"]["id"], flow["row"]["request_id"]):
        found = inspected(LEFT, NORMAL, "--flow", whole[:-1])
        assert flow["flow"] in {each["flow"] for each in found}
        assert all(each["flow"].startswith(whole[:-1]) for each in found) or whole != flow["flow"]
    done = run(NORMAL, "--flow", flow["flow"][:7])
    assert (done.returncode, done.stdout) == (2, "")
    assert "is too short to tell flows apart; give 8 characters or more" in done.stderr


def test_the_beginning_of_several_ids_is_told_to_be_ambiguous() -> None:
    """The first characters of a row's id are the second in which its request began, and those of a request's a year."""
    whole = [each["row"]["id"] for each in inspected(DEMO)]
    done = run(DEMO, "--flow", whole[0][:8])
    assert (done.returncode, done.stdout.count("  verdict  ")) == (0, len(whole))
    assert f"{whole[0][:8]!r} begins the ids of several flows; all of them are shown\n" in done.stderr
    for beginning in (whole[0], whole[0][:14]):
        done = run(DEMO, DEMO, "--flow", beginning)  # the same flow, twice
        assert done.stdout.count("  verdict  ") == 2
        assert "several" not in done.stderr


def test_a_filter_says_what_is_metered_where_no_proxy_has_noted_it(tmp_path: Path) -> None:
    capture, shared, ledger = tmp_path / "other.mitm", tmp_path / "shared.mitm", tmp_path / "usage.db"
    with NORMAL.open("rb") as file, capture.open("wb") as out:
        (flow,) = FlowReader(file).stream()
        FlowWriter(out).add(flow)
        flow.metadata.clear()
        flow.request.path = "/relay/chat"  # type: ignore[attr-defined]
        flow.request.timestamp_start += 1  # type: ignore[attr-defined]
        FlowWriter(out).add(flow)
    replay(capture, ledger, "--set", "usage_filter=~u /relay/")
    assert len(rows_of(ledger)) == 2
    assert states(inspected(capture, "--db", ledger)) == ["same"]
    assert states(inspected(capture, "--db", ledger, "--filter", "~u /relay/")) == ["same", "same"]
    redact = [sys.executable, "-m", "usage_ledger", "redact", str(capture), str(shared), "--filter", "~u /relay/"]
    done = subprocess.run(redact, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{shared}: 2 flow(s)\n")
    assert states(inspected(shared, "--db", ledger)) == ["same", "same"]


@pytest.mark.parametrize("odd", ["~nonsense", "~c 200"])
def test_a_filter_that_is_none_or_asks_about_the_response_is_refused(tmp_path: Path, odd: str) -> None:
    done = run(NORMAL, "--filter", odd, home=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Invalid value for '--filter'" in done.stderr
