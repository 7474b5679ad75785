"""The FOCUS drill: `usage-ledger export --format focus` before the specification's own validator.

The validator needs an environment of its own, of about 600 MB, which is made once in `.venv-focus`. It ends with 0
whatever it finds, so its report is read.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from scripts.real_proxy import ROOT, replay, rows_of

ENVIRONMENT = ROOT / ".venv-focus"
REQUIREMENTS = ("focus-validator==2.2.1", "pyarrow<23")
EITHER = {"InvoiceId-C-004-C", "InvoiceId-C-005-C"}
"""An invoice id is to be empty, or not: one of these two rules always fails, and the rule above them asks for one."""


def main() -> int:
    make_environment()
    with tempfile.TemporaryDirectory(prefix="usage-ledger-focus-") as name:
        folder = Path(name)
        ledger = folder / "usage.db"
        replay(ROOT / "data" / "demo.mitm", ledger)
        flagged = rows_of(ledger, "requires_manual_review = 1")[0]
        tool("backfill", "--db", str(ledger), "--id", flagged["id"], "--output-tokens", "50")
        tool("export", "--db", str(ledger), "--format", "focus", "--output", str(folder / "focus.csv"))
        report = validate(folder)
    print(next(line for line in report.splitlines() if line.startswith("Total")))
    failed = set(re.findall(r"^❌ ([\w-]+)", report, re.MULTILINE)) - EITHER
    passed = set(re.findall(r"^✅ ([\w-]+)", report, re.MULTILINE))
    for rule in sorted(failed):
        print(f"failed: {rule}")
    return 0 if not failed and "InvoiceId-C-003-C" in passed and len(passed) > 100 else 1


def make_environment() -> None:
    if not (ENVIRONMENT / "bin" / "focus-validator").exists():
        print("making .venv-focus, once; this takes some minutes", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", ENVIRONMENT], check=True)
        subprocess.run([ENVIRONMENT / "bin" / "pip", "install", "-q", *REQUIREMENTS], check=True)


def validate(folder: Path) -> str:
    """Return the validator's report. It looks for its list of currencies under the folder that it runs in."""
    where = "import focus_validator, json, os; print(json.dumps(os.path.dirname(focus_validator.__file__)))"
    found = subprocess.run([ENVIRONMENT / "bin" / "python", "-c", where], check=True, stdout=subprocess.PIPE)
    rules = folder / "focus_validator" / "rules"
    rules.mkdir(parents=True)
    shutil.copy(Path(json.loads(found.stdout)) / "rules" / "currency_codes.csv", rules)
    command = [ENVIRONMENT / "bin" / "focus-validator", "--data-file", "focus.csv", "--validate-version", "1.2"]
    told = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run([*command, "--block-download"], cwd=folder, check=True, **told)  # type: ignore[call-overload]
    report: bytes = done.stdout
    return report.decode()


def tool(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "usage_ledger", *arguments], check=True)


if __name__ == "__main__":
    sys.exit(main())
