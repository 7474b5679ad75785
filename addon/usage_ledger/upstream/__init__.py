"""upstream: what upstream billed – fetched, imported, and compared with the ledger.

Imports the ledger and the prices room's money alone; neither mitmproxy nor click. Nothing here ever touches a request.
"""
