"""Trained drafters: what each computes, over one interface, and the formats in which others keep theirs."""
