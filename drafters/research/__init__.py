"""Drafters that are exact and measured, and lose on the machines at hand."""
