"""claude-usage-ledger: exact books of what Claude bills, read from its streams as they pass a proxy.

The rooms of the house, and the one direction in which data flows::

    proxy (mitmproxy hooks) -> messages (bytes -> events -> usage -> verdict) -> ledger (SQLite) -> cli

Beside them: flows (from flows to rows), prices, upstream (the bill), fleet (PostgreSQL) and web. CONTRIBUTING.md says
which of them may import which.

This module imports nothing: whoever opens one room does not pay for the others.
"""

__version__ = "0.1.0"
