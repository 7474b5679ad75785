"""proxy: mitmproxy's hooks.

The only room that imports mitmproxy. Hooks stay thin; the state of each request lives in an object of its own.
"""
