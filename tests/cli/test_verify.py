"""`usage-ledger verify` and `review adopt`: books follow from what upstream told and from the trail, or it is said."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from usage_ledger.flows import rows as flow_rows
from usage_ledger.ledger import revisions
from usage_ledger.ledger.record import Entry, IterationRow
from usage_ledger.ledger.store import Store
from usage_ledger.messages import Ending, MessageReader
from usage_ledger.prices.pricer import Pricer

from tests.cli.test_backfill import FLAGGED, done, record, row, run, state

CORPUS = Path(__file__).parents[3] / "shared" / "corpus"
STREAMS = sorted(CORPUS.glob("*.sse"))


def usage(**counts: int) -> dict[str, object]:
    """The columns of a complete row of which upstream told these counts."""
    total = sum(counts.values())
    told = {"usage_raw": json.dumps(counts), "stop_reason": "end_turn"}
    return {**told, **counts, "total_tokens": total, "usage_state": "complete"}


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    path = tmp_path / "usage.db"
    iterations = [IterationRow("d", 0, "message", None, 1, input_tokens=8)]
    entries = [
        Entry(record("a", **FLAGGED)),
        Entry(record("b", **usage(input_tokens=1_000), total_cost="0.003", price_source=source())),
        Entry(record("c", **usage(input_tokens=7), total_cost="9", price_source="other prices 1")),
        Entry(record("d", **usage(input_tokens=8) | {"usage_raw": with_iteration(8)}), iterations),
        Entry(record("e", **FLAGGED | usage(input_tokens=5) | PARTIAL)),
        Entry(record("f", usage_state="none", http_status=429, total_cost="0", usage_raw='{"input_tokens":9}')),
        Entry(record("g")),
    ]
    with closing(Store(path, "normal", "abc")) as store:
        store.write(entries, [])
    return path


PARTIAL = {
    "usage_state": "partial",
    "stop_reason": None,
    "metadata": '{"_partial_usage":true,"_requires_manual_review":true}',
}


def source() -> str:
    from usage_ledger.prices import listed

    return listed.SOURCE


def with_iteration(tokens: int) -> str:
    return json.dumps({"input_tokens": tokens, "iterations": [{"type": "message", "input_tokens": tokens}]})


def verify(path: Path, *arguments: str) -> list[str]:
    """The findings, without the last line."""
    result = run(path, *arguments, command="verify")
    assert result.stderr == ""
    *findings, last = (line for line in result.stdout.splitlines() if "are not at hand" not in line)
    assert result.returncode == (1 if findings else 0)
    assert ("all is well" in last) is not bool(findings)
    return findings


def change(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(statement)
        connection.commit()


def test_books_that_follow_are_well(ledger: Path) -> None:
    before = state(ledger)
    assert verify(ledger) == []
    assert run(ledger, command="verify").stdout == (
        "1 cost(s) are by price data that are not at hand, and were not checked\n"
        "7 row(s) and 0 entries of the trail: all is well\n"
    )
    assert state(ledger) == before


def test_whatever_the_commands_change_is_well(ledger: Path) -> None:
    done(ledger, "--id", "a", "--input-tokens", "5", "--cache-creation-input-tokens", "7")
    run(ledger, "accept", "e", "--note", "x", command="review")
    for arguments in ((), ("--since", "2020-01-01")):
        run(ledger, *arguments, command="price")
    assert verify(ledger) == []
    assert "7 row(s) and 4 entries" in run(ledger, command="verify").stdout


def test_an_accepted_row_that_a_better_one_replaced_is_well(ledger: Path) -> None:
    run(ledger, "accept", "e", "--note", "x", command="review")
    with closing(Store(ledger, "normal", "abc")) as store:
        store.write([Entry(record("e", **usage(input_tokens=6)))], [])
    assert row(ledger, "e")["total_tokens"] == 6
    assert verify(ledger) == []


def test_an_accepted_row_that_a_larger_bound_replaced_and_that_was_filled_in_then_is_well(ledger: Path) -> None:
    run(ledger, "accept", "--flagged", "--note", "x", command="review")
    with closing(Store(ledger, "normal", "abc")) as store:
        larger = usage(input_tokens=50) | PARTIAL
        store.write([Entry(record(id_, **FLAGGED | larger)) for id_ in "ae"], [])
    assert row(ledger, "e")["total_tokens"] == 50
    assert verify(ledger) == []
    done(ledger, "--id", "a", "--output-tokens", "5")
    assert verify(ledger) == []


def test_a_row_that_came_by_pull_and_that_a_better_one_replaced_is_well(ledger: Path) -> None:
    """Its entry in the trail tells of all that it was."""
    change(ledger, "UPDATE usage_records SET tag = 'x' WHERE id = 'e'")
    before = row(ledger, "e")
    with closing(sqlite3.connect(ledger)) as connection, connection:
        revisions.append(connection, "pull", [revisions.Revision("e", "from the fleet's books", {}, before)])
    assert verify(ledger) == []
    with closing(Store(ledger, "normal", "abc")) as store:
        store.write([Entry(record("e", **usage(input_tokens=6)))], [])
    assert verify(ledger) == []
    change(ledger, "UPDATE usage_records SET total_tokens = 5 WHERE id = 'e'")
    assert verify(ledger) != []


EDITS = {
    "input_tokens = 5": "input_tokens is 5",
    "total_tokens = 5": "total_tokens is 5, which is not their sum",
    "total_cost = '5'": "total_cost is 5, by its prices it is 0.003",
    "total_cost = 'much'": "total_cost is 'much', which is no amount",
    "requires_manual_review = 1": "requires_manual_review is 1, its reason None",
    "metadata = '{\"_manually_updated\":true}'": "metadata has _manually_updated",
    "metadata = '{bad'": "metadata is no JSON object",
    "usage_raw = '{bad'": "usage_raw is not what upstream told",
    "usage_raw = NULL": "input_tokens is 1000, upstream told 0",
    "usage_raw = '{\"input_tokens\":-5}'": "usage_raw is not what upstream told",
    "model = 'claude-opus-9'": "total_cost is 0.003, but",
    "price_source = NULL": "nothing says by which prices",
    "total_cost = NULL": "total_cost is gone",
    "usage_raw = NULL, input_tokens = 0, total_tokens = 0, total_cost = '0'": "it is complete, and upstream told no",
    "usage_state = 'partial', metadata = '{\"_partial_usage\":true}'": "it is partial, and has no review_reason",
    "usage_state = 'none', input_tokens = 0, total_tokens = 0": "nothing says why nothing is billed",
    "review_reason = 'multiple_messages', usage_raw = NULL": "input_tokens is 1000, upstream told 0",
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_row_that_was_changed_by_plain_sql_is_named(ledger: Path, edit: str) -> None:
    change(ledger, f"UPDATE usage_records SET {edit} WHERE id = 'b'")
    findings = verify(ledger)
    assert all(finding.startswith("row b: ") for finding in findings)
    assert any(EDITS[edit] in finding for finding in findings)


HIDDEN = "requires_manual_review = 0, review_reason = NULL, metadata = '{}'"


@pytest.mark.parametrize(
    ("id_", "edit", "says"),
    [
        ("a", f"usage_state = 'complete', {HIDDEN}", "upstream told no usage"),
        ("a", "total_cost = '5', price_source = 'x'", "there is no final usage"),
        ("e", "total_cost = '5', price_source = 'x'", "there is no final usage"),
        ("e", "usage_state = 'missing', metadata = '{\"_no_usage_data\":true}'", "it is missing, and upstream told"),
        ("f", "total_cost = '5'", "nothing is billed"),
        ("f", "total_cost = 'junk'", "nothing is billed"),
        ("f", "total_cost = NULL", "nothing is billed"),
    ],
)
def test_a_state_or_a_cost_that_cannot_be_is_named(ledger: Path, id_: str, edit: str, says: str) -> None:
    """What would hide a row from the queue, or bill what is not billed."""
    change(ledger, f"UPDATE usage_records SET {edit} WHERE id = '{id_}'")
    assert any(says in finding for finding in verify(ledger))


@pytest.mark.parametrize(
    "edit",
    ["input_tokens = 6", "total_tokens = 99", "requires_manual_review = 1", "total_cost = '1'", "metadata = '{}'"],
)
def test_a_revised_row_that_was_changed_afterwards_is_named(ledger: Path, edit: str) -> None:
    done(ledger, "--id", "a", "--input-tokens", "5")
    change(ledger, f"UPDATE usage_records SET {edit} WHERE id = 'a'")
    assert any("row a: " in finding and "the trail says" in finding for finding in verify(ledger))


def test_what_an_iteration_cost_is_part_of_the_trail(ledger: Path) -> None:
    run(ledger, command="price")
    change(ledger, "UPDATE usage_iterations SET total_cost = '5'")
    assert any("row d: iteration_costs is ['5']" in finding for finding in verify(ledger))


def test_what_an_iteration_cost_is_checked_where_the_trail_says_nothing_of_it(tmp_path: Path) -> None:
    iterations = [IterationRow("d", 0, "message", None, 1, input_tokens=8, total_cost="5")]
    fields = usage(input_tokens=8) | {"usage_raw": with_iteration(8)}
    one = Entry(record("d", **fields, total_cost="0.000024", price_source=source()), iterations)
    with closing(Store(tmp_path / "usage.db", "normal", "abc")) as store:
        store.write([one], [])
    assert verify(tmp_path / "usage.db") == ["row d: what its iterations cost is not what their prices say"]


TAMPERED = {
    "UPDATE usage_revisions SET reason = 'another' WHERE position = 2": "trail: entry 2 (backfill, row a, ",
    "UPDATE usage_revisions SET after = '{}' WHERE position = 1": "trail: entry 1 (backfill, row a, ",
    "UPDATE usage_revisions SET hash = 'x' WHERE position = 3": "trail: entry 3 (backfill, row a, ",
    "UPDATE usage_revisions SET position = 9 WHERE position = 3": "trail: entry 3 is missing; the one that follows",
    "DELETE FROM usage_revisions WHERE position = 1": "trail: entry 1 is missing; the one that follows has number 2",
}


@pytest.mark.parametrize("statement", TAMPERED)
def test_the_first_broken_link_of_the_trail_is_named(ledger: Path, statement: str) -> None:
    for count in "567":
        done(ledger, "--id", "a", "--input-tokens", count)
    for trigger in ("stay", "remain", "follow"):
        change(ledger, f"DROP TRIGGER usage_revisions_{trigger}")
    assert len(verify(ledger)) == 3  # the triggers that are gone
    change(ledger, statement)
    assert verify(ledger)[3].startswith(TAMPERED[statement])


def test_a_revised_row_that_is_gone_is_named(ledger: Path) -> None:
    done(ledger, "--id", "a", "--input-tokens", "5")
    change(ledger, "DELETE FROM usage_records WHERE id = 'a'")
    assert verify(ledger) == ["row a: it is in the trail, and not in the ledger"]


def test_a_damaged_file_is_said(ledger: Path) -> None:
    change(ledger, "PRAGMA journal_mode = DELETE")
    change(ledger, "PRAGMA writable_schema = 1")
    with closing(sqlite3.connect(ledger)) as connection:
        connection.execute("PRAGMA writable_schema = 1")
        connection.execute(
            "UPDATE sqlite_master SET sql = replace(sql, '(model', '(tag') WHERE name LIKE '%message_id'"
        )
        connection.execute("DELETE FROM sqlite_master WHERE name = 'usage_records_occurred_at'")
        connection.commit()
    result = run(ledger, command="verify")
    assert result.returncode in (1, 2)
    assert "all is well" not in result.stdout


def test_an_older_ledger_has_no_trail_and_is_well(ledger: Path) -> None:
    change(ledger, "DROP TABLE usage_revisions")
    assert verify(ledger) == ["trail: its table usage_revisions is gone"]
    change(ledger, "DELETE FROM _sqlite_migrations WHERE name = 'create_usage_revisions'")
    assert verify(ledger) == []


def test_the_original_notes_update_is_adopted(ledger: Path) -> None:
    """Backfilled by plain SQL, as the note that this project comes from did it: tokens and the flag, and no cost."""
    change(
        ledger,
        "UPDATE usage_records SET input_tokens = 1000, output_tokens = 100, total_tokens = 1100, "
        "metadata = json_set(metadata, '$._manually_updated', json('true')) WHERE id = 'a'",
    )
    assert len(verify(ledger)) == 3
    told = run(ledger, "adopt", "a", "--note", "by SQL", command="review")
    assert told.stdout == "adopted a: input_tokens 0 → 1000, output_tokens 0 → 100\n"
    assert verify(ledger) == []
    found = row(ledger, "a")
    assert (found["total_tokens"], found["total_cost"], found["requires_manual_review"]) == (1100, "0.0045", 0)
    with closing(sqlite3.connect(ledger)) as connection:
        ((reason, before),) = connection.execute("SELECT reason, before FROM usage_revisions").fetchall()
    assert (reason, json.loads(before)["input_tokens"]) == ("by SQL", 0)


EDITED = {
    "iterations": ("d", "UPDATE usage_iterations SET output_tokens = 7, model = 'claude-opus-4-8', billed = NULL"),
    "iterations that are gone": ("d", "DELETE FROM usage_iterations"),
    "usage that cannot be read": ("c", "UPDATE usage_records SET usage_raw = '{bad' WHERE id = 'c'"),
    "a partial row called complete": (
        "e",
        f"UPDATE usage_records SET usage_state = 'complete', {HIDDEN} WHERE id = 'e'",
    ),
}


@pytest.mark.parametrize("what", EDITED)
def test_what_was_edited_beside_the_counts_is_named_and_can_be_adopted(ledger: Path, what: str) -> None:
    id_, statement = EDITED[what]
    change(ledger, statement)
    findings = verify(ledger)
    assert findings
    assert all(finding.startswith(f"row {id_}: ") for finding in findings)
    assert run(ledger, "adopt", id_, "--note", "meant so", command="review").returncode == 0
    assert verify(ledger) == []
    if what.startswith("iterations"):
        change(ledger, "DELETE FROM usage_iterations")
        change(ledger, "INSERT INTO usage_iterations VALUES ('d', 0, 'message', NULL, 1, 9, 0, 0, 0, 0, 0, NULL)")
        assert any("row d: iterations is" in finding for finding in verify(ledger))


def test_each_edit_of_an_iteration_is_named(ledger: Path) -> None:
    change(ledger, "UPDATE usage_iterations SET output_tokens = 7, billed = NULL")
    assert verify(ledger) == [
        "row d: iteration 0: billed is None, upstream told 1",
        "row d: iteration 0: output_tokens is 7, upstream told 0",
    ]
    change(ledger, "DELETE FROM usage_iterations")
    assert verify(ledger) == ["row d: it has 0 iteration(s), upstream told 1"]


def test_what_price_puts_right(ledger: Path) -> None:
    """Whatever `verify` names of a cost, `price` puts right, and the second time there is nothing to do."""
    for id_, edit in (
        ("a", "total_cost = '5'"),
        ("b", "price_source = NULL"),
        ("e", "total_cost = 'junk', price_source = 'x'"),
        ("f", "total_cost = NULL"),
    ):
        change(ledger, f"UPDATE usage_records SET {edit} WHERE id = '{id_}'")
    assert len(verify(ledger)) == 4
    would = run(ledger, "--dry-run", command="price").stdout
    told = run(ledger, command="price").stdout
    assert told.replace("changed", "would change") == would
    assert told.startswith("changed 5 rows\n")  # and d, which had no cost yet
    assert verify(ledger) == []
    assert [row(ledger, id_)["total_cost"] for id_ in "abef"] == [None, "0.003", None, "0"]
    assert run(ledger, command="price").stdout.startswith("changed 0 rows\n")


def test_what_cannot_be_adopted_is_one_line(ledger: Path) -> None:
    empty = run(ledger, "adopt", "b", "--note", " ", command="review")
    assert (empty.returncode, empty.stderr.count("\n")) == (2, 1)
    for id_, says in (("b", "nothing to adopt"), ("nobody", "there is no row")):
        result = run(ledger, "adopt", id_, "--note", "x", command="review")
        assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
        assert says in result.stderr
    change(ledger, "UPDATE usage_records SET input_tokens = -5 WHERE id = 'b'")
    before = state(ledger)
    assert "cannot be adopted" in run(ledger, "adopt", "b", "--note", "x", command="review").stderr
    change(ledger, "UPDATE usage_records SET input_tokens = 5 WHERE id = 'b'")
    assert run(ledger, "adopt", "b", "--note", "x", "--dry-run", command="review").stdout.startswith("would adopt b")
    assert state(ledger)[1] == before[1]


@pytest.mark.skipif(not STREAMS, reason="the recorded streams are not there")
def test_the_rows_of_recorded_streams_are_well(tmp_path: Path) -> None:
    ledger = tmp_path / "usage.db"
    pricer = Pricer()
    entries = []
    for path in STREAMS:
        for cut in (None, 600):
            reader = MessageReader()
            reader.feed(path.read_bytes()[:cut])
            reader.finish(clean=cut is None)
            verdict = reader.verdict(Ending.FINISHED if cut is None else Ending.UPSTREAM_CLOSED, 200)
            one = record(f"{path.stem} {cut}", request_id=None, message_id=None)
            flow_rows.describe(one, verdict)
            one.metadata = json.dumps(verdict.metadata)
            entries.append(Entry(one, flow_rows.iteration_rows(one.id, verdict)))
            pricer.fill(entries[-1])
    with closing(Store(ledger, "normal", "abc")) as store:
        store.write(entries, [])
    assert verify(ledger) == []
