"""From a question to an answer with citations: evidence, prompt, generation, and the check against the stored text."""
