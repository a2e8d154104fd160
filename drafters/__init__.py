"""Guesses at the next tokens, and the proof that guessing changed nothing.

A drafter proposes a `DraftTree`; the engine runs one forward over it; `verify` walks the tree along the
target's own keyed choices. The output is the one plain decoding gives, whatever the drafter proposed.
"""
