"""Presence: a living writer is never taken for a dead one, and a killed one never for a living."""

import subprocess
import sys
from pathlib import Path

import pytest
from usage_ledger.ledger.presence import Presence, forget_dead_writers, is_alive, new_writer_id, writers_folder

from tests.ledger.writers import living_writer


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "usage.db"


def test_no_two_writers_share_an_id() -> None:
    ids = {new_writer_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(len(id_) == 12 and int(id_, 16) >= 0 for id_ in ids)


def test_a_writer_nobody_has_heard_of_is_dead(ledger: Path) -> None:
    assert not is_alive(ledger, "nobody")


def test_a_writer_is_alive_from_its_mark_to_its_leaving(ledger: Path) -> None:
    presence = Presence(ledger, "ours")
    assert is_alive(ledger, "ours")
    presence.leave()
    assert not is_alive(ledger, "ours")


def test_a_mark_leaves_nothing_behind(ledger: Path) -> None:
    presence = Presence(ledger, "ours")
    assert [path.name for path in writers_folder(ledger).iterdir()] == ["ours.lock"]
    presence.leave()
    assert list(writers_folder(ledger).iterdir()) == []


def test_a_writer_in_another_process_is_alive(ledger: Path) -> None:
    with living_writer(ledger):
        assert is_alive(ledger, "theirs")


def test_asking_twice_gives_the_same_answer(ledger: Path) -> None:
    """The question itself takes the lock for a moment; it must give it back."""
    with living_writer(ledger) as process:
        assert [is_alive(ledger, "theirs") for _ in range(3)] == [True] * 3
        process.kill()
        process.wait()
        assert [is_alive(ledger, "theirs") for _ in range(3)] == [False] * 3


def test_kill_9_is_death_though_the_mark_is_still_there(ledger: Path) -> None:
    with living_writer(ledger) as process:
        process.kill()
        process.wait()
    assert (writers_folder(ledger) / "theirs.lock").exists()
    assert not is_alive(ledger, "theirs")


def test_a_child_of_a_writer_does_not_keep_it_alive(ledger: Path) -> None:
    presence = Presence(ledger, "ours")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False) as child:
        presence.leave()
        (writers_folder(ledger) / "ours.lock").touch()
        assert not is_alive(ledger, "ours")
        child.kill()


@pytest.mark.parametrize("in_the_way", [Path.mkdir, lambda path: path.symlink_to(path.name)], ids=["folder", "loop"])
def test_what_cannot_be_opened_counts_as_alive(ledger: Path, in_the_way) -> None:
    writers_folder(ledger).mkdir()
    in_the_way(writers_folder(ledger) / "odd.lock")
    assert is_alive(ledger, "odd")


def test_a_writer_notices_when_its_mark_is_taken_away(ledger: Path) -> None:
    presence = Presence(ledger, "ours")
    assert presence.still_marked()
    (writers_folder(ledger) / "ours.lock").unlink()
    assert not presence.still_marked()
    presence.leave()


def test_only_the_marks_of_the_dead_are_removed(ledger: Path) -> None:
    ours = Presence(ledger, "ours")
    (writers_folder(ledger) / "dead.lock").touch()
    with living_writer(ledger):
        forget_dead_writers(ledger)
        assert sorted(path.name for path in writers_folder(ledger).iterdir()) == ["ours.lock", "theirs.lock"]
    ours.leave()


def test_forgetting_where_nobody_ever_wrote_is_no_error(ledger: Path) -> None:
    forget_dead_writers(ledger)
    assert not writers_folder(ledger).exists()
