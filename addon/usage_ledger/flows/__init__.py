"""flows: from mitmproxy's flows, live or saved, to rows.

With `proxy` the only room that imports mitmproxy. It has no hooks: `proxy` hands it flows as they end, the command line
tool flows of a capture.
"""
