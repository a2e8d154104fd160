"""Drafters made of others: sources together, fusion, cascades, trees cut to what pays, and the default."""
