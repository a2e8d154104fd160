"""How an engine keeps KV: the layout of its pool, and the tiers below it."""
