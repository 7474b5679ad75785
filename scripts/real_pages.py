"""The pages of a ledger as they are served, for tests, benchmarks and the README's screenshot."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def serving(ledger: Path, *arguments: str) -> Iterator[str]:
    """Serve a ledger's pages on a free port; yield their address, such as http://127.0.0.1:40123."""
    command = [sys.executable, "-m", "usage_ledger", "serve", "--port", "0", "--db", str(ledger), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip().rstrip("/")
            if not address:
                raise RuntimeError(f"serve ended with {process.wait()}")
            yield address
        finally:
            process.terminate()
            process.wait(20)
