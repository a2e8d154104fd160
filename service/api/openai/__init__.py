"""The OpenAI routes: chat completions, completions, models, embeddings; and those that others have beside them: rerank,
score, tokenize, detokenize.

Documents come in through ``extra_body={"folio": {"collection", "documents", "mode"}}``; citations go out beside the
message, under ``folio``.
"""
