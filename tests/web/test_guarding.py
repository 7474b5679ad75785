"""Who is shown the pages: whoever has the token, on this machine, and not because another page asked; read-only."""

import csv
import http.client
import io
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from scripts.real_pages import Served, serving
from tests.web.looking import fill, record

FORMULA = '=HYPERLINK("http://198.51.100.7","x")'
LONG = "y" * 200_000
LINES = 'said "so",\n=1+1'


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(
        tmp_path_factory.mktemp("pages") / "usage.db",
        record(1, model=FORMULA, account_id="@SUM(1+1)", tag="-2+3"),
        record(2, model="=1+1", account_id=LINES, tag="plain, and whole", total_cost="-5"),
        record(3, session_id=LONG),
    )


@pytest.fixture(scope="module")
def pages(ledger: Path) -> Iterator[Served]:
    with serving(ledger) as pages:
        yield pages


# The token.


@pytest.mark.parametrize("path", ["/", "/ledger/usage_records.csv", "/usage/usage.css", "/?token=guessed", "/?token="])
def test_without_the_token_nothing_is_shown(pages: Served, path: str) -> None:
    for told in ("", "Bearer guessed", "Basic x", "Bearer \xe9"):
        status, text = pages.get(path, Authorization=told)
        assert (status, "the address that usage-ledger serve has printed" in text) == (403, True)


def test_the_address_that_is_printed_leaves_a_cookie_and_no_token_in_the_address(pages: Served) -> None:
    status, headers, _ = pages.ask(pages.link("/review?reason=a%26b&reason=")[len(pages.address) :], Authorization="")
    assert (status, headers["location"]) == (303, "/review?reason=a%26b&reason=")
    cookie, *manners = headers["set-cookie"].split("; ")
    assert {"HttpOnly", "SameSite=strict"} <= set(manners)
    for told in (cookie, f'theme=dark; x; {cookie}; y="z'):
        assert pages.get("/review", Authorization="", Cookie=told)[0] == 200
    assert pages.get("/review", Authorization="", Cookie=cookie[:-1])[0] == 403


@pytest.mark.parametrize("path", ["//evil.example/x", "/\\evil.example/x", "/%5Cevil.example"])
def test_the_token_leads_nowhere_else(pages: Served, path: str) -> None:
    location = pages.ask(f"{path}?token={pages.token}")[1]["location"]
    assert location.startswith("/evil.example")


# Where a question comes from.


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8484", "127.0.0.1.evil.example:80", "", "127.0.0.1:x"])
def test_a_name_that_is_not_this_machines_is_refused(pages: Served, host: str) -> None:
    assert pages.get("/", Host=host)[0] in (400, 421)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST:80", "[::1]", "[::1]:8484"])
def test_a_name_of_this_machine_is_not_with_its_port_or_without(pages: Served, host: str) -> None:
    assert pages.get("/review", Host=host)[0] == 200


def test_what_a_page_of_elsewhere_asks_for_is_refused(pages: Served) -> None:
    told = {site: pages.get("/review", **{"Sec-Fetch-Site": site})[0] for site in ("cross-site", "same-site", "none")}
    assert told == {"cross-site": 403, "same-site": 403, "none": 200}
    assert pages.get("/review", **{"Sec-Fetch-Site": "same-origin"})[0] == 200


def test_it_listens_on_this_machine_alone(pages: Served) -> None:
    port = int(pages.address.rpartition(":")[2])
    with socket.socket() as client:
        client.settimeout(2)
        assert client.connect_ex(("127.0.0.2", port)) != 0


# What can be asked for.


@pytest.mark.parametrize(
    "path",
    [
        "/ledger.db",
        "/ledger?sql=delete+from+usage_records",
        "/ledger?sql=pragma+query_only%3D0",
        "/ledger?sql=attach+%27x%27+as+y",
    ],
)
def test_nothing_can_be_written_or_taken_away(ledger: Path, pages: Served, path: str) -> None:
    status, _ = pages.get(path)
    assert status >= 400
    with closing(sqlite3.connect(ledger)) as connection:
        assert connection.execute("SELECT count(*) FROM usage_records").fetchone() == (3,)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_nothing_but_reading_can_be_asked_for(pages: Served, method: str) -> None:
    client = http.client.HTTPConnection(pages.address.removeprefix("http://"), timeout=30)
    with closing(client):
        client.request(method, "/ledger/usage_records", headers={"Authorization": f"Bearer {pages.token}"})
        assert client.getresponse().status == 405


def test_a_page_may_not_be_shown_within_another_nor_ask_elsewhere_nor_be_kept(pages: Served) -> None:
    for path in ("/", "/ledger/usage_records"):
        headers = pages.ask(path)[1]
        assert "default-src 'self'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["cache-control"] == "no-store"


def test_what_is_not_there_is_not_found(pages: Served) -> None:
    for path in ("/nothing", "/ledger/nothing", "/ledger/usage_records/nothing"):
        status, text = pages.get(path)
        assert status == 404
        assert "Traceback" not in text


# What leaves.


def cells(text: str) -> set[str]:
    return {cell for line in csv.reader(io.StringIO(text, newline="")) for cell in line}


def test_no_csv_has_a_formula(pages: Served) -> None:
    """Neither ours nor Datasette's."""
    query = "_col=model&_col=account_id&_col=tag&_col=total_cost"
    for more in ("", "&_stream=on", "&_size=max"):
        told = cells(pages.get(f"/ledger/usage_records.csv?{query}{more}")[1])
        assert {f"'{FORMULA}", "'@SUM(1+1)", "'-2+3", "'=1+1", LINES, "plain, and whole", "-5"} <= told
    assert LONG in pages.get("/ledger/usage_records.csv?_stream=on")[1]
    assert {f"'{FORMULA}", "'=1+1"} <= cells(pages.get("/overview/tokens.csv")[1])
    assert "'@SUM(1+1)" in cells(pages.get("/overview/accounts.csv")[1])
    assert "'=1+1" in cells(pages.get("/ledger.csv?sql=select+'=1%2b1'+as+one")[1])
