"""Drafters without a model: what is copied from texts, or remembered of the target's own choices."""
