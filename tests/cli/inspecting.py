"""`usage-ledger inspect` as tests run it, and the captures of the checkout."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from scripts import preloaded
from scripts.make_samples import SAMPLES

DATA = Path(__file__).parents[2] / "data"


DEMO = DATA / "demo.mitm"


LEFT = SAMPLES / "client-left-mid-stream.mitm"


NORMAL = SAMPLES / "normal-stream.mitm"


def run(*arguments: object, home: Path | None = None) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if name != "USAGE_LEDGER_DB"}
    if home is not None:
        environment |= {"HOME": str(home), "XDG_DATA_HOME": str(home)}
    return preloaded.run("inspect", *arguments, env={**environment, "COLUMNS": "100"})


def inspected(*arguments: object) -> list[dict[str, Any]]:
    done = run(*arguments, "--format", "json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def states(found: list[dict[str, Any]]) -> list[str]:
    return [each["ledger"]["state"] for each in found]
