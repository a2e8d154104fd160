"""From logits to tokens: constraints, penalties, and the choice."""
