"""What dead writers left is settled on what their streams had told; the living are left alone."""

import json

from usage_ledger.ledger.presence import Presence, writers_folder

from tests.ledger.books import Books, record
from tests.ledger.writers import living_writer


def test_a_dead_writers_rows_are_settled_on_what_their_streams_had_told(books: Books) -> None:
    dead = {"writer": "0.1.0 dddddddddddd", "metadata": '{"user_agent":"x"}'}
    books.write(
        record(id="silent", **dead),
        record(id="told", usage_raw='{"input_tokens":9}', input_tokens=9, total_tokens=9, **dead),
        record(id="done", usage_state="complete", **dead),
    )
    assert books.store.settle_dead_writers() == 2
    done, silent, told = books.rows()
    assert (done["usage_state"], done["requires_manual_review"], done["review_reason"]) == ("complete", 0, None)
    assert (silent["usage_state"], told["usage_state"]) == ("missing", "partial")
    assert {row["requires_manual_review"] for row in (silent, told)} == {1}
    assert {row["review_reason"] for row in (silent, told)} == {"proxy_stopped"}
    assert (told["input_tokens"], told["total_tokens"]) == (9, 9)
    assert json.loads(silent["metadata"]) == {
        "user_agent": "x",
        "_no_usage_data": True,
        "_requires_manual_review": True,
    }
    assert json.loads(told["metadata"]) == {"user_agent": "x", "_partial_usage": True, "_requires_manual_review": True}


def test_settling_again_finds_nothing(books: Books) -> None:
    books.write(record(writer="0.1.0 dddddddddddd"))
    assert (books.store.settle_dead_writers(), books.store.settle_dead_writers()) == (1, 0)


def test_rows_of_living_writers_and_its_own_are_left_alone(books: Books) -> None:
    books.write(record(id="own"), record(id="other", writer="0.1.0 bbbbbbbbbbbb"))
    before = books.rows()
    with living_writer(books.path, "bbbbbbbbbbbb"):
        assert books.store.settle_dead_writers() == 0
        assert books.rows() == before


def test_a_writer_of_another_version_is_known_by_its_id(books: Books) -> None:
    books.write(record(writer="2.0.0 dev build bbbbbbbbbbbb"))
    with living_writer(books.path, "bbbbbbbbbbbb"):
        assert books.store.settle_dead_writers() == 0


def test_after_kill_9_a_writers_rows_are_settled(books: Books) -> None:
    books.write(record(writer="0.1.0 bbbbbbbbbbbb"))
    with living_writer(books.path, "bbbbbbbbbbbb") as process:
        assert books.store.settle_dead_writers() == 0
        process.kill()
        process.wait()
        assert books.store.settle_dead_writers() == 1
    assert books.row()["review_reason"] == "proxy_stopped"
    assert not (writers_folder(books.path) / "bbbbbbbbbbbb.lock").exists()


def test_a_settled_row_gives_way_to_a_replay_that_knows_more(books: Books) -> None:
    books.write(record(writer="0.1.0 dddddddddddd", tag="team-1"))
    books.store.settle_dead_writers()
    books.write(record(usage_state="complete", origin="replay"))
    row = books.row()
    assert (row["usage_state"], row["requires_manual_review"], row["review_reason"]) == ("complete", 0, None)
    assert (row["tag"], row["metadata"]) == ("team-1", "{}")


def test_marks_of_the_living_stay_beside_the_ledger(books: Books) -> None:
    own = Presence(books.path, "aaaaaaaaaaaa")
    books.store.settle_dead_writers()
    assert own.still_marked()
    own.leave()


def test_metadata_that_another_program_broke_keeps_no_dead_writers_row_from_being_settled(books: Books) -> None:
    books.write(record(writer="0.1.0 bbbbbbbbbbbb"))
    books.change("UPDATE usage_records SET metadata = '{bad'")
    assert books.store.settle_dead_writers() == 1
    assert json.loads(books.row()["metadata"]) == {"_no_usage_data": True, "_requires_manual_review": True}
