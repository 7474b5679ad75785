"""The pages of a ledger as they are served, for tests, benchmarks and the README's screenshot."""

import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple


class Served(NamedTuple):
    """Pages that are served at an address, such as http://127.0.0.1:40123, to those who know the token."""

    address: str
    token: str

    def link(self, path: str = "/") -> str:
        """Return what a browser opens first."""
        return f"{self.address}{path}{'&' if '?' in path else '?'}token={self.token}"

    def get(self, path: str = "/", **headers: str) -> tuple[int, str]:
        """Return status and text of a page, as a program gets them."""
        status, _, body = self.ask(path, **headers)
        return status, body

    def ask(self, path: str = "/", **headers: str) -> tuple[int, dict[str, str], str]:
        """Return the status, the headers (in lower case) and the text of an answer; redirects are not followed."""
        headers = {"Authorization": f"Bearer {self.token}"} | headers
        request = urllib.request.Request(self.address + path, headers=headers)
        try:
            with _opener.open(request, timeout=60) as answer:
                return answer.status, _lower(answer.headers), answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, _lower(error.headers), error.read().decode()


class _Unmoved(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


_opener = urllib.request.build_opener(_Unmoved)


def _lower(headers: Any) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


@contextmanager
def serving(
    ledger: Path, *arguments: str, stderr: IO[Any] | None = None, program: Sequence[str] = ("-m", "usage_ledger")
) -> Iterator[Served]:
    """Serve a ledger's pages on a free port."""
    command = [sys.executable, *program, "serve", "--port", "0", "--db", str(ledger), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as process:
        try:
            assert process.stdout is not None
            address, _, token = process.stdout.readline().strip().partition("/?token=")
            if not address:
                raise RuntimeError(f"serve ended with {process.wait()}")
            yield Served(address, token)
        finally:
            process.terminate()
            process.wait(20)
