"""What the tests share: a fake Console, the real mitmdump in front of it, and a client."""

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from scripts import real_proxy
from scripts.fake_console import FakeConsole
from scripts.real_proxy import Proxy

CORPUS = Path(__file__).parent.parent.parent / "shared" / "corpus"
KEY = "sk-ant-api03-R2D2secretsecretsecretsecretsecretigAA"

real_proxy.starter = real_proxy.start_preloaded


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the drills at full length (./scripts/drill)")


@pytest.fixture
def console() -> Iterator[FakeConsole]:
    with FakeConsole() as running:
        yield running


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "books" / "usage.db"


@pytest.fixture
def start_proxy(console: FakeConsole, ledger: Path) -> Iterator[Callable[..., Proxy]]:
    """Start proxies in front of the console; they are stopped after the test."""
    running: list[Proxy] = []

    def start(*arguments: str, **more: object) -> Proxy:
        upstream = str(more.pop("upstream", console.address))
        proxy = Proxy(upstream, more.pop("ledger", ledger), *arguments, **more)  # type: ignore[arg-type]
        running.append(proxy)
        return proxy.__enter__()

    yield start
    for proxy in running:
        proxy.stop()


@pytest.fixture
def ask() -> Iterator[Callable[..., httpx.Response]]:
    """Post a Messages request through a proxy and return the answer, its body read raw into `extensions["raw"]`."""
    with httpx.Client(timeout=30) as client:

        def post(proxy: Proxy, scenario: str, path: str = "/v1/messages", **headers: str) -> httpx.Response:
            with client.stream(
                "POST",
                proxy.address + path,
                headers={"x-scenario": scenario, "x-api-key": KEY, **headers},
                json={"model": "claude-asked", "stream": True, "messages": [{"role": "user", "content": "PROMPT"}]},
            ) as answer:
                answer.extensions["raw"] = b"".join(answer.iter_raw())
            return answer

        yield post


@pytest.fixture(scope="session")
def sized(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """Choose between a drill's short and its long size."""
    is_long = request.config.getoption("--long")
    return lambda short, long: long if is_long else short
