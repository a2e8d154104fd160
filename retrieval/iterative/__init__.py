"""Retrieval every few tokens: RaLMSpec's loops (arXiv 2401.14021)."""
