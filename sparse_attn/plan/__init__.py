"""Which keys each row reads: policies, patterns, scores, and where they come from."""
