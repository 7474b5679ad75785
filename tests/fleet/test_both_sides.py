"""What was changed on both sides: the better row stands, and of two that are worth the same none is lost unheard."""

import json
import socket
from pathlib import Path

import psycopg
import pytest
from usage_ledger.fleet import pushing
from usage_ledger.fleet.exchange import begin
from usage_ledger.fleet.pushing import Pusher
from usage_ledger.fleet.server import open_books
from usage_ledger.ledger import corrections
from usage_ledger.ledger.outbox import open_outbox

from scripts.real_postgres import query
from tests.fleet.conftest import BY_SQL, FLAGGED, Run, backfill, comparable, fill, record, shown, sql, stored


@pytest.mark.parametrize(
    ("there", "pushed", "stays"),
    [
        ("complete", "partial", "complete"),
        ("partial", "complete", "complete"),
        ("missing", "partial", "partial"),
        ("none", "missing", "none"),
        ("none", "complete", "complete"),
    ],
)
def test_of_two_ledgers_with_one_row_the_better_stands(
    tmp_path: Path, dsn: str, run: Run, there: str, pushed: str, stays: str
) -> None:
    first, second = (fill(tmp_path / f"{state}.db", record(1, usage_state=state)) for state in (there, pushed))
    run("push", dsn, "--db", first, "--source", "a")
    run("push", dsn, "--db", second, "--source", "b")
    run("push", dsn, "--db", first, "--source", "a")
    assert stored(dsn, "usage_state") == [(stays,)]


def test_of_two_lower_bounds_the_larger_stands(tmp_path: Path, dsn: str, run: Run) -> None:
    for name, total in (("a", 5), ("b", 9), ("c", 7)):
        partial = record(1, usage_state="partial", total_tokens=total)
        run("push", dsn, "--db", fill(tmp_path / f"{name}.db", partial), "--source", name)
    assert stored(dsn, "total_tokens") == [(9,)]


def test_what_was_edited_there_is_never_overwritten(ledger: Path, dsn: str, run: Run) -> None:
    fill(ledger, record(1, usage_state="partial"))
    run("push", dsn, "--db", ledger)
    query(dsn, "UPDATE usage_records SET output_tokens = 7, total_tokens = 19")
    fill(ledger, record(1))
    done = run("push", dsn, "--db", ledger, code=1)
    assert f"row {record(1).id} was changed here and in the books; see pull --prefer" in done.stderr
    assert stored(dsn, "output_tokens", "usage_state", "edited_by IS NOT NULL") == [(7, "partial", True)]


def test_an_acceptance_counts_more_than_none_and_less_than_usage(tmp_path: Path, dsn: str, run: Run) -> None:
    """Also where the ledger that it was made in has the row from elsewhere, such as from a replay."""
    proxy, desk, other = (fill(tmp_path / f"{name}.db", record(1, **FLAGGED)) for name in ("web", "desk", "other"))
    run("push", dsn, "--db", proxy, "--source", "web")
    run("review", "accept", record(1).id, "--note", "never billed", "--db", desk)
    for path in (desk, other, proxy):
        run("push", dsn, "--db", path, "--source", path.stem)
        assert stored(dsn, "usage_state", "requires_manual_review") == [("missing", 0)]
    fill(proxy, record(1))
    run("push", dsn, "--db", proxy, "--source", "web")
    assert stored(dsn, "usage_state") == [("complete",)]


def test_what_was_not_taken_waits_on_whatever_happens_next(
    ledger: Path, dsn: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(ledger, record(1, usage_state="partial"), record(2))
    run("push", dsn, "--db", ledger)
    query(dsn, "UPDATE usage_records SET tag = 'x'")
    for number in (1, 2):
        fill(ledger, record(number, tag="y", usage_state="complete"))
    monkeypatch.setattr(pushing, "BATCH", 1)
    with open_outbox(ledger) as outbox, open_books(dsn) as (connection, books):
        begin(connection, books, outbox, print)
        first = next(Pusher(outbox, connection, socket.gethostname()).push())
        assert [each.row_id for each in first.left] == [record(1).id]
    done = run("push", dsn, "--db", ledger, code=1)
    assert f"row {record(1).id} was changed here and in the books" in done.stderr


def test_of_many_rows_that_are_not_taken_some_are_named(ledger: Path, dsn: str, run: Run) -> None:
    fill(ledger, *(record(each, usage_state="partial") for each in range(30)))
    run("push", dsn, "--db", ledger)
    query(dsn, "UPDATE usage_records SET tag = 'x'")
    fill(ledger, *map(record, range(30)))
    done = run("push", dsn, "--db", ledger, code=1)
    assert done.stderr.count("\n") == 21
    assert "and 10 more: each was changed here and in the books; see pull --prefer" in done.stderr


def two_corrections(proxy: Path, desk: Path, dsn: str, run: Run) -> None:
    fill(proxy, record(1, **FLAGGED))
    run("push", dsn, "--db", proxy, "--source", "web-1")
    run("pull", dsn, "--db", desk)
    backfill(run, desk, 1, 500)
    backfill(run, proxy, 1, 600)
    run("push", dsn, "--db", desk, "--source", "desk")


def test_two_corrections_of_one_row_are_a_conflict_that_nobody_loses(
    proxy: Path, desk: Path, dsn: str, run: Run
) -> None:
    two_corrections(proxy, desk, dsn, run)
    for _ in range(2):  # it is told until it is settled
        done = run("push", dsn, "--db", proxy, "--source", "web-1", code=1)
        assert f"row {record(1).id} was changed here and in the books" in done.stderr
        done = run("pull", dsn, "--db", proxy, code=1)
        assert "1 conflict(s); --prefer ours or theirs settles them" in done.stderr
        assert shown(proxy, 1, "input_tokens") == (600,)
        assert query(dsn, "SELECT input_tokens FROM usage_records") == [(500,)]


def test_a_conflict_is_settled_for_theirs(proxy: Path, desk: Path, dsn: str, run: Run) -> None:
    two_corrections(proxy, desk, dsn, run)
    run("push", dsn, "--db", proxy, "--source", "web-1", code=1)
    run("pull", dsn, "--db", proxy, "--prefer", "theirs")
    run("push", dsn, "--db", proxy, "--source", "web-1")
    assert shown(proxy, 1, "input_tokens") == (500,)
    assert "all is well" in run("verify", "--db", proxy).stdout


def test_a_conflict_is_settled_for_ours(proxy: Path, desk: Path, dsn: str, run: Run) -> None:
    two_corrections(proxy, desk, dsn, run)
    run("push", dsn, "--db", proxy, "--source", "web-1", code=1)
    run("pull", dsn, "--db", proxy, "--prefer", "ours")
    run("push", dsn, "--db", proxy, "--source", "web-1")
    assert query(dsn, "SELECT input_tokens FROM usage_records") == [(600,)]
    run("pull", dsn, "--db", desk)
    assert shown(desk, 1, "input_tokens") == (600,)
    assert "all is well" in run("verify", "--db", desk).stdout


def test_an_edit_by_sql_does_not_undo_better_usage(proxy: Path, desk: Path, dsn: str, run: Run) -> None:
    """Whatever was edited: both sides have changed, and that is told."""
    fill(proxy, record(1, usage_state="partial"))
    run("push", dsn, "--db", proxy, "--source", "web-1")
    query(dsn, "UPDATE usage_records SET tag = 'x'")
    fill(proxy, record(1))
    run("pull", dsn, "--db", proxy, code=1)
    assert shown(proxy, 1, "usage_state", "tag") == ("complete", None)
    run("pull", dsn, "--db", proxy, "--prefer", "ours")
    run("push", dsn, "--db", proxy, "--source", "web-1")
    assert query(dsn, "SELECT usage_state, tag FROM usage_records") == [("complete", None)]


def test_an_acceptance_made_elsewhere_stands(proxy: Path, desk: Path, dsn: str, run: Run) -> None:
    """Also where a pull has kept what was changed here meanwhile, and where the row had never come from the books."""
    fill(proxy, record(1, **FLAGGED))
    run("push", dsn, "--db", proxy, "--source", "web-1")
    run("pull", dsn, "--db", desk)
    run("review", "accept", record(1).id, "--note", "never billed", "--db", desk)
    run("push", dsn, "--db", desk, "--source", "desk")
    sql(proxy, "UPDATE usage_records SET tag = 'x'")
    for _ in range(2):
        run("pull", dsn, "--db", proxy)
        run("push", dsn, "--db", proxy, "--source", "web-1")
    assert query(dsn, "SELECT requires_manual_review FROM usage_records") == [(0,)]
    assert shown(proxy, 1, "requires_manual_review") == (0,)


def test_an_acceptance_of_a_row_that_was_pushed_from_here_is_not_undone(proxy: Path, dsn: str, run: Run) -> None:
    fill(proxy, record(1, **FLAGGED))
    run("push", dsn, "--db", proxy)
    run("review", "accept", record(1).id, "--note", "never billed", "--db", proxy)
    run("pull", dsn, "--db", proxy)
    assert shown(proxy, 1, "requires_manual_review") == (0,)
    run("push", dsn, "--db", proxy)
    run("pull", dsn, "--db", proxy)
    assert query(dsn, "SELECT requires_manual_review FROM usage_records") == [(0,)]
    assert shown(proxy, 1, "requires_manual_review") == (0,)


def test_an_acceptance_from_before_the_first_pull_is_not_undone(proxy: Path, desk: Path, dsn: str, run: Run) -> None:
    """Such as one of a row that a replay has made: nobody has noted then that it changed."""
    fill(desk, record(1, **FLAGGED))
    run("review", "accept", record(1).id, "--note", "never billed", "--db", desk)
    fill(proxy, record(1, **FLAGGED))
    run("push", dsn, "--db", proxy, "--source", "web-1")
    run("pull", dsn, "--db", desk)
    assert shown(desk, 1, "requires_manual_review") == (0,)


def test_a_correction_and_an_acceptance_of_one_row_are_a_conflict(proxy: Path, desk: Path, dsn: str, run: Run) -> None:
    fill(proxy, record(1, **FLAGGED))
    run("push", dsn, "--db", proxy, "--source", "web-1")
    run("pull", dsn, "--db", desk)
    backfill(run, desk, 1, 500)
    run("push", dsn, "--db", desk, "--source", "desk")
    run("review", "accept", record(1).id, "--note", "never billed", "--db", proxy)
    run("pull", dsn, "--db", proxy, code=1)
    run("pull", dsn, "--db", proxy, "--prefer", "theirs")
    assert comparable(proxy) == comparable(desk)


def test_a_correction_by_sql_beside_one_at_the_desk_is_a_conflict(proxy: Path, desk: Path, dsn: str, run: Run) -> None:
    fill(proxy, record(1, **FLAGGED))
    run("push", dsn, "--db", proxy)
    run("pull", dsn, "--db", desk)
    query(dsn, BY_SQL % record(1).id)
    backfill(run, desk, 1, 500)
    run("push", dsn, "--db", desk, "--source", "desk", code=1)
    run("pull", dsn, "--db", desk, code=1)
    assert shown(desk, 1, "input_tokens") == (500,)
    assert query(dsn, "SELECT input_tokens FROM usage_records") == [(1200,)]


def test_a_correction_that_was_never_pushed_is_not_overwritten(proxy: Path, desk: Path, dsn: str, run: Run) -> None:
    fill(proxy, record(1, **FLAGGED))
    run("push", dsn, "--db", proxy)
    run("pull", dsn, "--db", desk)
    backfill(run, desk, 1, 500)
    query(dsn, BY_SQL % record(1).id)
    run("pull", dsn, "--db", desk, code=1)
    assert shown(desk, 1, "input_tokens") == (500,)


def test_a_correction_of_a_correction_is_no_conflict(proxy: Path, desk: Path, dsn: str, run: Run) -> None:
    fill(proxy, record(1, **FLAGGED))
    backfill(run, proxy, 1, 500)
    run("push", dsn, "--db", proxy, "--source", "web-1")
    run("pull", dsn, "--db", desk)
    run("backfill", "--id", record(1).id, "--input-tokens", 7, "--note", "x", "--force", "--db", desk)
    run("push", dsn, "--db", desk, "--source", "desk")
    run("pull", dsn, "--db", proxy)
    assert shown(proxy, 1, "input_tokens") == (7,)
    assert comparable(proxy) == comparable(desk)
    assert "all is well" in run("verify", "--db", proxy).stdout


def test_push_and_pull_agree_on_what_a_row_is_worth(dsn: str) -> None:
    """The one decides in SQL and the other in Python; were they of two minds, one would undo what the other did."""
    rows = [
        record(1, usage_state=state, total_tokens=total, metadata=json.dumps(dict.fromkeys(marks, True)))
        for state in ("complete", "none", "partial", "missing")
        for marks in ((), ("_accepted",), ("_manually_updated",), ("_accepted", "_manually_updated"))
        for total in (1, 2)
    ]
    with psycopg.connect(dsn) as connection:
        connection.execute("CREATE TABLE r (n int, usage_state text, total_tokens bigint, metadata jsonb)")
        for number, row in enumerate(rows):
            told = [number, row.usage_state, row.total_tokens, row.metadata]
            connection.execute("INSERT INTO r VALUES (%s, %s, %s, %s)", told)
        more = connection.execute(f"SELECT a.n, b.n FROM r a, r b WHERE {pushing.worth('a')} > {pushing.worth('b')}")
        assert set(more.fetchall()) == {
            (one, other)
            for one, first in enumerate(rows)
            for other, second in enumerate(rows)
            if corrections.worth(first) > corrections.worth(second)
        }


@pytest.mark.parametrize(("here", "there"), [(1000, 2000), (2000, 1000)])
@pytest.mark.parametrize("state", ["partial", "missing"])
def test_of_two_corrections_neither_is_worth_more_whatever_the_row_was(
    proxy: Path, desk: Path, dsn: str, run: Run, state: str, here: int, there: int
) -> None:
    """The larger of two corrections is no better bound."""
    fill(proxy, record(1, **FLAGGED | {"usage_state": state}))
    run("push", dsn, "--db", proxy, "--source", "web-1")
    run("pull", dsn, "--db", desk)
    backfill(run, desk, 1, here)
    backfill(run, proxy, 1, there)
    run("push", dsn, "--db", desk, "--source", "desk")
    for name in ("push", "pull"):
        done = run(name, dsn, "--db", proxy, code=1)
        assert f"row {record(1).id} was changed here and in the books" in done.stderr
    assert (shown(proxy, 1, "input_tokens"), stored(dsn, "input_tokens")) == ((there,), [(here,)])


def test_a_correction_by_sql_that_two_ledgers_take_over_is_no_conflict(
    proxy: Path, desk: Path, dsn: str, run: Run
) -> None:
    fill(proxy, record(1, **FLAGGED))
    run("push", dsn, "--db", proxy, "--source", "web-1")
    query(dsn, BY_SQL % record(1).id)
    for path in (desk, proxy):
        run("pull", dsn, "--db", path)
    for path, name in ((desk, "desk"), (proxy, "web-1")):
        run("push", dsn, "--db", path, "--source", name)
    assert comparable(proxy) == comparable(desk)


def test_two_who_type_the_same_correction_agree(proxy: Path, desk: Path, dsn: str, run: Run) -> None:
    """They did so at different times. What one of them makes of it later is known to be made from it."""
    fill(proxy, record(1, **FLAGGED))
    run("push", dsn, "--db", proxy, "--source", "web-1")
    run("pull", dsn, "--db", desk)
    for path, name in ((desk, "desk"), (proxy, "web-1")):
        backfill(run, path, 1, 500)
        assert run("push", dsn, "--db", path, "--source", name).stderr == ""
    for path in (proxy, desk):
        assert run("pull", dsn, "--db", path).stdout == "1 row(s) match: 0 new, 0 changed here\n"
    run("backfill", "--id", record(1).id, "--input-tokens", 7, "--note", "x", "--force", "--db", proxy)
    assert run("push", dsn, "--db", proxy, "--source", "web-1").stderr == ""
    assert stored(dsn, "input_tokens") == [(7,)]
