"""Importing files: the Console's exports, old and new, and saved answers; what is no bill is refused whole."""

import csv
import io
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from scripts.fake_admin import ADMIN_KEY, FakeAdmin
from tests.upstream.test_fetching import dump, fetch, query, refused, run


def test_a_day_that_another_source_has_with_other_numbers_is_refused(
    ledger: Path, admin: FakeAdmin, tmp_path: Path
) -> None:
    fetch(ledger, admin, "usage", "--since", "2026-11-01", "--until", "2026-11-02")
    path = file(tmp_path, USAGE)
    told = refused(ledger, "import", path)
    assert "2026-11-01 has other numbers in another source" in told
    assert "(api by day: input_tokens 20, " in told
    assert "; csv by day: input_tokens 100, " in told
    assert run(ledger, path, "--replace", command="import").returncode == 0


def test_a_file_tells_of_the_time_when_it_was_written(ledger: Path, tmp_path: Path) -> None:
    """Exported at noon, a day is not all there, whenever it is imported."""
    path = file(tmp_path, USAGE)
    noon = datetime(2026, 11, 3, 12, tzinfo=UTC).timestamp()
    os.utime(path, (noon, noon))
    imported(ledger, path)
    assert query(ledger, "SELECT DISTINCT loaded_at FROM bill_buckets") == [("2026-11-03T12:00:00.000Z",)]
    os.utime(path)
    imported(ledger, path)
    later = [
        loaded_at for since, loaded_at in query(ledger, "SELECT since, loaded_at FROM bill_buckets ORDER BY since")
    ]
    assert later[:2] == ["2026-11-03T12:00:00.000Z"] * 2  # they were final before
    assert later[2] > "2026-11-03T12:00:00.000Z"


USAGE_HEADER = (
    "usage_date_utc,model_version,api_key,workspace,usage_type,context_window,usage_input_tokens_no_cache,"
    "usage_input_tokens_cache_write_5m,usage_input_tokens_cache_write_1h,usage_input_tokens_cache_read,"
    "usage_output_tokens,web_search_count,inference_geo,speed"
)
USAGE = (
    f"{USAGE_HEADER}\r\n"
    "2026-11-01,claude-sonnet-4-5-20250929,team one,Default,message,≤ 200k,100,10,20,30,40,2,not_available,standard\r\n"
    "2026-11-03,claude-haiku-4-5-20251001,two,Default,batch,≤ 200k,1,0,0,0,2,0,,\r\n"
)
COSTS_HEADER = (
    "usage_date_utc,model,workspace,api_key,usage_type,context_window,token_type,cost_usd,list_price_usd,cost_type,"
    "inference_geo,speed,api_key_id,api_key_status"
)
COSTS = (
    f"{COSTS_HEADER}\n"
    "2026-11-01,Claude Sonnet 4.5,Default,team one,message,≤ 200k,output,0.06,15,token,,,apikey_1,active\n"
)


def file(tmp_path: Path, text: str | bytes, name: str = "x.csv") -> str:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def imported(ledger: Path, *paths: str) -> str:
    done = run(ledger, *paths, command="import")
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


@pytest.mark.parametrize("text", [USAGE, "\ufeff" + USAGE, USAGE.replace("\r\n", "\n")], ids=["as it is", "BOM", "LF"])
def test_a_usage_export_of_the_console(ledger: Path, tmp_path: Path, text: str) -> None:
    path = file(tmp_path, text)
    assert imported(ledger, path) == f"{path}: usage, 3 new, 0 changed, 0 known buckets\n"
    assert query(
        ledger,
        "SELECT model, api_key, context_window, service_tier, input_tokens, cache_creation_5m_input_tokens, "
        "cache_creation_1h_input_tokens, cache_read_input_tokens, output_tokens, web_search_requests FROM bill_usage",
    ) == [
        ("claude-sonnet-4-5-20250929", "team one", "≤ 200k", None, 100, 10, 20, 30, 40, 2),
        ("claude-haiku-4-5-20251001", "two", "≤ 200k", "batch", 1, 0, 0, 0, 2, 0),
    ]


def test_an_older_export_lacks_the_last_columns(ledger: Path, tmp_path: Path) -> None:
    older = "\n".join(",".join(line.split(",")[:11]) for line in USAGE.split("\r\n"))
    assert "3 new" in imported(ledger, file(tmp_path, older))
    assert query(ledger, "SELECT sum(output_tokens), sum(web_search_requests) FROM bill_usage") == [(42, 0)]


def test_a_cost_export_of_the_console(ledger: Path, tmp_path: Path) -> None:
    assert "costs, 1 new" in imported(ledger, file(tmp_path, COSTS))
    assert query(ledger, "SELECT amount, model, api_key, token_type FROM bill_costs") == [
        ("0.06", "Claude Sonnet 4.5", "apikey_1", "output")
    ]


def test_saved_answers_of_the_api(ledger: Path, tmp_path: Path, admin: FakeAdmin) -> None:
    asked = {"starting_at": ["2026-11-01T00:00:00Z"], "ending_at": ["2026-11-03T00:00:00Z"], "group_by[]": ["model"]}
    paths = []
    for name, path in (("usage", "usage_report/messages"), ("costs", "cost_report"), ("keys", "api_keys")):
        _, _, body = admin.answer(f"/v1/organizations/{path}", asked, ADMIN_KEY)
        paths.append(file(tmp_path, body, f"{name}.json"))
    told = imported(ledger, *paths)
    assert [line.partition(": ")[2].partition(",")[0] for line in told.splitlines()] == ["usage", "costs", "keys"]
    assert query(ledger, "SELECT count(*) FROM bill_usage") == [(2,)]
    assert query(ledger, "SELECT count(*) FROM bill_keys") == [(2,)]


@pytest.mark.parametrize("text", [USAGE, COSTS])
def test_the_same_file_twice_changes_nothing(ledger: Path, tmp_path: Path, text: str) -> None:
    imported(ledger, file(tmp_path, text))
    before = dump(ledger)
    assert "0 new, 0 changed" in imported(ledger, file(tmp_path, text))
    lines = text.splitlines(keepends=True)
    imported(ledger, file(tmp_path, "".join([lines[0], *reversed(lines[1:])]), "another name.csv"))
    assert dump(ledger) == before


def test_a_file_with_other_numbers_is_refused_and_both_are_shown(ledger: Path, tmp_path: Path) -> None:
    imported(ledger, file(tmp_path, USAGE))
    other = file(tmp_path, USAGE.replace(",40,2,", ",41,2,"), "other.csv")
    told = refused(ledger, "import", other)
    assert "output_tokens 40" in told.partition("before")[0]
    assert "output_tokens 41" in told.partition("before")[2]
    assert "--replace takes the new ones" in told
    done = run(ledger, other, "--replace", command="import")
    assert "0 new, 1 changed, 2 known" in done.stdout
    assert query(ledger, "SELECT sum(output_tokens) FROM bill_usage") == [(43,)]


def test_a_longer_file_adds_what_is_new(ledger: Path, tmp_path: Path) -> None:
    imported(ledger, file(tmp_path, USAGE))
    more = USAGE + "2026-11-04,claude-haiku-4-5-20251001,two,Default,message,≤ 200k,1,0,0,0,9,0,,\r\n"
    assert "1 new, 0 changed, 3 known" in imported(ledger, file(tmp_path, more))


BAD = {
    "nothing": ("", "is no usage or cost export"),
    "a header alone": (USAGE_HEADER + "\n", "it has no lines"),
    "another CSV": ("a,b\n1,2\n", "is no usage or cost export"),
    "an unknown column": (USAGE.replace("speed", "velocity", 1), "column 'velocity' is not known"),
    "a column twice": (USAGE.replace("speed", "inference_geo", 1), "a column is there twice"),
    "a line that is cut": (USAGE[:-30], "line 3 has more or fewer cells than the header; is the file whole?"),
    "a count that is none": (USAGE.replace(",100,", ",many,"), "line 2: 'many' is no count"),
    "a negative count": (USAGE.replace(",100,", ",-5,"), "line 2: '-5' is no count"),
    "a fraction": (USAGE.replace(",100,", ",1.5,"), "line 2: '1.5' is no count"),
    "no day": (USAGE.replace("2026-11-01", "yesterday"), "line 2: 'yesterday' is no day"),
    "days far apart": (USAGE.replace("2026-11-01", "2020-11-01").replace("2026-11-03", "2999-01-01"), "it goes from"),
    "a day of the past": (USAGE.replace("2026-11-01", "1999-11-01"), "line 2: '1999-11-01' is no day"),
    "a time with a zone": (USAGE.replace("2026-11-01", "2026-11-01T23:00:00-08:00"), "is no day"),
    "a day with a digit too many": (USAGE.replace("2026-11-01", "2026-11-019"), "is no day"),
    "an amount in another spelling": (COSTS.replace("0.06", "1_0"), "'1_0' is no amount"),
    "an amount of many digits": (COSTS.replace("0.06", "1" * 5_000), "is no amount"),
    "one long line": ("x" * 200_000, "is no usage or cost export"),
    "a report without results": (
        '{"data": [{"starting_at": "2026-11-01T00:00:00Z", "ending_at": "2026-11-02T00:00:00Z", "results": []}]}',
        "that has any results",
    ),
    "days of another zone": (
        '{"data": [{"starting_at": "2026-11-01T00:00:00-08:00", "ending_at": "2026-11-02T00:00:00-08:00", '
        '"results": [{"uncached_input_tokens": 1, "output_tokens": 1}]}]}',
        "which is no day, hour or minute",
    ),
    "a time out of reach": (
        '{"data": [{"starting_at": "0001-01-01T00:00:00+14:00", "ending_at": "2026-11-02T00:00:00Z", '
        '"results": [{"uncached_input_tokens": 1, "output_tokens": 1}]}]}',
        "is no time",
    ),
    "an amount that is none": (COSTS.replace("0.06", "six"), "line 2: 'six' is no amount"),
    "an endless amount": (COSTS.replace("0.06", "Infinity"), "is no amount"),
    "open quotes": (USAGE + '"', "it is not CSV"),
    "not UTF-8": (b"\xff\xfe", "is not UTF-8 text"),
    "other JSON": ('{"a": 1}', "it is JSON, but no answer of the Admin API"),
    "JSON that is cut": ('{"data": [', "it is JSON, but no answer of the Admin API"),
    "a list": ("[]", "it is JSON, but no answer"),
    "deep JSON": ("[" * 100_000, "it is JSON, but no answer"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_file_that_is_no_bill_is_one_line_and_stores_nothing(ledger: Path, tmp_path: Path, what: str) -> None:
    text, says = BAD[what]
    path = file(tmp_path, text)
    told = refused(ledger, "import", path)
    assert told.startswith(f"usage-ledger: {path}")
    assert says in told


def test_files_that_are_not_there_or_are_folders_are_one_line(ledger: Path, tmp_path: Path) -> None:
    assert "No such file" in refused(ledger, "import", str(tmp_path / "none.csv"))
    assert "Is a directory" in refused(ledger, "import", str(tmp_path))


def test_of_several_files_those_before_the_bad_one_are_in(ledger: Path, tmp_path: Path) -> None:
    done = run(ledger, file(tmp_path, USAGE), file(tmp_path, "a,b\n", "y.csv"), command="import")
    assert done.returncode == 2
    assert "usage, 3 new" in done.stdout
    assert query(ledger, "SELECT count(*) FROM bill_usage") == [(2,)]
    assert list(csv.reader(io.StringIO(USAGE)))[1][1] == "claude-sonnet-4-5-20250929"
