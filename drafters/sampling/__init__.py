"""The target's choice of a token, keyed so that the grouping into steps does not matter."""
