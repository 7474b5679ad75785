"""proxy: mitmproxy's hooks.

Hooks stay thin; the state of each request lives in an object of its own.
"""
