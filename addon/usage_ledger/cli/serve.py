"""`usage-ledger serve`: the ledger as pages in a browser.

Room: cli. Imports click and the ledger's reading side, and the web room (which loads Datasette) where it runs. Promises
that only this machine is served, that nothing is written, and that a browser holds nothing up.
"""

import socket
import threading
import webbrowser
from pathlib import Path

import click

from usage_ledger.cli.options import with_ledger
from usage_ledger.cli.output import for_programs
from usage_ledger.cli.spreadsheets import safe
from usage_ledger.ledger.reading import open_for_reading

PORT = 8484


@click.command()
@with_ledger
@click.option("--port", type=click.IntRange(0, 65535), default=PORT, show_default=True, help="0 takes any free one.")
@click.option("--open", "opens", is_flag=True, help="Open a browser as well.")
def serve(db: Path, port: int, opens: bool) -> None:
    """Show the ledger in a browser: costs and tokens, requests, the review queue, the last reconciliation.

    It is read, never written, also while proxies write to it; a reload shows what was written a second ago. Only this
    machine can ask for it (127.0.0.1), and of its users those who know the token in the address, which is another one
    each time. The pages ask no other host for anything. Days are those of UTC. The address is written to stdout; Ctrl-C
    ends it.

    \b
    Examples:
      usage-ledger serve --open
      usage-ledger serve --db fleet.db --port 8500
    """
    with open_for_reading(db):
        pass  # says what is wrong with a path that leads to no ledger
    try:
        from usage_ledger.web.serving import HOST, serve
    except ImportError as error:
        raise click.ClickException(
            f"this needs the extra `web` ({error}): pip install 'claude-usage-ledger[web]'"
        ) from error
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
            listener.listen()
        except OSError as error:
            raise click.ClickException(
                f"cannot listen on port {port} ({error.strerror}); name another with --port"
            ) from error
        address = f"http://{HOST}:{listener.getsockname()[1]}"
        out = for_programs()

        def started(path: str) -> None:
            out.write(f"{address}{path}\n")
            out.flush()
            if opens:  # a browser may take its time
                threading.Thread(target=_open, args=(f"{address}{path}",), daemon=True).start()

        serve(db.resolve(), listener, started, safe)


def _open(address: str) -> None:
    if not webbrowser.open(address):
        click.echo("no browser could be opened; open the address yourself", err=True)
