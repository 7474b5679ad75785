"""Models: when two names are of one model.

Room: upstream. Imports the standard library only. The rule: names are compared without their date, and a display name
as the id that it stands for. So an alias (`claude-sonnet-4-5`) is the dated id (`claude-sonnet-4-5-20250929`), and so
is `Claude Sonnet 4.5`; `claude-sonnet-4-0` is `claude-sonnet-4-20250514`. Ids before Claude 4 have the version before
the family (`claude-3-5-haiku-20241022`).
"""

import re

_DATE = re.compile(r"(?:[-@](?:\d{8}|latest))+$")
_DISPLAY = re.compile(
    r"claude (?:(?P<family>[a-z]+) (?P<version>\d+(?:\.\d+)?)|(?P<old>\d+(?:\.\d+)?) (?P<of>[a-z]+))$"
)


def plain_name(name: str) -> str:
    """Return a model's name as names are compared."""
    text = " ".join(name.strip().lower().split())
    display = _DISPLAY.match(text)
    if display:
        family = display["family"] or display["of"]
        version = (display["version"] or display["old"]).replace(".", "-")
        is_old = int(version.split("-")[0]) < 4
        return f"claude-{version}-{family}" if is_old else f"claude-{family}-{version}"
    undated = _DATE.sub("", text.removeprefix("anthropic/"))
    return undated.removesuffix("-0") if undated.startswith("claude-") else undated
