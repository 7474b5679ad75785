"""`usage-ledger rows`: the newest rows, in a table that fits whatever it is shown on."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from usage_ledger.ledger.record import Entry, Record
from usage_ledger.ledger.store import Store
from wcwidth import wcswidth

from scripts import preloaded

REASONS = [None, "client_disconnected", "no_usage_data", "body_not_captured"]


def record(number: int, **fields: Any) -> Record:
    """A row whose values are as wide as they come."""
    reason = REASONS[number % len(REASONS)]
    given = {
        "account_id": "6c0e4ac1-8f0f-4c6e-9d0d-1b1e5f6a7b8c",
        "model": f"claude-opus-4-6-20261101-{number:02}",
        "usage_state": "partial" if reason else "complete",
        "review_reason": reason,
        "requires_manual_review": int(bool(reason)),
        "http_status": 200,
        "input_tokens": 12_345_678,
        "output_tokens": 1_234_567,
        "cache_creation_input_tokens": 12_345_678,
        "cache_read_input_tokens": 12_345_678,
        "total_tokens": 123_456_789,
        "host": "api.anthropic.com",
        "path": "/v1/messages",
        **fields,
    }
    return Record(id=f"{number:02}{'f' * 34}", occurred_at=f"2026-11-01T08:00:{number:02}.000Z", **given)


def fill(path: Path, *records: Record) -> Path:
    with closing(Store(path, "normal", "abc")) as store:
        store.write([Entry(one) for one in records], [])
    return path


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return fill(tmp_path / "usage.db", *(record(number) for number in reversed(range(30))))


@pytest.fixture
def odd_ledger(tmp_path: Path) -> Path:
    """Rows whose text is as wide as it comes, in cells."""
    names = ["模型" * 30, "e\u0301" * 90, "👩\u200d👩\u200d👧" * 20, "claude-opus-4-6"]
    rows = [
        record(4 * number, model=name, account_id=name, review_reason=name, total_tokens=10**15)
        for number, name in enumerate(names)
    ]
    return fill(tmp_path / "odd.db", *rows)


def run(ledger: Path, *arguments: str, columns: int = 200, **environment: str) -> "subprocess.CompletedProcess[str]":
    return preloaded.run("rows", "--db", ledger, *arguments, env={**os.environ, "COLUMNS": str(columns), **environment})


def on_a_terminal(ledger: Path, columns: int, *arguments: str, **environment: str) -> str:
    """What a terminal so many columns wide gets to show."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
    with subprocess.Popen(
        [sys.executable, "-m", "usage_ledger", "rows", "--db", str(ledger), *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=subprocess.PIPE,
        env={**kept, "TERM": "xterm-256color", "PYTHONUTF8": "1", **environment},
    ) as process:
        os.close(theirs)
        seen = bytearray()
        try:
            while more := os.read(ours, 65536):
                seen += more
        except OSError:
            pass  # so Linux says that the other end is closed
        finally:
            os.close(ours)
        assert process.stderr is not None
        assert (process.wait(60), process.stderr.read()) == (0, b"")
    return seen.decode().replace("\r\n", "\n")


def shown(ledger: Path, *arguments: str, **more: Any) -> list[str]:
    """The lines of the table without its header."""
    done = run(ledger, *arguments, **more)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()[1:]


def seconds(lines: list[str]) -> list[int]:
    return [int(line[17:19]) for line in lines]


WIDTHS = [40, 41, 48, 56, 57, 58, 65, 66, 80, 95, 96, 103, 104, 113, 114, 124, 125, 149, 150, 177, 178, 200]


@pytest.mark.parametrize("columns", WIDTHS)
def test_no_line_is_wider_than_the_terminal(odd_ledger: Path, columns: int) -> None:
    """Also where characters are two cells wide, or none."""
    lines = on_a_terminal(odd_ledger, columns, NO_COLOR="1").splitlines()
    assert len(lines) == 5
    assert max(map(wcswidth, lines)) <= columns


@pytest.mark.parametrize("columns", WIDTHS)
def test_the_columns_of_the_environment_come_before_the_terminals(odd_ledger: Path, columns: int) -> None:
    told = on_a_terminal(odd_ledger, 120, NO_COLOR="1", COLUMNS=str(columns))
    assert told == run(odd_ledger, columns=columns).stdout
    assert max(map(wcswidth, told.splitlines())) <= columns


@pytest.mark.parametrize("columns", [40, 66, 120, 200])
def test_wide_and_combining_characters_keep_the_columns_in_line(odd_ledger: Path, columns: int) -> None:
    header, *lines = run(odd_ledger, columns=columns).stdout.splitlines()
    for line in lines:
        assert wcswidth(line[: line.index("complete")]) == header.index("state")


@pytest.mark.parametrize("columns", [1, 10, 39])
def test_a_terminal_too_narrow_for_a_table_is_no_error(ledger: Path, columns: int) -> None:
    assert seconds(shown(ledger, "-n", "1", columns=columns)) == [29]


def test_what_is_no_terminal_gets_a_table_for_120_columns(ledger: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "usage_ledger", "rows", "--db", str(ledger)],
        capture_output=True,
        text=True,
        timeout=60,
        env={name: value for name, value in os.environ.items() if name != "COLUMNS"},
    )
    assert done.stdout == run(ledger, columns=120).stdout


def test_a_very_wide_terminal_is_not_filled_for_its_own_sake(ledger: Path) -> None:
    assert run(ledger, columns=500).stdout == run(ledger, columns=200).stdout


@pytest.mark.parametrize(
    ("columns", "headings"),
    [
        (40, ["time (UTC)", "model", "state"]),
        (57, ["time (UTC)", "model", "in", "out", "state"]),
        (80, ["time (UTC)", "model", "in", "out", "cost USD", "state"]),
        (
            132,
            ["time (UTC)", "model", "in", "out", "cache w", "cache r", "total", "cost USD", "state", "review", "http"],
        ),
        (200, ["time (UTC)", "cache r", "review", "http", "account", "id"]),
    ],
)
def test_the_header_names_what_there_is_room_for(ledger: Path, columns: int, headings: list[str]) -> None:
    header = run(ledger, columns=columns).stdout.splitlines()[0]
    places = [f" {header} ".find(f" {heading} ") for heading in headings]
    assert -1 not in places
    assert places == sorted(places)


def test_cells_stand_under_their_headings(ledger: Path) -> None:
    header, *lines = run(ledger).stdout.splitlines()
    for heading, value in (("state", "complete"), ("state", "partial"), ("http", "200"), ("model", "claude-opus")):
        assert any(line[header.index(heading) :].startswith(value) for line in lines), heading


def test_the_list_price_of_a_subscription_is_told_from_what_is_billed(tmp_path: Path) -> None:
    costs = [("api_key", "0.001641"), ("oauth", "0.25"), ("other", None), ("oauth", None)]
    told = [record(4 * n, credential_kind=kind, total_cost=cost) for n, (kind, cost) in enumerate(costs)]
    lines = shown(fill(tmp_path / "usage.db", *told), columns=80)
    assert [line.split("1234567")[-1].split() for line in lines] == [
        ["0.001641", "complete"],
        ["list", "0.25", "complete"],
        ["complete"],
        ["complete"],
    ]


def test_a_row_says_when_what_and_how_much(tmp_path: Path) -> None:
    told = record(7, model="claude-opus-4-6", input_tokens=11, output_tokens=22, total_tokens=33)
    (line,) = shown(fill(tmp_path / "usage.db", told))
    assert line.split()[:5] == ["2026-11-01", "08:00:07", "claude-opus-4-6", "11", "22"]
    assert "body_not_captured" in line


def test_the_newest_rows_are_shown_oldest_of_them_first(ledger: Path) -> None:
    assert seconds(shown(ledger)) == list(range(10, 30))


@pytest.mark.parametrize(
    ("limit", "expected"), [("1", [29]), ("3", [27, 28, 29]), ("0", list(range(30))), ("999", list(range(30)))]
)
def test_the_limit_is_how_many_and_0_is_all(ledger: Path, limit: str, expected: list[int]) -> None:
    assert seconds(shown(ledger, "--limit", limit)) == seconds(shown(ledger, "-n", limit)) == expected


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (["--since", "2026-11-01T08:00:27"], [27, 28, 29]),
        (["--until", "2026-11-01T09:00:02+01:00"], [0, 1]),
        (["--model", "*-0[2]"], []),
        (["--model", "*-02", "--model", "*-04"], [2, 4]),
        (["--flagged", "--until", "2026-11-01T08:00:04"], [1, 2, 3]),
        (["--state", "complete", "-n", "2"], [24, 28]),
        (["--account", "6c0e*", "-n", "1"], [29]),
    ],
)
def test_filters_choose_the_rows(ledger: Path, filters: list[str], expected: list[int]) -> None:
    assert seconds(run(ledger, *filters).stdout.splitlines()[1:]) == expected


@pytest.mark.parametrize("environment", [{}, {"TERM": "xterm-256color"}, {"CLICOLOR_FORCE": ""}])
def test_a_pipe_gets_no_colours(ledger: Path, environment: dict[str, str]) -> None:
    assert "\x1b" not in run(ledger, **environment).stdout


def test_a_terminal_gets_a_bold_header_and_flagged_rows_in_colour(ledger: Path) -> None:
    header, complete, flagged = on_a_terminal(ledger, 120, "--until", "2026-11-01T08:00:02").splitlines()
    assert header.startswith("\x1b[1m")
    assert "\x1b" not in complete
    assert flagged.startswith("\x1b[33m")


@pytest.mark.parametrize("value", ["1", "0", "no"])
def test_no_color_switches_colours_off_on_a_terminal(ledger: Path, value: str) -> None:
    assert on_a_terminal(ledger, 120, NO_COLOR=value) == run(ledger, columns=120).stdout


def test_an_empty_no_color_says_nothing(ledger: Path) -> None:
    assert "\x1b[33m" in on_a_terminal(ledger, 120, NO_COLOR="")


@pytest.mark.parametrize("arguments", [("rows", "--help"), ("export",)])
def test_only_a_table_pays_for_the_widths_of_characters(ledger: Path, arguments: tuple[str, ...]) -> None:
    tell = "import sys; from usage_ledger.cli.main import run\ntry: run(sys.argv[1:])\nexcept SystemExit: pass\n"
    told = subprocess.run(
        [sys.executable, "-c", f"{tell}sys.exit('wcwidth' in sys.modules)", *arguments],
        stdout=subprocess.DEVNULL,
        timeout=60,
        env={**os.environ, "USAGE_LEDGER_DB": str(ledger)},
    )
    assert told.returncode == 0


def test_where_nothing_matches_a_hint_is_given_on_stderr(ledger: Path) -> None:
    done = run(ledger, "--model", "gpt-*")
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 1)
    assert done.stderr == f"no rows match in {ledger}\n"


def test_an_empty_ledger_is_no_error(tmp_path: Path) -> None:
    done = run(fill(tmp_path / "usage.db"))
    assert (done.returncode, len(done.stdout.splitlines()), len(done.stderr.splitlines())) == (0, 1, 1)


def test_rows_are_shown_while_a_proxy_has_the_ledger_open(ledger: Path) -> None:
    with closing(Store(ledger, "normal", "abc")) as store:
        store.write([Entry(record(31))], [])
        assert seconds(shown(ledger, "-n", "2")) == [29, 31]


def test_the_ledger_may_be_named_by_the_environment(ledger: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "usage_ledger", "rows", "-n", "1"],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
        env={**os.environ, "USAGE_LEDGER_DB": str(ledger), "COLUMNS": "80", "PYTHONUTF8": "1"},
    )
    assert seconds(done.stdout.splitlines()[1:]) == [29]
