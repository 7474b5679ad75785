"""Archived rows stay archived, whatever is read again, and what was not archived gets its row."""

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from usage_ledger.ledger import archive as archiving
from usage_ledger.ledger.record import Entry
from usage_ledger.ledger.statements import FIND_ARCHIVED
from usage_ledger.ledger.store import Store

from tests.ledger.test_archive import ROOT, archivable, ids, is_well, move, rows
from tests.ledger.test_closing import record, sql, write


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return archivable(tmp_path / "usage.db")


def test_a_row_that_a_spill_brings_again_is_not_back(ledger: Path, tmp_path: Path) -> None:
    move(ledger, tmp_path / "old.db")
    with closing(Store(ledger, "normal", "abc")) as store:
        given = [Entry(record("a")), Entry(record("new"))]
        assert store.without_archived(given, lambda _: True) == given[1:]
        assert store.without_archived(given, lambda _: False) == given


def test_a_row_that_came_back_is_archived_again(ledger: Path, tmp_path: Path) -> None:
    move(ledger, tmp_path / "old.db")
    write(ledger, record("a"))
    moved = move(ledger, tmp_path / "older.db")
    assert moved is not None
    assert (moved.totals["requests"], moved.changed) == (1, 0)
    assert is_well(ledger)


def replayed(id_: str, **fields: Any) -> Entry:
    return Entry(record(id_, origin="replay", **fields))


@pytest.mark.parametrize(
    "entry",
    [
        replayed("a"),
        Entry(record("other", origin="replay"), alias="a"),
        Entry(record("other", origin="replay", request_id="req_a"), identify=True),
        Entry(record("other", origin="replay", request_id="req_a"), alias="har"),
        Entry(record("other", "2026-10-06", origin="replay", request_id="req_a", message_id="msg_a"), identify=True),
        Entry(record("other", origin="replay", message_id="msg_b"), identify=True),
        Entry(record("other", origin="replay", message_id="msg_a"), identify=True),
        Entry(record("other", origin="replay", request_id="req_b", message_id="msg_b"), identify=True),
        Entry(record("other", origin="replay"), identify=True),
        Entry(record("other", origin="replay", request_id="req_d"), identify=True),
        Entry(record("other", origin="replay"), identify=True, only_new=True),
        Entry(record("other", origin="replay", host="x", path="/xx/messages"), identify=True, redacted=True),
    ],
    ids=[
        *("capture", "capture after a HAR", "by request id", "a duplicated flow", "elsewhere", "by message id"),
        *("by message id alone", "by message id where the row had no other", "by its start"),
        *("by its start where the row had no ids", "a body that was not captured"),
        "redacted, by its start",
    ],
)
def test_a_replay_brings_no_archived_row_back(ledger: Path, tmp_path: Path, entry: Entry) -> None:
    move(ledger, tmp_path / "old.db")
    before = rows(ledger)
    with closing(Store(ledger, "normal", "abc")) as store:
        store.write([entry], [])
    assert rows(ledger) == before


@pytest.mark.parametrize(
    "entry",
    [
        Entry(record("live", request_id="req_a", message_id="msg_a")),
        Entry(record("another", "2026-10-06", origin="replay", request_id="req_a", message_id="msg_a"), alias="har"),
        Entry(record("other", "2026-10-06", origin="replay", request_id="req_a", message_id="msg_x"), identify=True),
        Entry(record("other", "2026-10-06", origin="replay", request_id="req_z", message_id="msg_a"), identify=True),
        Entry(record("other", "2026-10-06", origin="replay", message_id="msg_b"), identify=True),
    ],
    ids=[
        *("live with the same ids", "sent again", "a HAR's other request of the same id", "a HAR's other request"),
        "a HAR's other message of the same id",
    ],
)
def test_what_was_not_archived_gets_its_row(ledger: Path, tmp_path: Path, entry: Entry) -> None:
    move(ledger, tmp_path / "old.db")
    with closing(Store(ledger, "normal", "abc")) as store:
        store.write([replayed("b"), entry, replayed("nov")], [])
    assert ids(ledger) == sorted(["flagged", "nov", "pending", entry.record.id])


def test_finding_what_was_archived_takes_no_longer_the_more_that_is(ledger: Path) -> None:
    with closing(Store(ledger, "normal", "abc")) as store:
        plan = [row[3] for row in store.connection.execute(f"EXPLAIN QUERY PLAN {FIND_ARCHIVED}", ("[]",))]
    assert len([step for step in plan if step.startswith("SEARCH usage_archived")]) == 4
    assert not [step for step in plan if step.startswith("SCAN usage_archived")]


def test_replays_while_rows_are_removed_bring_none_back(
    ledger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes read the same flows again and again while they are archived, three rows at a time."""
    write(ledger, *(record(f"n{number:03d}", request_id=f"req_{number}") for number in range(300)))
    names = ids(ledger)
    replaying = (
        "import sys; from pathlib import Path; from usage_ledger.ledger.store import Store\n"
        "from usage_ledger.ledger.record import Entry; from tests.ledger.test_closing import record\n"
        "store = Store(Path(sys.argv[1]), 'normal', sys.argv[2], 20_000); har = sys.argv[3] == 'har'\n"
        "print('ready', flush=True)\n"
        "for turn in range(4):\n"
        "    for number in range(300):\n"
        "        id_ = f'h{number:03d}' if har else f'n{number:03d}'\n"
        "        one = record(id_, origin='replay', request_id=f'req_{number}')\n"
        "        store.write([Entry(one, identify=har)], [])\n"
        "store.close()"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'addon'}:{ROOT}"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", replaying, str(ledger), f"{kind}0", kind], stdout=subprocess.PIPE, env=environment
        )
        for kind in ("har", "capture")
    ]
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
    monkeypatch.setattr(archiving, "PAGE", 3)
    move(ledger, tmp_path / "old.db")
    for process in running:
        process.communicate(timeout=120)
        assert process.returncode == 0
    assert sorted(ids(ledger) + ids(tmp_path / "old.db")) == names
    assert is_well(ledger)


def test_a_row_that_comes_back_while_it_is_archived_stays_in_the_archive(
    ledger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def comes_back(*_: Any) -> None:
        write(ledger, record("a", usage_state="partial", input_tokens=1, total_tokens=1))
        raise KeyboardInterrupt

    for step in ("_seal", "_finish"):
        old = tmp_path / f"{step}.db"
        monkeypatch.setattr(archiving, step, comes_back)
        with pytest.raises(KeyboardInterrupt):
            move(ledger, old)
        monkeypatch.undo()
        assert move(ledger, old) is not None
        assert "a" in ids(old)
        assert is_well(old)
        sql(ledger, "DELETE FROM usage_records WHERE id = 'a'")
        sql(ledger, "DELETE FROM usage_archived")
        write(ledger, record("a"))
