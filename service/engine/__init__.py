"""The engine: any transformers decoder over paged KV, many requests at once, behind one door (`async_engine`)."""
