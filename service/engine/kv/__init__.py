"""How an engine keeps KV: the layout of its pool, and the tiers below it."""

WARMED = ".kv.safetensors"
"""How the file of a warmed document is called, behind the document's id."""
PASSAGES = ".passages.safetensors"
"""How the files of a document's passages are called, behind the document's id and a number."""
