"""Conversations that are kept: each owner's own, seen in every tab, until they are deleted."""
