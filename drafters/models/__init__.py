"""Drafters with a model: a draft model, RAPID's shortened prompt, trees grown best first, and the pace of asking."""
