"""Real files, and what of them is stored and found."""
