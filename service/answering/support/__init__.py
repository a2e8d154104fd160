"""What carries an answer: its claims, the sentences of the evidence, and the one rule that joins them."""
