"""Drafters beside plain decoding."""
