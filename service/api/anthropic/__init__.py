"""Anthropic's Messages interface, over the same generation as OpenAI's.

Documents come in with the request, as `document` and `search_result` blocks, or out of the library, by the field
``folio``; citations go out as Anthropic's own objects.
"""
