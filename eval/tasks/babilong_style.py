"""The first five tasks of bAbI in long text, in the manner of BABILong (arXiv 2406.10149).

Persons move through rooms, take and leave things, and give them to one another; a simulator of our own writes the
facts down, one after the other, at random places of `size` sentences of filler. The answer is one word of that world.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from eval.tasks.example import Example
from eval.tasks.ruler_style import sentences

PERSONS = ("Mary", "John", "Sandra", "Daniel", "Bill", "Fred", "Julie", "Jeff")
ROOMS = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
THINGS = ("apple", "football", "milk", "lantern")
KINDS = (PERSONS, ROOMS, THINGS)
"""an answer is one of these; one that names others of its kind beside it is wrong"""
_MOVES = ("went to", "moved to", "journeyed to", "travelled to")
_DIRECTIONS = {"north": "south", "south": "north", "east": "west", "west": "east"}
Story = tuple[list[str], str, str]
"""facts in their order, question, answer"""


def babi_1(rng: random.Random, size: int, depth: float) -> Example:
    """One supporting fact: where is a person?"""
    return _hidden("babi_1", _one_fact(rng), rng, size)


def babi_2(rng: random.Random, size: int, depth: float) -> Example:
    """Two supporting facts: where is a thing that a person carries?"""
    return _hidden("babi_2", _carried(rng, before=False), rng, size)


def babi_3(rng: random.Random, size: int, depth: float) -> Example:
    """Three supporting facts: where was the thing before?"""
    return _hidden("babi_3", _carried(rng, before=True), rng, size)


def babi_4(rng: random.Random, size: int, depth: float) -> Example:
    """Relations of two arguments: what lies in a direction of a room?"""
    return _hidden("babi_4", _map(rng), rng, size)


def babi_5(rng: random.Random, size: int, depth: float) -> Example:
    """Relations of three arguments: who gave what to whom?"""
    return _hidden("babi_5", _gifts(rng), rng, size)


MAKERS: dict[str, Callable[[random.Random, int, float], Example]] = {
    f"{maker.__name__}-style": maker for maker in (babi_1, babi_2, babi_3, babi_4, babi_5)
}


def _hidden(name: str, story: Story, rng: random.Random, size: int) -> Example:
    facts, question, answer = story
    lines = sentences(rng, size)
    for offset, at in enumerate(sorted(rng.choices(range(len(lines) + 1), k=len(facts)))):
        lines.insert(at + offset, facts[offset])
    return Example("", f"{name}-style", " ".join(lines), question, answer, (), question)


def _one_fact(rng: random.Random) -> Story:
    where: dict[str, str] = {}
    facts = []
    for person in (*rng.sample(PERSONS, 4), *rng.choices(PERSONS, k=4)):
        where[person] = rng.choice([room for room in ROOMS if room != where.get(person)])
        facts.append(_move(rng, person, where[person]))
    asked = rng.choice(list(where))
    return facts, f"Where is {asked}?", where[asked]


def _carried(rng: random.Random, before: bool) -> Story:
    """A person takes a thing and goes through three rooms with it, while others do the like."""
    facts, answers = [], {}
    carriers = list(zip(rng.sample(PERSONS, 2), rng.sample(THINGS, 2), strict=True))
    for person, thing in carriers:
        first, *rooms = rng.sample(ROOMS, 4)
        facts += [_move(rng, person, first), f"{person} took the {thing}."]
        facts += [_move(rng, person, room) for room in rooms]
        if before:
            facts.append(f"{person} left the {thing}.")
        answers[thing] = rooms
    _, thing = rng.choice(carriers)
    *_, earlier, last = answers[thing]
    if before:
        return facts, f"Where was the {thing} before the {last}?", earlier
    return facts, f"Where is the {thing}?", last


def _map(rng: random.Random) -> Story:
    rooms = rng.sample(ROOMS, 4)
    sides = rng.sample(list(_DIRECTIONS), 3)
    middle, *around = rooms
    facts = [f"The {room} is {side} of the {middle}." for room, side in zip(around, sides, strict=True)]
    room, side = rng.choice(list(zip(around, sides, strict=True)))
    rng.shuffle(facts)
    if rng.random() < 0.5:
        return facts, f"What is {side} of the {middle}?", room
    return facts, f"What is the {room} {side} of?", middle


def _gifts(rng: random.Random) -> Story:
    facts, gifts = [], []
    for thing in rng.sample(THINGS, 3):
        giver, taker = rng.sample(PERSONS, 2)
        facts += [f"{giver} took the {thing}.", f"{giver} gave the {thing} to {taker}."]
        gifts.append((giver, thing, taker))
    giver, thing, taker = rng.choice(gifts)
    asked = rng.randrange(3)
    if asked == 0:
        return facts, f"Who gave the {thing} to {taker}?", giver
    if asked == 1:
        return facts, f"Who received the {thing}?", taker
    between = [what for one, what, other in gifts if (one, other) == (giver, taker)]
    if len(between) > 1:
        return facts, f"Who gave the {thing}?", giver
    return facts, f"What did {giver} give to {taker}?", thing


def _move(rng: random.Random, person: str, room: str) -> str:
    return f"{person} {rng.choice(_MOVES)} the {room}."
