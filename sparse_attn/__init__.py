"""Attention over pages of KV, dense or sparse, by policy."""
