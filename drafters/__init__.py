"""Guesses at the next tokens, and the proof that guessing changed nothing.

A drafter proposes a `DraftTree`; the engine runs one forward over it; `verify` walks the tree along the target's own
keyed choices. The output is the one plain decoding gives, whatever the drafter proposed.

A new drafter is one file with a class that implements `base.Drafter` (or `base.SourceDrafter`, where its guesses are a
function of the text), an options class that bears its name, and `registry.register`. Those of this package keep their
options in `options`, are made in `registry`, and live in

sources   what is copied or remembered, without a model
models    what a model guesses
combine   what is made of other drafters
research  what is exact and tested, and was measured to lose

`sampling` holds all that touches logits; trees (`tree`) and their verification (`verify`) are arrays of numbers.
`tracked` is the border to the engine. All requests of an engine learn `machine_profile` (what a step costs), those of
one owner what `learned` keeps (`calibration`, how often a kind of guess is right; successors; documents in play).
"""
