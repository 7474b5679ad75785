"""`python -m usage_ledger`: the same as the `usage-ledger` command."""

from usage_ledger.cli.main import run

if __name__ == "__main__":
    run()
