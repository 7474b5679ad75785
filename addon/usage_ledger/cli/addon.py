"""`usage-ledger addon`: where the script is that mitmproxy loads.

Room: cli. Imports click.
"""

from pathlib import Path

import click

import usage_ledger
from usage_ledger.cli.options import without_ledger
from usage_ledger.cli.output import for_programs


@click.command()
@without_ledger
def addon() -> None:
    """Print the path of the addon, for mitmdump, mitmproxy and mitmweb to load.

    It is that of this installation, so that no checkout is needed.

    \b
    Examples:
      mitmdump --mode reverse:https://api.anthropic.com -p 8080 -s "$(usage-ledger addon)"
    """
    package = Path(usage_ledger.__file__).resolve().parent
    places = (package / "script" / "usage.py", package.parent / "usage.py")  # of a wheel, and of a checkout
    found = next((place for place in places if place.exists()), None)
    if found is None:
        raise click.ClickException(f"the addon is not beside {package}; install claude-usage-ledger once more")
    out = for_programs()
    out.write(f"{found}\n")
    out.flush()
