"""The OpenAI routes: chat completions, completions, models, embeddings.

Documents come in through ``extra_body={"folio": {"collection", "documents", "mode"}}``; citations go out beside the
message, under ``folio``.
"""
