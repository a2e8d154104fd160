"""Drafters made of others: fusion, cascades, and the choice between them."""
