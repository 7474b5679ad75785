"""Iterations whose row stays as it is: a change of them is one of the row, here and there."""

from pathlib import Path

import pytest
from usage_ledger.ledger.record import IterationRow

from scripts.real_postgres import query
from tests.fleet.conftest import Run, fill, record, sql


def iterated(path: Path) -> Path:
    return fill(path, record(1), iterations=(IterationRow(record(1).id, 0, "message", None, 1, 12, 42),))


def cost_of_iteration(path: Path, cost: str) -> None:
    sql(path, "UPDATE usage_iterations SET total_cost = ?", cost)


def costs_of_iterations(dsn: str) -> list[tuple[str]]:
    return query(dsn, "SELECT total_cost::text FROM usage_iterations")


def test_what_sql_changes_in_an_iteration_alone_reaches_the_books_and_the_desk(
    proxy: Path, desk: Path, dsn: str, run: Run
) -> None:
    iterated(proxy)
    run("push", dsn, "--db", proxy, "--source", "web-1")
    run("pull", dsn, "--db", desk)
    cost_of_iteration(proxy, "0.5")
    run("push", dsn, "--db", proxy, "--source", "web-1")
    run("pull", dsn, "--db", desk)
    assert costs_of_iterations(dsn) == [("0.5",)]
    assert sql(desk, "SELECT total_cost FROM usage_iterations") == [("0.5",)]


@pytest.mark.parametrize(
    ("statement", "left"),
    [
        ("DELETE FROM usage_iterations", 0),
        (
            "INSERT INTO usage_iterations (record_id, position, input_tokens, output_tokens, "
            "cache_creation_input_tokens, cache_creation_5m_input_tokens, cache_creation_1h_input_tokens, "
            "cache_read_input_tokens) SELECT id, 1, 0, 0, 0, 0, 0, 0 FROM usage_records",
            2,
        ),
    ],
    ids=["taken away", "added"],
)
def test_iterations_that_sql_has_added_or_taken_away_reach_the_books(
    proxy: Path, dsn: str, run: Run, statement: str, left: int
) -> None:
    iterated(proxy)
    run("push", dsn, "--db", proxy)
    sql(proxy, statement)
    run("push", dsn, "--db", proxy)
    assert len(costs_of_iterations(dsn)) == left


def test_iterations_that_went_into_an_archive_are_no_news(proxy: Path, dsn: str, tmp_path: Path, run: Run) -> None:
    iterated(proxy)
    run("push", dsn, "--db", proxy)
    run("archive", "--db", proxy, "--before", "2026-11-20", tmp_path / "archive.db")
    assert sql(proxy, "SELECT * FROM usage_iterations") == []
    assert run("push", dsn, "--db", proxy).stderr == ""


def test_an_iteration_that_was_changed_on_both_sides_is_a_conflict(proxy: Path, desk: Path, dsn: str, run: Run) -> None:
    iterated(proxy)
    run("push", dsn, "--db", proxy, "--source", "web-1")
    run("pull", dsn, "--db", desk)
    for path, cost in ((desk, "0.5"), (proxy, "0.7")):
        cost_of_iteration(path, cost)
    run("push", dsn, "--db", desk, "--source", "desk")
    for name in ("push", "pull"):
        done = run(name, dsn, "--db", proxy, code=1)
        assert f"row {record(1).id} was changed here and in the books" in done.stderr
    run("pull", dsn, "--db", proxy, "--prefer", "ours")
    run("push", dsn, "--db", proxy, "--source", "web-1")
    assert costs_of_iterations(dsn) == [("0.7",)]
