"""What the drills share."""

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scripts.real_proxy import ADDON, wait_until
from scripts.traffic import compare


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A disk of 8 MB of its own, which can be filled and made read-only. Needs an administrator."""
    folder = Path(tempfile.mkdtemp(prefix="small-disk-"))
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m,mode=700", "tmpfs", folder], capture_output=True, check=False
    )
    try:
        if mounted.returncode:
            pytest.skip(f"a disk of its own cannot be mounted here: {mounted.stderr.decode().strip()}")
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], capture_output=True, check=False)
        folder.rmdir()


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """A folder that a group shares (setgid), which every user can reach. Needs an administrator."""
    if os.geteuid() != 0:
        pytest.skip("only an administrator can run a proxy as another user")
    with tempfile.TemporaryDirectory(prefix="shared-", dir="/var/tmp") as name:
        os.chmod(name, 0o755)
        folder = Path(name) / "books"
        folder.mkdir()
        os.chown(folder, 0, 60_000)
        folder.chmod(0o2770)
        yield folder


@pytest.fixture
def patched_script(tmp_path: Path) -> Callable[[str], Path]:
    """Make a script that loads the addon after some lines of Python."""

    def make(lines: str) -> Path:
        script = tmp_path / "usage.py"
        script.write_text(f"import sys\nsys.path.insert(0, {str(ADDON.parent)!r})\n{lines}\n{ADDON.read_text()}")
        return script

    return make


@pytest.fixture
def books_match() -> Callable[..., int]:
    """Wait until every request that the Console received has its one settled row; return how many there were."""

    def match(console: object, ledger: Path) -> int:
        received, wrong = 0, ["no ledger"]

        def right() -> bool:
            nonlocal received, wrong
            if ledger.exists():
                received, wrong = compare(console, ledger)  # type: ignore[arg-type]
            return not wrong

        try:
            wait_until(right)
        except TimeoutError:
            raise AssertionError(f"{received} requests were received; {len(wrong)} are wrong: {wrong[:5]}") from None
        return received

    return match
