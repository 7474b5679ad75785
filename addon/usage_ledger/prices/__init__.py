"""prices: what a request costs, exactly: own prices first, then Anthropic's list."""
