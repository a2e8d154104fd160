"""What touches logits: the target's keyed choices, the walk along them, its best successors, penalties."""
