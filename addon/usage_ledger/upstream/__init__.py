"""upstream: what upstream billed – fetched, imported, and compared with the ledger.

Imports the ledger alone; neither mitmproxy nor click. Nothing here ever touches a request.
"""
