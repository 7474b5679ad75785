"""`usage-ledger summary`: sums for people and for programs."""

import csv
import io
import json
import os
import subprocess
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from usage_ledger.ledger.record import Entry, Record
from usage_ledger.ledger.store import Store
from wcwidth import wcswidth

from scripts import preloaded


def record(id_: str, **fields: Any) -> Record:
    given = {"occurred_at": "2026-11-01T08:00:00.000Z", "host": "h", "path": "/v1/messages", **fields}
    return Record(id=id_, **({"usage_state": "complete", "model": "claude-sonnet-4-6", "total_cost": "0"} | given))


def fill(path: Path, *records: Record) -> Path:
    with closing(Store(path, "normal", "abc")) as store:
        store.write([Entry(each) for each in records], [])
    return path


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return fill(
        tmp_path / "usage.db",
        record("a", input_tokens=1_234_567, total_tokens=1_234_567, total_cost="0.1"),
        record("b", model="claude-opus-5-5", output_tokens=5, total_cost="0.2", tag="=1+1"),
        record("c", occurred_at="2026-11-02T23:30:00.000Z", credential_kind="oauth", total_cost="0.7"),
        record("d", usage_state="missing", requires_manual_review=1, total_cost=None),
        record("e", total_cost=None),
    )


def run(path: Path, *arguments: str, columns: int = 160) -> "subprocess.CompletedProcess[str]":
    return preloaded.run("summary", "--db", path, *arguments, env={**os.environ, "COLUMNS": str(columns)})


def lines(path: Path, *arguments: str, **more: Any) -> list[list[str]]:
    done = run(path, *arguments, **more)
    assert done.returncode == 0, done
    return [line.split() for line in done.stdout.splitlines()]


def test_a_table_has_its_groups_and_the_total(ledger: Path) -> None:
    done = run(ledger)
    header, first, second, total = [line.split() for line in done.stdout.splitlines()]
    assert header[:4] == ["day", "requests", "in", "out"]
    assert first == ["2026-11-01", "4", "1,234,567", "5", "0", "0", "0.3", "0", "1", "25.0", "%", "1"]
    assert second == ["2026-11-02", "1", "0", "0", "0", "0", "0", "0.7", "0", "0.0", "%", "0"]
    assert total == ["total", "5", "1,234,567", "5", "0", "0", "0.3", "0.7", "1", "20.0", "%", "1"]
    assert done.stderr.startswith("1 request(s) without final usage are in no cost")


def test_several_groups_and_a_zone(ledger: Path) -> None:
    told = lines(ledger, "--by", "day,model", "--tz", "Europe/Berlin")
    assert [line[:3] for line in told[1:-1]] == [
        ["2026-11-01", "claude-opus-5-5", "1"],
        ["2026-11-01", "claude-sonnet-4-6", "3"],
        ["2026-11-03", "claude-sonnet-4-6", "1"],
    ]


def test_list_prices_have_a_column_only_where_there_are_any(ledger: Path) -> None:
    assert "list" in lines(ledger)[0]
    assert "list" not in lines(ledger, "--until", "2026-11-02")[0]


@pytest.mark.parametrize("columns", [40, 50, 60, 80, 100, 120, 200])
@pytest.mark.parametrize("by", ["day", "day,model", "session,client,host"])
def test_no_line_is_wider_than_the_terminal_and_what_is_left_out_is_said(ledger: Path, columns: int, by: str) -> None:
    done = run(ledger, "--by", by, columns=columns)
    widest = max(map(len, done.stdout.splitlines()))
    assert widest <= columns or (columns < 60 and by.count(",") == 2)
    everything = {"requests", "in", "out", "cache w", "cache r", "cost USD", "flagged", "share", "unpriced"}
    header = f" {done.stdout.splitlines()[0]} "
    missing = {name for name in everything if f" {name} " not in header}
    assert bool(missing) == ("no room for" in done.stderr)
    assert all(name in done.stderr for name in missing)


def test_csv_has_all_of_it_and_no_formula(ledger: Path) -> None:
    done = run(ledger, "--by", "tag", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [row["tag"] for row in rows] == ["", "'=1+1"]
    assert rows[0] == {
        "tag": "",
        "requests": "4",
        "input_tokens": "1234567",
        "output_tokens": "0",
        "cache_creation_5m_input_tokens": "0",
        "cache_creation_1h_input_tokens": "0",
        "cache_creation_input_tokens": "0",
        "cache_read_input_tokens": "0",
        "thinking_tokens": "0",
        "web_search_requests": "0",
        "web_fetch_requests": "0",
        "total_tokens": "1234567",
        "billed_cost": "0.1",
        "subscription_list_price": "0.7",
        "flagged": "1",
        "flagged_share": "0.25",
        "unpriced": "1",
        "unsettled": "1",
    }
    assert done.stdout.endswith("\n")


def test_json_is_the_same_as_csv(ledger: Path) -> None:
    rows = json.loads(run(ledger, "--by", "tag", "--format", "json").stdout)
    table = csv.DictReader(io.StringIO(run(ledger, "--by", "tag", "--format", "csv").stdout))
    assert [{name: str(value or "" if name == "tag" else value) for name, value in row.items()} for row in rows] == [
        {name: value.lstrip("'") for name, value in row.items()} for row in table
    ]
    assert rows[0]["billed_cost"] == "0.1"


@pytest.mark.parametrize(("form", "empty"), [("csv", 1), ("json", 1), ("table", 2)])
def test_where_nothing_matches_there_is_nothing(ledger: Path, form: str, empty: int) -> None:
    done = run(ledger, "--model", "gpt-*", "--format", form)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, empty)
    if form == "json":
        assert json.loads(done.stdout) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--by", "moon"), "'moon' is no group; there are day, hour, model"),
        (("--by", ""), "'' is no group; there are day"),
        (("--by", "day,day"), "names a group twice"),
        (("--tz", "Europe/Nowhere"), "is no time zone"),
        (("--tz", "../../etc/passwd"), "is no time zone"),
        (("--tz", ""), "is no time zone"),
        (("--format", "xml"), "xml"),
    ],
)
def test_what_cannot_be_meant_so_is_one_line(ledger: Path, arguments: tuple[str, ...], says: str) -> None:
    done = run(ledger, *arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert says in done.stderr


def test_names_from_outside_stay_on_their_line(tmp_path: Path) -> None:
    ledger = fill(tmp_path / "usage.db", record("a", model="evil\x1b[31m\nname" + "模" * 60))
    done = run(ledger, "--by", "model", columns=80)
    assert len(done.stdout.splitlines()) == 3
    assert "\x1b" not in done.stdout


def test_a_plot_has_a_bar_for_each_group(ledger: Path) -> None:
    done = run(ledger, "--by", "model", "--plot", columns=80)
    lines = done.stdout.splitlines()
    assert [line.split(":")[0].strip() for line in lines] == ["claude-opus-5-5", "claude-sonnet-4-6"]
    assert [line.count("▇") for line in lines] == [max(line.count("▇") for line in lines), lines[1].count("▇")]
    assert lines[0].count("▇") == pytest.approx(2 * lines[1].count("▇"), abs=2)  # 0.2 and 0.1 USD
    assert lines[0].endswith(" 0.20 USD")
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in done.stdout
    assert "1 request(s) without final usage" in done.stderr


def test_without_a_cost_a_plot_shows_tokens(tmp_path: Path) -> None:
    path = fill(tmp_path / "usage.db", record("a", total_tokens=12_345, input_tokens=12_345, total_cost=None))
    assert run(path, "--plot").stdout.endswith(" 12,345 tokens\n")
    assert run(path, "--plot", "--model", "none").stdout == ""


@pytest.mark.parametrize("costs", [("12", "12"), ("12",), ("3000", "3000"), ("0.5", "12"), ("0.0001", "0.0001")])
def test_the_largest_bar_is_as_wide_as_there_is_room(tmp_path: Path, costs: tuple[str, ...]) -> None:
    """Also where all are equal, or there is one."""
    path = fill(
        tmp_path / "usage.db", *(record(f"{n}", model=f"m{n}", total_cost=cost) for n, cost in enumerate(costs))
    )
    lines = run(path, "--by", "model", "--plot", columns=80).stdout.splitlines()
    assert len(lines) == len(costs)
    assert max(map(len, lines)) == 80
    assert [line.count("▇") == max(each.count("▇") for each in lines) for line in lines] == [
        Decimal(cost) == max(map(Decimal, costs)) for cost in costs
    ]


def test_a_plot_tells_small_costs_from_nothing(tmp_path: Path) -> None:
    path = fill(
        tmp_path / "usage.db",
        *(record(cost, model=cost, total_cost=cost) for cost in ("0.0042", "0.0011", "0")),
    )
    lines = run(path, "--by", "model", "--plot", columns=80).stdout.splitlines()
    assert [line.split()[-2] for line in lines] == ["0.0000", "0.0011", "0.0042"]
    assert [line.count("▇") > 0 for line in lines] == [False, True, True]


def test_a_plot_says_what_is_in_no_bar(tmp_path: Path) -> None:
    path = fill(
        tmp_path / "usage.db",
        record("a", total_cost="3"),
        record("b", model="unknown", total_cost=None),
        record("c", model="claude-opus-5-5", credential_kind="oauth", total_cost="9"),
    )
    done = run(path, "--by", "model", "--plot")
    assert len(done.stdout.splitlines()) == 3
    assert done.stderr == (
        "1 request(s) without a price are in no bar; see usage-ledger price\n"
        "subscriptions are in no bar; their list price is 9 USD\n"
    )
    nothing = fill(tmp_path / "other.db", record("a", total_cost=None))
    done = run(nothing, "--plot")
    assert (done.stdout, done.stderr) == ("", "there is nothing to draw: no costs, and no tokens\n")


@pytest.mark.parametrize("columns", [30, 40, 80, 200])
def test_a_plot_is_lines_whatever_the_names_are(tmp_path: Path, columns: int) -> None:
    """Its bars begin in one column, no line is wider than the terminal, and a name that is cut says so."""
    names = ["模型" * 30, "\x1b[2J", "a\nb", "x" * 300, "模型"]
    path = fill(
        tmp_path / "usage.db", *(record(str(n), account_id=name, total_cost="1") for n, name in enumerate(names))
    )
    done = run(path, "--by", "account", "--plot", columns=columns)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert len(lines) == len(names)
    assert all(line.isprintable() and wcswidth(line) <= columns for line in lines)
    assert len({wcswidth(line.partition("▇")[0]) for line in lines}) == 1
    assert sum("…: " in line or "… : " in line for line in lines) == 2  # what is wide may leave a cell


def test_a_plot_is_for_a_person(ledger: Path) -> None:
    done = run(ledger, "--plot", "--format", "csv")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--plot draws for a person" in done.stderr
