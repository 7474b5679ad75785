"""`usage-ledger redact`: a capture that can be shown to others.

Room: cli. Imports click, the flows room (which loads mitmproxy) where it runs, and the ledger's paths. Promises that
nothing is written before it was checked, that nothing is replaced, and that what is written is whole.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from usage_ledger.cli.options import with_filter, without_ledger
from usage_ledger.cli.output import Problems, for_people, on_one_line, progress, say

if TYPE_CHECKING:
    from usage_ledger.flows.metered import RequestFilter


@click.command()
@click.argument("source", metavar="IN", type=click.Path(path_type=Path))
@click.argument("target", metavar="OUT", type=click.Path(path_type=Path))
@with_filter
@without_ledger
def redact(source: Path, target: Path, chosen: "RequestFilter | None") -> int:
    """Write a capture that can be shared: IN without its secrets, as the new file OUT.

    Keys, cookies, prompts, completions, tool names and inputs, images, signatures, hosts and paths but Anthropic's and
    this machine's, and whatever else is not known to be harmless become filler of the same length. Event structure,
    sizes, times, usage, model names, organization and request ids and the names of known clients stay, and so does the
    verdict on every flow. That is checked: a flow whose verdict would change is left out. Only metered requests are
    kept. Bodies that are compressed are compressed anew, so that their size may change; what it was is noted.

    IN is what mitmdump -w saved, or a HAR; OUT is read by inspect, mitmweb and mitmdump -nr.

    Exit code 0: all of IN is in OUT; 1: all but what is told; 2: there is no OUT.

    \b
    Examples:
      usage-ledger redact capture.mitm to-share.mitm
      usage-ledger inspect to-share.mitm
    """
    from usage_ledger.flows.files import CaptureError, as_saved, judging, saved_flows
    from usage_ledger.flows.metered import metered
    from usage_ledger.flows.redacting import RedactionError, redact
    from usage_ledger.ledger.paths import new_file

    kept = others = 0
    problems = Problems()
    with new_file(target) as unfinished, unfinished.open("wb") as file:
        with progress("redacting", lambda: source.stat().st_size) as advance:
            try:
                for saved in saved_flows(source, advance):
                    try:
                        with judging(source, saved):
                            flow = metered(saved, chosen)
                            if flow is not None:
                                redact(flow)
                                content = as_saved(flow)
                    except CaptureError as error:
                        is_refused = isinstance(error.__cause__, RedactionError)
                        problems.add(f"{source}: {error.__cause__}" if is_refused else str(error))
                        continue
                    if flow is None:
                        others += 1
                    else:
                        file.write(content)
                        kept += 1
            except CaptureError as error:
                problems.add(str(error))
        if not kept:
            told = problems.told or f"{source} has no flow of a metered request"
            raise click.ClickException(f"{told}; nothing is written")
    out = for_people()
    left = f"; {others:,} other(s), which are not metered, are left out" if others else ""
    say(out, f"{target}: {kept:,} flow(s){left}")
    if problems.told:
        click.echo(f"usage-ledger: {on_one_line(problems.told)}; the rest is in {target}", err=True)
        return 1
    return 0
