"""The words of a claim laid on those of a stored sentence: which says the same as which, in an order that keeps it.

The claim's own order is tried first; then phrases moved, active turned into passive and back, and both sides of an "is"
exchanged. No word may move from one clause into another.
"""

from __future__ import annotations

from collections.abc import Sequence

from service.answering.support.reading import AND, Reading
from service.answering.support.words import Token

_DERIVED = 0.8
_SMALL_NAME = 0.9
_MOST_ORDERS = 60
_ARTICLES = frozenset({"the", "der", "die", "das", "le", "la", "el"})


def matches_of(claim: Reading, sentence: Reading) -> dict[int, list[int]]:
    """Of each content token of the claim, the tokens of the sentence that say the same."""
    return {
        one: [other for other in sentence.content if similarity(claim.tokens[one], sentence.tokens[other])]
        for one in claim.content
    }


def similarity(claim: Token, stored: Token) -> float:
    """1 for the same, 0 for something else, between them for another form of the word."""
    if claim.kind in ("number", "date", "unit", "formula") or stored.kind in ("number", "date", "unit", "formula"):
        return float(_same_fact(claim, stored))
    if claim.key == stored.key and not (claim.capital and not claim.opens and not stored.capital):
        named = claim.capital and stored.capital and not (claim.opens or stored.opens)
        if named and not _same_name(claim.lower, stored.lower):
            return 0.0
        return _SMALL_NAME if stored.named and not claim.capital else 1.0
    if not (claim.named or stored.named):
        return _DERIVED if _derived(claim.lower, stored.lower) else 0.0
    return 0.0


def _same_fact(claim: Token, stored: Token) -> bool:
    if claim.kind == "date" and stored.kind == "date":
        return all(one is None or one == other for one, other in zip(claim.value, stored.value, strict=True))
    if claim.kind == "number" and stored.kind == "date":
        return bool(stored.value[0]) and claim.key == str(stored.value[0]) and claim.lower.isdigit()
    if claim.kind != stored.kind:
        return False
    return claim.key == stored.key


def _same_name(one: str, other: str) -> bool:
    return one == other or one.rstrip("s") == other.rstrip("s")


def _derived(one: str, other: str) -> bool:
    """Words of one root: "election" and "elected", "Germany" and "German"; not "increase" and "incredible"."""
    if not (one.isalpha() and other.isalpha()):
        return False
    shared = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        shared += 1
    rest = max(len(one), len(other)) - shared
    return shared >= 5 and rest <= 5 and shared > rest


def place(claim: Reading, sentence: Reading, matches: dict[int, list[int]]) -> dict[int, int] | None:
    """Claim token → sentence token, in the claim's order where that is possible; None where it cannot be."""
    wanted = [at for at in claim.content if matches[at]]
    straight = _monotone(wanted, matches)
    if straight is not None and not turned_verb(claim, sentence, straight):
        return straight
    for moved, turns in _rearranged(claim, sentence, wanted):
        found = _monotone(moved, matches)
        if found is None or _joins(sentence, found):
            continue
        if turns == (turned_verb(claim, sentence, found) is not None):
            return found
    return None


def turned_verb(claim: Reading, sentence: Reading, placed: dict[int, int]) -> int | None:
    """A verb that is passive on one side only, or None."""
    verbs = (one for one, other in placed.items() if claim.is_verb(one) or sentence.is_verb(other))
    return next((one for one in verbs if not _same_voice(claim, one, sentence, placed[one])), None)


def _same_voice(claim: Reading, one: int, sentence: Reading, other: int) -> bool:
    """Whether a verb is active or passive on both sides; "Ada (born 1815)" may be the passive."""
    passive = claim.is_passive(one)
    return passive == sentence.is_passive(other) or (passive and sentence.is_aside(other))


def _monotone(wanted: Sequence[int], matches: dict[int, list[int]]) -> dict[int, int] | None:
    """The tightest placing in increasing order of all tokens, or None."""
    if not wanted:
        return {}
    best: list[dict[int, tuple[int, int]]] = []  # per token: place → (span so far, place before)
    for order, at in enumerate(wanted):
        row: dict[int, tuple[int, int]] = {}
        for place in matches[at]:
            if order == 0:
                row[place] = (0, -1)
                continue
            before = [(cost + place - earlier, earlier) for earlier, (cost, _) in best[-1].items() if earlier < place]
            if before:
                row[place] = min(before)
        if not row:
            return None
        best.append(row)
    place = min(best[-1], key=lambda one: best[-1][one][0])
    placed = {}
    for at, row in zip(reversed(wanted), reversed(best), strict=True):
        placed[at] = place
        place = row[place][1]
    return placed


def _rearranged(claim: Reading, sentence: Reading, wanted: Sequence[int]) -> list[tuple[list[int], bool]]:
    """Other orders of the claim's words that say the same, and whether they turn active into passive or back.

    Phrases are moved, and both sides of an "is" exchanged.
    """
    blocks = _blocks(claim, wanted)
    passive = [at for at in wanted if claim.is_passive(at)]
    made = _made_active(claim, blocks, passive[-1]) if passive else _made_passive(claim, blocks)
    orders = [(order, False) for order in (*_moved(claim, blocks), *_around_copula(claim, sentence, wanted))]
    for turned in made:
        order = [block for block in turned if block]
        orders += [(each, True) for each in (order, *_moved(claim, order))]
    return [([at for block in order for at in block], turns) for order, turns in orders]


def _made_active(claim: Reading, blocks: list[list[int]], verb: int) -> list[list[list[int]]]:
    """A passive claim in the active order: who is behind "by", the verb, then what stood before it."""
    agent = next((block for block in blocks if _is_agent(claim, block)), [])
    before = [block for block in blocks if block[-1] < verb and block is not agent]
    own = next(block for block in blocks if verb in block)
    before += [[at for at in own if at < verb]]
    behind = [[at for at in own if at > verb]] + [block for block in blocks if block[0] > verb and block is not agent]
    return [[agent, [verb], *before, *behind]]


def _is_agent(claim: Reading, block: Sequence[int]) -> bool:
    agents = {claim.lexicon.prepositions.get(word, word) for word in claim.lexicon.agent}
    return claim.role[block[0]] in agents


def _made_passive(claim: Reading, blocks: list[list[int]]) -> list[list[list[int]]]:
    """An active claim in the passive order: what stands behind the verb, the verb, then who stood before it."""
    flat = [at for block in blocks for at in block]
    verb = next((at for at in flat if claim.is_verb(at)), None)
    if verb is None:
        return []
    own = next(block for block in blocks if verb in block)
    subject = [at for at in flat if at < verb and at >= blocks[0][0]]
    goal, rest = [at for at in own if at > verb], [block for block in blocks if block[0] > verb]
    return [
        [goal, [verb], subject, *rest],
        [goal, [verb], *rest, subject],
        [goal, *rest[:1], [verb], subject, *rest[1:]],
    ]


def _blocks(claim: Reading, wanted: Sequence[int]) -> list[list[int]]:
    """The claim's content cut where a phrase with a preposition, or after one the main clause, begins."""
    blocks: list[list[int]] = []
    for at in wanted:
        starts = not blocks
        if not starts:
            between = range(blocks[-1][-1] + 1, at)
            starts = any(
                claim.tokens[t].kind == "mark" or claim.tokens[t].lower in claim.lexicon.prepositions for t in between
            )
            last = blocks[-1][-1]
            listed = any(claim.tokens[t].key == "," or claim.tokens[t].lower in AND for t in range(last + 1, at))
            carried = listed and claim.role[last] and claim.shared[at] == claim.role[last]
            starts = starts or claim.tokens[at].kind == "date" or (claim.role[at] != claim.role[last] and not carried)
            starts = starts or claim.is_verb(at) or _is_adverb(claim, at) or _is_adverb(claim, last)
        if starts:
            blocks.append([])
        blocks[-1].append(at)
    return blocks


def _is_adverb(reading: Reading, at: int) -> bool:
    return reading.lexicon.code == "en" and reading.tokens[at].lower.endswith("ly") and not reading.tokens[at].named


def _moved(claim: Reading, blocks: list[list[int]]) -> list[list[list[int]]]:
    """Each phrase that has a preposition, and each date, in any other place."""
    orders = []
    for number, block in enumerate(blocks):
        free = claim.role[block[0]] or claim.tokens[block[0]].kind == "date" or _is_adverb(claim, block[0])
        if len(blocks) < 2 or not free:
            continue
        rest = blocks[:number] + blocks[number + 1 :]
        orders += [[*rest[:place], block, *rest[place:]] for place in range(len(rest) + 1) if place != number]
    return orders[:_MOST_ORDERS]


def _around_copula(claim: Reading, sentence: Reading, wanted: Sequence[int]) -> list[list[list[int]]]:
    """ "The capital is Paris" for "Paris is the capital": both sides of an "is" exchanged, where one is definite."""
    verbs = [at for at, token in enumerate(claim.tokens) if claim.is_verb(at)]
    if len(verbs) != 1 or claim.tokens[verbs[0]].lower not in claim.lexicon.copulas or any(claim.operator):
        return []
    if not any(token.lower in sentence.lexicon.copulas for token in sentence.tokens):
        return []
    left = [at for at in wanted if at < verbs[0]]
    right = [at for at in wanted if at > verbs[0]]
    first = claim.tokens[0].lower
    if not left or not right or first not in _ARTICLES:
        return []
    if any(claim.tokens[at].kind == "word" and not claim.tokens[at].capital for at in right if not claim.role[at]):
        return []
    return [[right, left]]


def _joins(sentence: Reading, placed: dict[int, int]) -> bool:
    """Whether the region holds two clauses: no word may move from one into the other."""
    low, high = min(placed.values()), max(placed.values())
    tokens, lexicon = sentence.tokens, sentence.lexicon
    verbs = [at for at in range(low, high + 1) if sentence.is_verb(at)]
    for at in range(low, high + 1):
        token = tokens[at]
        if token.key == ";":
            return True
        if (
            token.kind == "word"
            and not token.named
            and token.lower in lexicon.conjunctions | lexicon.relatives
            and verbs
        ) and verbs[0] < at < verbs[-1]:
            return True
    return False
