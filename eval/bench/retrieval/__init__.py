"""Indexes, ingesting, and retrieval in rounds."""
