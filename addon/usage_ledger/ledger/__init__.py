"""ledger: the SQLite books. The only room that knows the schema.

Its modules are imported one by one, so that a reading command does not pay for what only a writer needs.
"""
