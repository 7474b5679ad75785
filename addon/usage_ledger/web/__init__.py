"""web: the ledger as pages – an overview, its rows, the review queue, the latest reconciliation – in a browser."""
