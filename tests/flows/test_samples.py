"""The sample captures of `data/flows`: each yields the rows beside it; together they show every state and reason."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from usage_ledger.messages import Reason, State

from scripts.make_samples import SAMPLES, flows_of, replayed_rows
from scripts.sample_cases import CASES, KEY

CAPTURES = sorted(SAMPLES.glob("*.mitm"))
README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")

type Verdict = tuple[str, str | None] | None


def expected(capture: Path) -> list[dict[str, Any]]:
    return json.loads(capture.with_suffix(".json").read_text(encoding="utf-8"))


def verdict_of(capture: Path) -> Verdict:
    """What a sample's row says; None where it has no row."""
    rows = expected(capture)
    assert len(rows) <= 1
    return (rows[0]["usage_state"], rows[0]["review_reason"]) if rows else None


def states_in_the_readme() -> list[tuple[str, Verdict]]:
    """What happened, and each state that its line in the README gives it, with the reason."""
    section = README.partition("## States\n")[2].partition("\n## ")[0]
    told: list[tuple[str, Verdict]] = []
    for what, states, reasons in re.findall(r"^\| (.+?) \| (.+?) \| (.*?) ?\|$", section, re.MULTILINE)[1:]:
        (reason,) = re.findall(r"`(\w+)`", reasons) or [None]
        told += [(what, (state, reason)) for state in re.findall(r"`(\w+)`", states)]
        if states == "no row":
            told.append((what, None))
    return told


@pytest.fixture(scope="module")
def replayed() -> dict[str, list[dict[str, Any]]]:
    return replayed_rows(CAPTURES)


@pytest.mark.parametrize("capture", CAPTURES, ids=lambda path: path.stem)
def test_a_sample_yields_the_rows_beside_it(replayed: dict[str, list[dict[str, Any]]], capture: Path) -> None:
    assert replayed[capture.stem] == expected(capture)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_case_of_the_catalogue_has_a_sample_with_its_verdict(case: Any) -> None:
    assert verdict_of(SAMPLES / f"{case.name}.mitm") == case.verdict


def test_there_are_no_samples_but_those_of_the_catalogue() -> None:
    """Each is a capture with its rows beside it, and no two share a name."""
    assert len({case.name for case in CASES}) == len(CASES)
    names = {f"{case.name}{ending}" for case in CASES for ending in (".mitm", ".json")}
    assert {path.name for path in SAMPLES.iterdir()} == names


@pytest.mark.parametrize(("what", "verdict"), states_in_the_readme())
def test_each_state_in_the_readme_has_a_sample(what: str, verdict: Verdict) -> None:
    assert verdict in map(verdict_of, CAPTURES)


def test_every_state_and_every_reason_has_a_sample_and_a_line_in_the_readme() -> None:
    samples = {verdict for verdict in map(verdict_of, CAPTURES) if verdict}
    assert samples == {verdict for _, verdict in states_in_the_readme() if verdict}
    assert {state for state, _ in samples} == set(State) - {State.PENDING}
    assert {reason for _, reason in samples} == {*Reason, None}


@pytest.mark.parametrize("capture", CAPTURES, ids=lambda path: path.stem)
def test_a_sample_is_small_and_holds_nothing_of_anybody(capture: Path) -> None:
    """One flow between loopback addresses, with a made-up key; no certificate, no cookie, no file's path."""
    content = capture.read_bytes()
    assert len(content) < 8_000
    assert set(re.findall(rb"sk-ant-[\w-]+", content)) == {KEY.encode()}
    assert {address.split(b".")[0] for address in re.findall(rb"\b\d+(?:\.\d+){3}\b", content)} == {b"127"}
    (flow,) = flows_of(capture)
    assert not {"authorization", "proxy-authorization", "cookie"} & {name.lower() for name in flow.request.headers}
    client, server = flow.client_conn, flow.server_conn
    assert not client.certificate_list
    assert not server.certificate_list
    told = [client.peername, client.sockname, server.address, server.peername, server.sockname]
    assert {address[0] for address in told if address} == {"127.0.0.1"}
    for place in (b"/home/", b"/root/", b"/Users/", b"/tmp/", b"/work/", b"/var/"):
        assert place not in content
