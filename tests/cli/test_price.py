"""`usage-ledger price`: costs for rows that have none, or anew; never twice, never by guess, never without a trail."""

import json
import os
import pty
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import genai_prices
import pytest
from usage_ledger.cli.price import _cost, _made
from usage_ledger.ledger.editing import open_for_editing
from usage_ledger.ledger.entries import entries
from usage_ledger.ledger.filters import UNPRICED, Filters
from usage_ledger.ledger.record import Entry, IterationRow, Record
from usage_ledger.ledger.store import Store
from usage_ledger.prices.pricer import Pricer

from scripts import preloaded

SOURCE = f"genai-prices {genai_prices.__version__}"
CONTRACT = '[[price]]\nmodel = "claude-*"\nsince = 2026-11-01\nmultiplier = 0.5\n'


def record(id_: str, **fields: Any) -> Record:
    """A complete row of a thousand input tokens, which cost 0.003."""
    given = {
        "occurred_at": f"2026-11-0{1 + ord(id_[0]) % 7}T08:00:00.000Z",
        "host": "h",
        "path": "/v1/messages",
        "model": "claude-sonnet-4-6",
        "usage_state": "complete",
        "input_tokens": 1_000,
        "total_tokens": 1_000,
        **fields,
    }
    return Record(id=id_, **given)


def fill(path: Path, *entries: Record | Entry) -> Path:
    with closing(Store(path, "normal", "abc")) as store:
        store.write([each if isinstance(each, Entry) else Entry(each) for each in entries], [])
    return path


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return fill(
        tmp_path / "usage.db",
        record("a", occurred_at="2026-10-31T08:00:00.000Z"),
        record("b", occurred_at="2026-11-01T08:00:00.000Z", total_cost="0.003", price_source="some prices 1"),
        record("c", occurred_at="2026-11-02T08:00:00.000Z", model="claude-opus-9"),
        record("d", occurred_at="2026-11-03T08:00:00.000Z", usage_state="partial"),
        record("e", occurred_at="2026-11-04T08:00:00.000Z", credential_kind="oauth"),
        record(
            "f", occurred_at="2026-11-05T08:00:00.000Z", usage_state="missing", metadata='{"_manually_updated":true}'
        ),
        record("g", occurred_at="2026-11-06T08:00:00.000Z", usage_state="none", total_cost="0", input_tokens=0),
    )


def command(path: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "usage_ledger", "price", "--db", str(path), *arguments]


ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "USAGE_LEDGER_PRICES"} | {"PYTHONUTF8": "1"}


def price(path: Path, *arguments: str, code: int = 0, **environment: str) -> list[str]:
    """Run the command; return the lines of its stdout, or those of stderr where it fails."""
    done = preloaded.run("price", "--db", path, *arguments, env={**ENVIRONMENT, **environment})
    assert done.returncode == code, done
    assert (done.stderr if code == 0 else done.stdout) == ""
    return (done.stdout if code == 0 else done.stderr).splitlines()


def query(path: Path, statement: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(statement).fetchall()


def costs(path: Path) -> dict[str, str | None]:
    return dict(query(path, "SELECT id, total_cost FROM usage_records ORDER BY id"))


def trail(path: Path) -> list[tuple[Any, ...]]:
    return query(path, "SELECT record_id, source, reason, before, after FROM usage_revisions ORDER BY position")


def test_rows_without_a_cost_get_theirs(ledger: Path) -> None:
    assert price(ledger) == [
        "changed 3 rows",
        "billed: 0.009 USD (+0.006)",
        "subscriptions: 0.003 USD (+0.003) at list price, on no bill",
        "left out: 1 row without a price, 1 row without final usage",
        f"no price for 1 row: {SOURCE} does not know the model claude-opus-9",
    ]
    assert costs(ledger) == {"a": "0.003", "b": "0.003", "c": None, "d": None, "e": "0.003", "f": "0.003", "g": "0"}
    assert query(ledger, "SELECT price_source FROM usage_records WHERE id IN ('a', 'b')") == [
        (SOURCE,),
        ("some prices 1",),
    ]


def test_each_change_leaves_its_entry(ledger: Path) -> None:
    price(ledger, "--note", "closing October")
    before = '{"total_cost":null,"price_source":null}'
    after = f'{{"total_cost":"0.003","price_source":"{SOURCE}"}}'
    assert trail(ledger) == [(id_, "price", "closing October", before, after) for id_ in "aef"]


def test_doing_it_twice_changes_nothing(ledger: Path) -> None:
    price(ledger)
    before = ledger.read_bytes()
    assert price(ledger)[0] == "changed 0 rows"
    assert price(ledger, "--since", "2020-01-01")[0] == "changed 0 rows"
    assert len(trail(ledger)) == 3
    assert ledger.read_bytes() == before


def test_a_dry_run_says_the_same_and_changes_nothing(ledger: Path) -> None:
    before = ledger.read_bytes()
    would = price(ledger, "--dry-run")
    assert ledger.read_bytes() == before
    assert [path.name for path in ledger.parent.iterdir()] == ["usage.db"]
    assert would[0] == "would change 3 rows"
    assert would[1:] == price(ledger)[1:]


def test_a_span_is_priced_anew_by_other_prices(ledger: Path, tmp_path: Path) -> None:
    price(ledger)
    prices = tmp_path / "contract.toml"
    prices.write_text(CONTRACT)
    assert price(ledger, "--prices", str(prices))[0] == "changed 0 rows"
    told = price(ledger, "--since", "2026-10-01", "--until", "2026-11-05", "--prices", str(prices))
    assert told[:2] == ["changed 1 row", "billed: 0.0045 USD (-0.0015)"]
    assert costs(ledger) == {"a": "0.003", "b": "0.0015", "c": None, "d": None, "e": "0.003", "f": "0.003", "g": "0"}
    revised = trail(ledger)[-1:]
    assert [row[0] for row in revised] == ["b"]
    assert json.loads(revised[0][3]) == {"total_cost": "0.003", "price_source": "some prices 1"}
    assert json.loads(revised[0][4])["price_source"].startswith("contract.toml ")


def test_of_a_span_only_what_has_no_cost(ledger: Path, tmp_path: Path) -> None:
    (tmp_path / "prices.toml").write_text(CONTRACT)
    price(ledger, "--since", "2026-11-01", "--unpriced")
    assert costs(ledger) == {"a": None, "b": "0.003", "c": None, "d": None, "e": "0.003", "f": "0.0015", "g": "0"}


@pytest.mark.parametrize("how", ["option", "environment", "beside"])
def test_own_prices_are_found_where_the_proxy_finds_them(ledger: Path, tmp_path: Path, how: str) -> None:
    prices = tmp_path / ("prices.toml" if how == "beside" else "mine.toml")
    prices.write_text(f'[[price]]\nmodel = "claude-opus-9"\nunlisted = true\n{OWN}\n')
    arguments = ("--prices", str(prices)) if how == "option" else ()
    environment = {"USAGE_LEDGER_PRICES": str(prices)} if how == "environment" else {}
    assert "left out: 0 rows without a price, 1 row without final usage" in price(ledger, *arguments, **environment)
    assert costs(ledger)["c"] == "0.001"


OWN = "input = 1\noutput = 2\ncache_write_5m = 3\ncache_write_1h = 4\ncache_read = 5"


def test_a_row_whose_price_is_not_known_any_more_keeps_what_it_has(ledger: Path, tmp_path: Path) -> None:
    prices = tmp_path / "mine.toml"
    prices.write_text(f'[[price]]\nmodel = "claude-opus-9"\nunlisted = true\n{OWN}\n')
    price(ledger, "--prices", str(prices))
    assert (
        price(ledger, "--since", "2020-01-01")[-1]
        == f"no price for 1 row: {SOURCE} does not know the model claude-opus-9"
    )
    assert costs(ledger)["c"] == "0.001"


def test_iterations_are_priced_under_their_own_model(tmp_path: Path) -> None:
    advised = Entry(
        record("a", input_tokens=2_000),
        [
            IterationRow("a", 0, "message", None, 1, input_tokens=1_000),
            IterationRow("a", 1, "advisor_message", "claude-opus-5-5", 1, input_tokens=1_000),
            IterationRow("a", 2, "message", "claude-opus-9", None, input_tokens=1_000),
        ],
    )
    ledger = fill(tmp_path / "usage.db", advised)
    price(ledger)
    assert costs(ledger) == {"a": "0.007"}
    told = query(ledger, "SELECT total_cost FROM usage_iterations ORDER BY position")
    assert told == [("0.003",), ("0.004",), (None,)]
    [(_, _, _, before, after)] = trail(ledger)
    assert json.loads(before)["iteration_costs"] == [None, None, None]
    assert json.loads(after)["iteration_costs"] == ["0.003", "0.004", None]


def test_a_cost_that_was_not_told_apart_yet_is_told_apart(tmp_path: Path) -> None:
    """An older program has written the row's cost, and not that of its iterations."""
    one = Entry(record("a", total_cost="0.003"), [IterationRow("a", 3, "message", None, 1, input_tokens=1_000)])
    ledger = fill(tmp_path / "usage.db", one)
    assert price(ledger, "--since", "2020-01-01")[:2] == ["changed 1 row", "billed: 0.003 USD (+0)"]
    assert query(ledger, "SELECT position, total_cost FROM usage_iterations") == [(3, "0.003")]
    assert price(ledger, "--since", "2020-01-01")[0] == "changed 0 rows"


def test_many_reasons_are_not_all_told(tmp_path: Path) -> None:
    ledger = fill(tmp_path / "usage.db", *(record(f"{number:03}", model=f"m\x1b[31m{number}") for number in range(100)))
    told = price(ledger)
    assert len(told) == 3 + 21
    assert "no price for 80 rows: other reasons" in told
    assert not any("\x1b" in line for line in told)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('[[price]]\nmodel = "claude-*"\nmultiplyer = 1', "price 1: unknown field 'multiplyer'"),
        ('[[price]]\nmodel = "claude-*"\nmultiplier = -1', "price 1: multiplier is -1"),
        (f'{CONTRACT}\n[[price]]\nmodel = "claude-*"\nmultiplier = 1', "price 2: its dates overlap those of price 1"),
        ('[[price]]\nmodel = "claud-*"\nmultiplier = 1', "price 1: model = 'claud-*' matches no model"),
        ('[[price]]\nmodel = "claude-opus-10"\nmultiplier = 1', "matches no model"),
        ("[[price", "mine.toml"),
        (None, "No such file"),
    ],
)
@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_a_bad_price_file_is_one_line_and_changes_nothing(
    ledger: Path, tmp_path: Path, content: str | None, says: str, dry: tuple[str, ...]
) -> None:
    prices = tmp_path / "mine.toml"
    if content is not None:
        prices.write_text(content)
    before = costs(ledger)
    [line] = price(ledger, "--prices", str(prices), *dry, code=2)
    assert says in line
    assert line.startswith(f"usage-ledger: {prices}: ")
    assert (costs(ledger), trail(ledger)) == (before, [])


ODD = {
    "a time": "UPDATE usage_records SET occurred_at = 'yesterday' WHERE id = 'a'",
    "no time": "UPDATE usage_records SET occurred_at = '' WHERE id = 'a'",
    "a time that is not UTF-8": "UPDATE usage_records SET occurred_at = CAST(x'ff' AS TEXT) WHERE id = 'a'",
    "an id that is not UTF-8": "UPDATE usage_records SET id = CAST(x'ff' AS TEXT) WHERE id = 'a'",
    "a count below 0": "UPDATE usage_records SET input_tokens = -1 WHERE id = 'a'",
    "searches below 0": "UPDATE usage_records SET web_search_requests = -1 WHERE id = 'a'",
    "metadata that is no JSON": "UPDATE usage_records SET metadata = '{bad' WHERE id = 'a'",
    "metadata that is not UTF-8": "UPDATE usage_records SET metadata = CAST(x'ff' AS TEXT) WHERE id = 'a'",
    "usage that is no JSON": "UPDATE usage_records SET usage_raw = '[' WHERE id = 'a'",
    "a cost that is no amount": "UPDATE usage_records SET total_cost = 'much' WHERE id = 'a'",
    "a cost that is not UTF-8": "UPDATE usage_records SET total_cost = CAST(x'ff' AS TEXT) WHERE id = 'a'",
    "an endless cost": f"UPDATE usage_records SET total_cost = '1{'0' * 90}' WHERE id = 'a'",
    "an exact cost": f"UPDATE usage_records SET total_cost = '1.{'0' * 90}1' WHERE id = 'a'",
}


@pytest.mark.parametrize("what", ODD)
@pytest.mark.parametrize("arguments", [(), ("--since", "0001-01-01"), ("--model", "claude-*"), ("--dry-run",)])
def test_what_another_program_made_of_a_row_keeps_no_other_from_its_price(
    ledger: Path, what: str, arguments: tuple[str, ...]
) -> None:
    with closing(sqlite3.connect(ledger)) as connection:
        connection.execute(ODD[what])
        connection.commit()
    price(ledger, *arguments)
    if "--dry-run" not in arguments:
        assert query(ledger, "SELECT total_cost FROM usage_records WHERE id IN ('e', 'f')") == [("0.003",)] * 2


def test_a_closed_stderr_is_no_failure(ledger: Path) -> None:
    shell = ["sh", "-c", 'exec "$@" 2>&-', "sh", *command(ledger)]
    done = subprocess.run(shell, stdout=subprocess.PIPE, text=True, timeout=60, env=ENVIRONMENT)
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "changed 3 rows")


def test_a_reader_that_leaves_is_no_failure(ledger: Path) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run(command(ledger), stdout=theirs, stderr=subprocess.PIPE, timeout=60, env=ENVIRONMENT)
    os.close(theirs)
    assert (done.returncode, done.stderr) == (0, b"")
    assert costs(ledger)["a"] == "0.003"


def test_where_the_output_cannot_go_the_ledger_is_not_blamed(ledger: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(command(ledger), stdout=full, stderr=subprocess.PIPE, timeout=60, env=ENVIRONMENT)
    assert done.returncode == 2
    assert b"cannot write" not in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_a_note_that_is_not_utf8_is_refused(ledger: Path) -> None:
    done = subprocess.run([*command(ledger), "--note", b"\xff"], capture_output=True, timeout=60, env=ENVIRONMENT)
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1
    assert b"not UTF-8" in done.stderr
    assert trail(ledger) == []


def test_a_price_list_that_cannot_be_loaded_is_one_line(ledger: Path, tmp_path: Path) -> None:
    (tmp_path / "genai_prices.py").write_text("raise ImportError('broken')")
    environment = {**ENVIRONMENT, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command(ledger), capture_output=True, text=True, timeout=60, env=environment)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("usage-ledger: genai-prices cannot be loaded (broken)")


@pytest.mark.parametrize(
    "column", ["occurred_at", "account_id", "model", "service_tier", "output_tokens", "usage_state", "metadata", "tag"]
)
def test_a_row_that_changes_while_it_is_priced_is_left_alone(ledger: Path, column: str) -> None:
    """Whatever of it changes between reading and writing: the cost was worked out for what it was."""
    with open_for_editing(ledger) as editor:
        (page,) = entries(editor, Filters(), UNPRICED)
        proposed = [(entry, _cost(entry, Pricer())) for entry in page if entry.record.id in "af"]
        with closing(sqlite3.connect(ledger)) as connection:
            value = 5 if column == "output_tokens" else "{}" if column == "metadata" else "other"
            connection.execute(f"UPDATE usage_records SET {column} = ? WHERE id = 'f'", (value,))
            connection.commit()
        assert [entry.record.id for entry, _ in _made(editor, proposed, "", reopen=False)] == ["a"]
    assert [row[0] for row in trail(ledger)] == ["a"]


def test_progress_is_shown_on_a_terminal_alone(ledger: Path) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(command(ledger), stdout=subprocess.PIPE, stderr=theirs, env=ENVIRONMENT) as process:
        os.close(theirs)
        assert process.stdout is not None
        out = process.stdout.read()
        assert process.wait(60) == 0
    seen = os.read(ours, 65536)
    os.close(ours)
    assert b"pricing" in seen
    assert b"100%" in seen
    assert out.startswith(b"changed 3 rows\n")


def test_two_at_once_price_each_row_once(tmp_path: Path) -> None:
    ledger = fill(tmp_path / "usage.db", *(record(f"{number:05}") for number in range(3_000)))
    running = [subprocess.Popen(command(ledger), stdout=subprocess.PIPE, env=ENVIRONMENT) for _ in range(2)]
    assert [process.communicate(timeout=60)[1] for process in running] == [None, None]
    assert [process.returncode for process in running] == [0, 0]
    assert query(ledger, "SELECT count(*), count(DISTINCT record_id) FROM usage_revisions") == [(3_000, 3_000)]
    assert set(costs(ledger).values()) == {"0.003"}


def test_killed_in_the_midst_every_change_has_its_entry_and_the_next_run_finishes(tmp_path: Path) -> None:
    ledger = fill(tmp_path / "usage.db", *(record(f"{number:05}") for number in range(5_000)))
    process = subprocess.Popen(command(ledger), stdout=subprocess.DEVNULL, env=ENVIRONMENT)
    with closing(sqlite3.connect(ledger)) as connection:
        while not connection.execute("SELECT count(*) FROM usage_records WHERE total_cost IS NOT NULL").fetchone()[0]:
            assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    changed = query(ledger, "SELECT id FROM usage_records WHERE total_cost IS NOT NULL ORDER BY id")
    assert query(ledger, "SELECT record_id FROM usage_revisions ORDER BY position") == changed
    price(ledger)
    assert query(ledger, "SELECT count(*), count(DISTINCT record_id) FROM usage_revisions") == [(5_000, 5_000)]
