"""Which sentences, and which passages, answer a question."""
