"""Costs: how they are sorted and compared on Datasette's own page of requests.

Room: web. Imports Datasette and the names of the ledger's columns. Costs are exact text in the ledger, which as text
has 9 behind 10; so what compares them is told to compare numbers, and in place of sorting by them there is a page of
its own.
"""

import math
from urllib.parse import urlencode

from datasette.utils.asgi import BadRequest, Request

from usage_ledger.ledger.columns import COLUMNS

_SIGNS = {f"total_cost__{name}": sign for name, sign in (("gt", ">"), ("gte", ">="), ("lt", "<"), ("lte", "<="))}

TABLES = {
    "tables": {
        "usage_records": {
            "sortable_columns": [name for name in COLUMNS if name != "total_cost"],
            "description_html": '<a href="/ledger/costly">The most costly ones</a>',
        }
    },
    "queries": {
        "costly": {
            "title": "The most costly requests",
            "sql": "SELECT id, occurred_at, account_id, api_key_hint, model, tag, total_tokens, total_cost "
            "FROM usage_records WHERE total_cost IS NOT NULL ORDER BY CAST(total_cost AS REAL) DESC LIMIT 500",
        }
    },
}
"""What Datasette is told of the ledger."""


def compared(request: Request) -> str | None:
    """Return the address that compares costs as numbers; None where nothing compares costs."""
    told = [(key, value) for key in request.args for value in request.args.getlist(key)]
    if not any(key in _SIGNS for key, _ in told):
        return None
    query = [
        ("_where", f"CAST(total_cost AS REAL) {_SIGNS[key]} {_number(value)}") if key in _SIGNS else (key, value)
        for key, value in told
    ]
    return f"{request.path}?{urlencode(query)}"


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise BadRequest(f"{text!r} is no amount")
    return number
