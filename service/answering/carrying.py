"""Whether one stored sentence carries a claim: the same words in the same roles, and no operator added or lost.

The claim's words are laid on the sentence's (`_place`). Then the claim may be shorter than the sentence, but only by what
can be left out without saying something else: a parenthesis, a phrase with its preposition, an adjective, a member of a
list. It may turn active into passive and move a phrase, but not change who does what to whom. A negation, hedge,
condition, quantifier or comparison on one side only is a different claim, whatever else agrees.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from service.answering.lexicon import Lexicon
from service.answering.words import Token

Weigh = Callable[[str], float]
"""How much a key says: its idf over the evidence"""

_TIMES = frozenset({"loc", "of", "during", "for", "um", "durante", "durant", ""})
"""classes of prepositions that say the same before a date"""
_NEUTRAL = frozenset({"loc", "of"})
_SCOPES = frozenset({"neg", "if", "may", "seem", "alleged", "likely", "except", "only", "former", "almost", "or"})
"""operators that also count where they stand outside the words that the claim repeats"""
_DERIVED = 0.8
_LIGHT = 0.6
_SMALL_NAME = 0.9
_LONGEST_MODIFIER = 3
_PARENTHESES = {",": ",", "(": ")", "—": "—", "–": "–", "[": "]", "-": "-"}


@dataclass(frozen=True)
class Reading:
    """The tokens of a claim or a sentence with their roles.

    Attributes:
        content: indices into ``tokens`` of those that say something.
        role: per token, the class of the preposition that governs it, or "".
        operator: per token, its class, or "".
    """

    tokens: tuple[Token, ...]
    content: tuple[int, ...]
    role: tuple[str, ...]
    operator: tuple[str, ...]
    lexicon: Lexicon

    @classmethod
    def of(cls, tokens: Sequence[Token], lexicon: Lexicon) -> Reading:
        operator = tuple(_operator(tokens, at, lexicon) for at in range(len(tokens)))
        content = tuple(at for at, token in enumerate(tokens) if not operator[at] and _says(token, lexicon))
        role: list[str] = []
        governor, full = "", False  # whether the preposition has its noun
        for at, token in enumerate(tokens):
            if token.kind == "word" and not token.named and token.lower in lexicon.prepositions:
                governor, full = lexicon.prepositions[token.lower], False
            elif _resets(token, lexicon) or (full and token.lower in lexicon.determiners):
                governor, full = "", False
            role.append(governor)
            if at in content:
                if full and tokens[at - 1].kind == "date":
                    role[-1] = governor = ""
                full = True
        return cls(tuple(tokens), content, tuple(role), operator, lexicon)

    def is_verb(self, at: int) -> bool:
        token = self.tokens[at]
        return token.kind == "word" and not token.named and self.lexicon.is_verb(token.lower)

    def has_predicate(self) -> bool:
        """Whether something is said of something: a verb, or a formula."""
        return any(self.is_verb(at) or token.kind == "formula" for at, token in enumerate(self.tokens))


def _says(token: Token, lexicon: Lexicon) -> bool:
    return token.kind != "mark" and not (token.kind == "word" and token.lower in lexicon.function)


def _operator(tokens: Sequence[Token], at: int, lexicon: Lexicon) -> str:
    token = tokens[at]
    if token.kind != "word" or token.named:
        return ""
    return lexicon.operators.get(token.lower, "")


def _resets(token: Token, lexicon: Lexicon) -> bool:
    if token.kind == "mark":
        return True
    if token.kind != "word" or token.named:
        return False
    word = token.lower
    return (
        word in lexicon.conjunctions
        or word in lexicon.relatives
        or word in lexicon.pronouns - lexicon.determiners
        or lexicon.is_verb(word)
    )


def carries(claim: Reading, sentence: Reading, weigh: Weigh) -> float:
    """How closely the sentence says what the claim says, in [0, 1]; 0 where it says something else."""
    matches = _matches(claim, sentence)
    missing = [at for at in claim.content if not matches[at]]
    if any(not _is_light(claim, at) for at in missing):
        return 0.0
    placed = _place(claim, sentence, matches)
    if placed is None or not placed:
        return 0.0
    region = sorted(placed.values())
    if not (_same_roles(claim, sentence, placed) and _begins(sentence, region, claim) and _ends(sentence, region)):
        return 0.0
    if any(not _may_skip(sentence, one, other) for one, other in zip(region, region[1:], strict=False)):
        return 0.0
    if not _same_operators(claim, sentence, region):
        return 0.0
    return _closeness(claim, sentence, placed, weigh)


def _is_light(claim: Reading, at: int) -> bool:
    return claim.tokens[at].lower in claim.lexicon.light


def _matches(claim: Reading, sentence: Reading) -> dict[int, list[int]]:
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
    if claim.capital == stored.capital or claim.opens or stored.opens:
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
    shared = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        shared += 1
    rest = max(len(one), len(other)) - shared
    return shared >= 5 and rest <= 4 and shared >= 2 * rest - 1


def _place(claim: Reading, sentence: Reading, matches: dict[int, list[int]]) -> dict[int, int] | None:
    """Claim token → sentence token, in the claim's order where that is possible; None where it cannot be."""
    wanted = [at for at in claim.content if matches[at]]
    straight = _monotone(wanted, matches)
    if straight is not None and _voice(claim, None) == _voice(sentence, straight):
        return straight
    for moved in _rearranged(claim, sentence, wanted):
        found = _monotone(moved, matches)
        if found is not None and not _joins(sentence, found):
            return found
    return None


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


def _voice(reading: Reading, placed: dict[int, int] | None) -> bool:
    """Whether somebody is said to have done it: "by" behind an auxiliary and a verb."""
    low, high = (min(placed.values()), max(placed.values())) if placed else (0, len(reading.tokens) - 1)
    for at in range(low, high + 1):
        token = reading.tokens[at]
        if token.kind == "word" and token.lower in reading.lexicon.agent and not token.opens:
            behind = [t for t in range(max(0, at - 4), at) if reading.tokens[t].kind == "word"]
            if any(reading.tokens[t].lower in reading.lexicon.auxiliaries for t in behind):
                return True
    return False


def _rearranged(claim: Reading, sentence: Reading, wanted: Sequence[int]) -> list[list[int]]:
    """Other orders of the claim's words that say the same: phrases moved, active for passive, both sides of an "is"."""
    blocks = _blocks(claim, wanted)
    orders: list[list[list[int]]] = []
    passive, stored_passive = _voice(claim, None), _voice(sentence, None)
    if passive != stored_passive:
        turned = _turned(claim, blocks) if passive else None
        if turned:
            orders.append(turned)
        elif stored_passive and len(blocks[0]) > 1:
            verb = next((at for at in blocks[0] if claim.is_verb(at)), None)
            if verb is not None and blocks[0].index(verb) > 0:
                cut = blocks[0].index(verb)
                orders.append([blocks[0][cut + 1 :], [verb], blocks[0][:cut], *blocks[1:]])
                orders.append([blocks[0][cut + 1 :], [verb], *blocks[1:], blocks[0][:cut]])
        phrases = orders
        orders = []
        for order in phrases:
            orders += [order, *_moved(claim, order)]
    else:
        orders += _moved(claim, blocks)
        orders += _around_copula(claim, sentence, wanted)
    return [[at for block in order for at in block] for order in orders]


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
            starts = starts or (claim.is_verb(at) and bool(claim.role[blocks[-1][-1]]))
            starts = starts or (claim.tokens[at].kind == "date")
        if starts:
            blocks.append([])
        blocks[-1].append(at)
    return blocks


def _moved(claim: Reading, blocks: list[list[int]]) -> list[list[list[int]]]:
    """Each phrase that has a preposition, and each date, in any other place."""
    orders = []
    for number, block in enumerate(blocks):
        if len(blocks) < 2 or not (claim.role[block[0]] or claim.tokens[block[0]].kind == "date"):
            continue
        rest = blocks[:number] + blocks[number + 1 :]
        orders += [[*rest[:place], block, *rest[place:]] for place in range(len(rest) + 1) if place != number]
    return orders[:60]


def _turned(claim: Reading, blocks: list[list[int]]) -> list[list[int]] | None:
    """A passive claim in the active order: who is behind "by", the verb, then what stood first."""
    agent = next(
        (
            n
            for n, block in enumerate(blocks)
            if any(
                claim.tokens[t].lower in claim.lexicon.agent
                for t in range(block[0] - 3 if block[0] > 2 else 0, block[0])
            )
        ),
        None,
    )
    if not agent:
        return None
    core = [at for block in blocks[:agent] for at in block]
    verb = next((at for at in reversed(core) if claim.is_verb(at)), core[-1])
    rest = [at for at in core if at != verb]
    return [blocks[agent], [verb], rest, *blocks[agent + 1 :]]


def _around_copula(claim: Reading, sentence: Reading, wanted: Sequence[int]) -> list[list[list[int]]]:
    """ "The capital is Paris" for "Paris is the capital": both sides of an "is" in exchange, where one is a definite."""
    verbs = [at for at, token in enumerate(claim.tokens) if claim.is_verb(at)]
    if len(verbs) != 1 or claim.tokens[verbs[0]].lower not in claim.lexicon.copulas or any(claim.operator):
        return []
    if not any(token.lower in sentence.lexicon.copulas for token in sentence.tokens):
        return []
    left = [at for at in wanted if at < verbs[0]]
    right = [at for at in wanted if at > verbs[0]]
    first = claim.tokens[0].lower
    if not left or not right or first not in ("the", "der", "die", "das", "le", "la", "el"):
        return []
    if any(claim.tokens[at].kind == "word" and not claim.tokens[at].capital for at in right if not claim.role[at]):
        return []
    return [[right, left]]


def _joins(sentence: Reading, placed: dict[int, int]) -> bool:
    """Whether the region holds two clauses: no word may move from one into the other."""
    low, high = min(placed.values()), max(placed.values())
    tokens = sentence.tokens
    return any(
        tokens[at].key == ";"
        or (
            tokens[at].kind == "word"
            and tokens[at].lower in sentence.lexicon.conjunctions | sentence.lexicon.relatives
            and not tokens[at].capital
        )
        for at in range(low, high + 1)
    )


def _same_roles(claim: Reading, sentence: Reading, placed: dict[int, int]) -> bool:
    """Whether each word stands behind the same preposition on both sides, or behind none."""
    turned = _voice(claim, None) != _voice(sentence, placed)
    agents = {claim.lexicon.prepositions.get(word, word) for word in claim.lexicon.agent}
    for one, other in placed.items():
        if claim.is_verb(one) or sentence.is_verb(other):
            continue
        mine, theirs = claim.role[one], sentence.role[other]
        if mine == theirs or (mine in _NEUTRAL and theirs in _NEUTRAL):
            continue
        if claim.tokens[one].kind == "date" or (
            claim.tokens[one].kind == "number" and mine in _TIMES and theirs in _TIMES
        ):
            if mine in _TIMES and theirs in _TIMES:
                continue
        if turned and agents & {mine, theirs}:
            continue
        return False
    return True


def _begins(sentence: Reading, region: Sequence[int], claim: Reading) -> bool:
    """Whether nothing before the region, in its clause, is what the words there are said of or hang on."""
    first = region[0]
    hanging = 0
    lexicon = sentence.lexicon
    for at in range(first - 1, -1, -1):
        token = sentence.tokens[at]
        if token.kind == "mark":
            if token.key in '"“”„«»':
                continue
            break
        if token.kind == "word" and token.lower in lexicon.conjunctions and not token.named:
            break
        if token.kind == "word" and token.lower in lexicon.embedding and at > 0:
            return False
        if token.kind == "word" and token.lower in lexicon.possessives:
            return False
        if at in sentence.content:
            hanging += 1
            if hanging > 2 or sentence.is_verb(at) or token.named or token.kind != "word":
                return False
            if not _is_modifier_of(sentence, at, first):
                return False
    return not (sentence.role[first] and not claim.role[claim.content[0]] and _governs(sentence, first))


def _governs(sentence: Reading, at: int) -> bool:
    """Whether a preposition stands before this word in its own phrase."""
    while at > 0:
        at -= 1
        token = sentence.tokens[at]
        if token.kind == "word" and token.lower in sentence.lexicon.prepositions:
            return True
        if token.kind == "mark" or (token.lower not in sentence.lexicon.determiners and at not in sentence.content):
            return False
    return False


def _is_modifier_of(sentence: Reading, at: int, noun: int) -> bool:
    """Whether only words with content, or none, part an adjective from its noun."""
    return all(t in sentence.content for t in range(at + 1, noun))


def _ends(sentence: Reading, region: Sequence[int]) -> bool:
    """Whether the last word is not the beginning of a longer name or of a compound."""
    last = region[-1]
    if last + 1 >= len(sentence.tokens):
        return True
    following = sentence.tokens[last + 1]
    if following.kind == "mark":
        after = sentence.tokens[last + 2] if last + 2 < len(sentence.tokens) else None
        return not (
            following.key == "-"
            and after is not None
            and after.start == following.end
            and following.start == sentence.tokens[last].end
        )
    if following.kind == "word" and following.lower in sentence.lexicon.possessives:
        return False
    if following.kind == "unit":
        return False
    if last + 1 not in sentence.content:
        return True
    return (
        following.lower.endswith("ly") or sentence.is_verb(last + 1) or sentence.tokens[last].kind in ("date", "unit")
    )


def _may_skip(sentence: Reading, one: int, other: int) -> bool:
    """Whether the claim may leave out what stands between two words that it repeats."""
    inside = range(one + 1, other)
    tokens, lexicon = sentence.tokens, sentence.lexicon
    if not any(at in sentence.content for at in inside):
        return not _crosses(sentence, inside)
    first, last = tokens[one + 1], tokens[other - 1]
    if _PARENTHESES.get(first.key) == last.key and first.kind == "mark" and other - one > 2:
        return not any(tokens[at].key == ";" for at in inside)
    if tokens[one].kind == "number" and any(at not in sentence.content for at in inside):
        return False
    if any(tokens[at].key == ";" for at in inside):
        return False
    if first.kind == "word" and first.lower in lexicon.possessives:
        return False
    if _is_phrase(sentence, one, inside) or _is_modifier(sentence, one, inside) or _is_list(sentence, inside):
        return True
    return False


def _crosses(sentence: Reading, inside: range) -> bool:
    """Whether function words alone lead into another clause: "…, and he …"."""
    words = [sentence.tokens[at].lower for at in inside if sentence.tokens[at].kind == "word"]
    lexicon = sentence.lexicon
    joined = any(word in lexicon.conjunctions for word in words)
    return joined and any(word in lexicon.pronouns - lexicon.determiners for word in words)


def _is_phrase(sentence: Reading, one: int, inside: range) -> bool:
    """A phrase that begins with a preposition or a relative pronoun, without a join in it."""
    lexicon = sentence.lexicon
    first = sentence.tokens[inside[0]]
    if first.kind == "mark" and len(inside) > 1:
        return False
    if first.kind != "word" or not (first.lower in lexicon.prepositions or first.lower in lexicon.relatives):
        return False
    relative = first.lower in lexicon.relatives
    for at in inside:
        token = sentence.tokens[at]
        if token.key in (";", ":", ",") or (
            token.kind == "word" and token.lower in lexicon.conjunctions and not token.capital
        ):
            return False
        if sentence.is_verb(at) and not relative and at != inside[-1] and at in sentence.content:
            return False
    return True


def _is_modifier(sentence: Reading, one: int, inside: range) -> bool:
    """Adjectives behind a determiner or a number, or adverbs."""
    tokens, lexicon = sentence.tokens, sentence.lexicon
    skipped = [at for at in inside if at in sentence.content]
    if len(skipped) > _LONGEST_MODIFIER or any(
        sentence.operator[at] for at in inside if sentence.operator[at] in _SCOPES
    ):
        return False
    if all(tokens[at].lower.endswith("ly") and not tokens[at].capital for at in skipped):
        return True
    if any(tokens[at].kind == "mark" and tokens[at].key != "-" for at in inside):
        return False
    start = skipped[0]
    before = tokens[start - 1]
    opened = before.kind == "number" or (
        before.kind == "word" and (before.lower in lexicon.determiners or before.lower in lexicon.prepositions)
    )
    behind = all(at in sentence.content or tokens[at].key == "-" for at in range(start, inside[-1] + 1))
    plain = all(tokens[at].kind in ("word", "number") and not sentence.is_verb(at) for at in skipped)
    if start - 1 == one and tokens[one].kind == "word" and not sentence.is_verb(one) and not tokens[one].capital:
        opened = opened or (not tokens[start].capital and one in sentence.content and _has_determiner(sentence, one))
    return opened and behind and plain


def _has_determiner(sentence: Reading, at: int) -> bool:
    while at > 0 and at in sentence.content and not sentence.is_verb(at):
        at -= 1
    return sentence.tokens[at].lower in sentence.lexicon.determiners


def _is_list(sentence: Reading, inside: range) -> bool:
    """Other members of a list, before or behind those that the claim repeats."""
    tokens, lexicon = sentence.tokens, sentence.lexicon
    joins = [
        at
        for at in inside
        if tokens[at].key == ","
        or (tokens[at].kind == "word" and tokens[at].lower in ("and", "und", "y", "e", "et", "as", "well"))
    ]
    if not joins or any(sentence.is_verb(at) for at in inside):
        return False
    if any(tokens[at].kind in ("number", "date") for at in inside):
        return False
    allowed = set(joins) | set(sentence.content)
    others = [
        at
        for at in inside
        if at not in allowed and not (tokens[at].kind == "word" and tokens[at].lower in lexicon.determiners)
    ]
    if others:
        return False
    ends = max(joins) > max(at for at in inside if at in sentence.content)
    return ends != (min(joins) == inside[0])


def _same_operators(claim: Reading, sentence: Reading, region: Sequence[int]) -> bool:
    """Whether negations, hedges, conditions, quantifiers and comparisons are the same on both sides."""
    mine = Counter(name for name in claim.operator if name)
    theirs: Counter[str] = Counter()
    aside: Counter[str] = Counter()
    low, high = region[0], region[-1]
    start, end = _clause(sentence, low, high)
    for at, name in enumerate(sentence.operator):
        if not name:
            continue
        if low <= at <= high:
            (
                aside
                if _aside(sentence, at, region) and name not in ("may", "seem", "alleged", "likely", "if")
                else theirs
            )[name] += 1
        elif start <= at < end:
            theirs[name] += 1
        elif (
            name in _SCOPES
            and (at < low or name in ("if", "except"))
            and name != "neg"
            and name != "or"
            and name != "former"
            and name != "only"
        ):
            theirs[name] += 1
        elif name == "neg" and at < low and not _parted(sentence, at, low):
            theirs[name] += 1
        else:
            aside[name] += 1
    if any(mine[name] > theirs[name] + (aside[name] if name not in _SCOPES else 0) for name in mine):
        return False
    return not any(theirs[name] > mine[name] for name in theirs)


def _clause(sentence: Reading, low: int, high: int) -> tuple[int, int]:
    """The clause around a region: from one stop or joining word to the next."""
    lexicon, tokens = sentence.lexicon, sentence.tokens

    def parts(at: int) -> bool:
        token = tokens[at]
        if token.kind == "mark":
            return token.key in ",;:()—–"
        return token.kind == "word" and token.lower in lexicon.conjunctions and not token.named

    start = next((at + 1 for at in range(low - 1, -1, -1) if parts(at)), 0)
    end = next((at for at in range(high + 1, len(tokens)) if parts(at)), len(tokens))
    return start, end


def _parted(sentence: Reading, at: int, low: int) -> bool:
    """Whether the clause of an operator has come to its end before the region begins."""
    return any(sentence.tokens[t].key in (",", ";", ")", ":") for t in range(at, low)) and not any(
        sentence.tokens[t].lower in sentence.lexicon.embedding for t in range(at, low)
    )


def _aside(sentence: Reading, at: int, region: Sequence[int]) -> bool:
    """Whether an operator stands in a parenthesis, or in a phrase, that the claim leaves out."""
    one = max(place for place in region if place <= at)
    other = min((place for place in region if place >= at), default=one)
    if one == other:
        return False
    tokens = sentence.tokens
    if any(t in sentence.content for t in range(one + 1, other)):
        first, last = tokens[one + 1], tokens[other - 1]
        if first.kind == "mark" and _PARENTHESES.get(first.key) == last.key:
            return True
        return sentence.operator[at] not in _SCOPES and first.lower in sentence.lexicon.prepositions and at > one + 1
    return False


def _closeness(claim: Reading, sentence: Reading, placed: dict[int, int], weigh: Weigh) -> float:
    """The share of the claim's meaning that is found, by idf, with a little off for all that it leaves out."""
    total = found = 0.0
    for at in claim.content:
        weight = weigh(claim.tokens[at].key)
        total += weight
        found += weight * (similarity(claim.tokens[at], sentence.tokens[placed[at]]) if at in placed else _LIGHT * 0)
        if at not in placed:
            total -= weight * _LIGHT
    spread = max(placed.values()) - min(placed.values()) + 1
    within = sum(1 for at in sentence.content if min(placed.values()) <= at <= max(placed.values()))
    density = len(set(placed.values())) / max(1, within)
    return (found / total if total else 0.0) * (1 - 0.25 * (1 - math.sqrt(density))) if spread else 0.0


def replaced(reading: Reading, at: int, by: Sequence[Token]) -> Reading:
    """The reading with one token (a pronoun) replaced by what it stands for."""
    opens = reading.tokens[at].opens
    inserted = [replace(token, opens=opens and number == 0 and not token.capital) for number, token in enumerate(by)]
    return Reading.of([*reading.tokens[:at], *inserted, *reading.tokens[at + 1 :]], reading.lexicon)
