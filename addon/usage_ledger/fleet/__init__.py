"""fleet: PostgreSQL, where the ledgers of many proxies meet.

The only room that imports psycopg (the extra `fleet`). A ledger stays its own durable outbox; what is pushed is pushed
again until the server has acknowledged it, and is stored once.
"""
