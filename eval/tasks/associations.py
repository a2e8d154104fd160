"""Needles that share no word with their question, in the manner of NoLiMa (arXiv 2502.05167), on pairs of our own.

A person lives beside, or was seen under, what only one place has; asked is who has been to that place. To search for
the words of the question finds nothing. Others are somewhere too, whose places are not asked for.
"""

from __future__ import annotations

import random

from eval.tasks.example import Example
from eval.tasks.ruler_style import sentences

NAMES = ("Yuki", "Stuart", "Katie", "Veronica", "Gary", "Megan", "Calvin", "Mandy", "Diana", "Tomas", "Priya", "Olaf")
PLACES = {
    "Paris": "the Eiffel Tower",
    "Rome": "the Colosseum",
    "Athens": "the Parthenon",
    "Egypt": "the pyramids of Giza",
    "India": "the Taj Mahal",
    "New York": "the Statue of Liberty",
    "London": "Big Ben",
    "Berlin": "the Brandenburg Gate",
    "Moscow": "the Bolshoi Theatre",
    "Sydney": "the great Opera House on the harbour",
    "San Francisco": "the Golden Gate Bridge",
    "Barcelona": "the Sagrada Familia",
    "Dresden": "the Semperoper",
    "Peru": "the ruins of Machu Picchu",
    "Venice": "the Bridge of Sighs",
    "China": "the Forbidden City",
}
_SEEN = ("{name} lives beside {sight}.", "{name} used to sell postcards below {sight}.", "{name} proposed at {sight}.")
_OTHERS = 3


def association(rng: random.Random, size: int, depth: float) -> Example:
    """One needle that answers, at its depth, and three that do not."""
    asked, *others = rng.sample(list(PLACES), 1 + _OTHERS)
    who, *names = rng.sample(NAMES, 1 + _OTHERS)
    lines = sentences(rng, size)
    placed = [(depth, who, asked), *((rng.random(), *pair) for pair in zip(names, others, strict=True))]
    room = len(lines)
    for at, name, place in sorted(placed, reverse=True):
        lines.insert(round(at * room), rng.choice(_SEEN).format(name=name, sight=PLACES[place]))
    question = f"Which character has been to {asked}?"
    return Example("", "association-style", " ".join(lines), question, who, (), question, {"depth": depth})
