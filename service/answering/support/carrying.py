"""Whether one stored sentence carries a claim: the same words in the same roles, and no operator added or lost.

The claim's words are laid on the sentence's (`placing`). Then the claim may be shorter than the sentence, but only by
what can be left out without saying something else: a parenthesis, a phrase with its preposition, an adjective, a member
of a list. It may turn active into passive and move a phrase, but not change who does what to whom. A negation, hedge,
condition, quantifier or comparison on one side only is a different claim, whatever else agrees.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence

from service.answering.support.placing import matches_of, place, similarity, turned_verb
from service.answering.support.reading import Reading

Weigh = Callable[[str], float]
"""How much a key says: its idf over the evidence"""

_TIMES = frozenset({"loc", "of", "during", "for", "um", "durante", "durant", ""})
"""classes of prepositions that say the same before a date"""
_NEUTRAL = frozenset({"loc", "of"})
_SCOPES = frozenset({"neg", "if", "may", "seem", "alleged", "likely", "except", "only", "former", "almost", "or"})
"""operators that also count where they stand outside the words that the claim repeats"""
_ALWAYS = frozenset({"may", "seem", "alleged", "likely", "if"})
"""operators that count in a parenthesis too, and before a comma"""
_LIGHT = 0.6
"""how much less a light word counts that is not found"""
_LEFT_OUT = 0.25
"""what a claim loses at most for what it leaves out"""
_LONGEST_MODIFIER = 3
_PARENTHESES = {",": ",", "(": ")", "—": "—", "–": "–", "[": "]", "-": "-"}


def carries(claim: Reading, sentence: Reading, weigh: Weigh) -> float:
    """How closely the sentence says what the claim says, in [0, 1]; 0 where it says something else."""
    matches = matches_of(claim, sentence)
    missing = [at for at in claim.content if not matches[at]]
    if any(not _is_light(claim, at) for at in missing):
        return 0.0
    placed = place(claim, sentence, matches)
    if placed is None or not placed:
        return 0.0
    region = sorted(placed.values())
    if _is_apposition(claim, sentence, placed):
        return _closeness(claim, sentence, placed, weigh) if _same_operators(claim, sentence, region) else 0.0
    subject = _antecedent(sentence, region)
    others = {one: other for one, other in placed.items() if other not in subject}
    if not (_same_roles(claim, sentence, others) and _ends(sentence, region)):
        return 0.0
    if not subject and not _begins(claim, sentence, placed):
        return 0.0
    if any(
        not _may_skip(sentence, one, other, _joined(claim, placed, one, other))
        for one, other in itertools.pairwise(region)
    ):
        return 0.0
    if not _same_operators(claim, sentence, region):
        return 0.0
    return _closeness(claim, sentence, placed, weigh)


def _is_apposition(claim: Reading, sentence: Reading, placed: dict[int, int]) -> bool:
    """ "Route 99 is the main freeway" of "served by Route 99, the main freeway that …"."""
    verbs = [at for at in range(len(claim.tokens)) if claim.is_verb(at)]
    if len(verbs) != 1 or claim.tokens[verbs[0]].lower not in claim.lexicon.copulas:
        return False
    left = sorted(place for at, place in placed.items() if at < verbs[0])
    right = sorted(place for at, place in placed.items() if at > verbs[0])
    if not left or not right or left[-1] > right[0] or not sentence.tokens[left[0]].named:
        return False
    between = sentence.tokens[left[-1] + 1 : right[0]]
    marks = [token for token in between if token.kind == "mark"]
    words = [token for token in between if token.kind != "mark"]
    whole = left == list(range(left[0], left[-1] + 1)) and not (left[0] and sentence.tokens[left[0] - 1].named)
    parts = itertools.pairwise([at for at in range(right[0], right[-1] + 1) if at in sentence.content])
    runs = all(one in right and other in right for one, other in parts)
    return (
        whole
        and runs
        and [token.key for token in marks] == [","]
        and len(words) == 1
        and words[0].lower in sentence.lexicon.determiners
        and between[0].key == ","
        and claim.tokens[verbs[0] + 1].lower == words[0].lower
        and _ends(sentence, right)
        and not any(claim.role[at] for at in placed if at < verbs[0])
    )


def _antecedent(sentence: Reading, region: Sequence[int]) -> frozenset[int]:
    """The places of "Joe" in "Ada met Joe, who built the bridge" for what is said of him; empty elsewhere.

    Of two nouns that an "of" joins either may be meant.
    """
    tokens, lexicon = sentence.tokens, sentence.lexicon
    first = last = region[0]
    while last + 1 in region and not sentence.is_verb(last + 1):
        last += 1
    whole = first == 0 or (first - 1 not in sentence.content and tokens[first - 1].kind == "word")
    at = last + 1 + (last + 1 < len(tokens) and tokens[last + 1].key == ",")
    if not whole or at >= len(tokens) or tokens[at].lower not in lexicon.subjects or sentence.role[first] == "of":
        return frozenset()
    verb = next((place for place in range(at + 1, len(tokens)) if sentence.is_verb(place)), len(tokens))
    plain = not any(place in sentence.content for place in range(at + 1, verb))
    said = next((place for place in region if place > last), None)
    return frozenset(range(first, last + 1)) if plain and said is not None and said >= verb else frozenset()


def _is_light(claim: Reading, at: int) -> bool:
    return claim.tokens[at].lower in claim.lexicon.light


def _same_roles(claim: Reading, sentence: Reading, placed: dict[int, int]) -> bool:
    """Whether each word stands behind the same preposition on both sides, or behind none."""
    turned = turned_verb(claim, sentence, placed) is not None
    agents = {claim.lexicon.prepositions.get(word, word) for word in claim.lexicon.agent}
    for one, other in placed.items():
        if claim.is_verb(one) or sentence.is_verb(other):
            continue
        mine, theirs = claim.role[one], sentence.role[other]
        if mine == theirs or (mine in _NEUTRAL and theirs in _NEUTRAL):
            continue
        if mine == sentence.shared[other] or (theirs and theirs == claim.shared[one]):
            continue
        if claim.tokens[one].kind in ("date", "number") and mine in _TIMES and theirs in _TIMES:
            continue
        if turned and agents & {mine, theirs}:
            continue
        return False
    return True


def _common(claim: Reading, sentence: Reading, placed: dict[int, int]) -> bool:
    """Whether the claim calls the first thing by the common noun in its name: "the bridge" for "Hampton Bridge"."""
    first = min(placed.values())
    return sentence.tokens[first].named and any(
        at == first and not claim.tokens[one].capital for one, at in placed.items()
    )


def _begins(claim: Reading, sentence: Reading, placed: dict[int, int]) -> bool:
    """Whether nothing before the words that the claim repeats, in their clause, is what they are said of or hang on."""
    first, common, lexicon = min(placed.values()), _common(claim, sentence, placed), sentence.lexicon
    embedded = any(token.lower in lexicon.embedding for token in claim.tokens[: claim.content[0]])
    hanging = 0
    for at in range(first - 1, -1, -1):
        token = sentence.tokens[at]
        if token.kind == "mark":
            if token.key in '"“”„«»':
                continue
            break
        if token.kind == "word" and token.lower in lexicon.conjunctions and not token.named:
            break
        if token.kind == "word" and token.lower in lexicon.embedding and at > 0 and not embedded:
            return False
        if token.kind == "word" and token.lower in lexicon.possessives:
            return False
        if at in sentence.content:
            if at == first - 1 and _is_title(sentence, at, first):
                return True
            if (common and token.named) or (sentence.role[at] and not sentence.role[first]):
                continue  # the rest of a name, or a phrase in front: "In this model the pressure is …"
            hanging += 1
            if hanging > 2 or sentence.is_verb(at) or token.named or token.kind != "word":
                return False
            if not _is_modifier_of(sentence, at, first):
                return False
    return True


def _is_title(sentence: Reading, at: int, name: int) -> bool:
    """ "nominee" before "Lady Gaga": what stands before it is said of the same person."""
    return sentence.tokens[name].named and not sentence.tokens[at].capital and not sentence.is_verb(at)


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


def _joined(claim: Reading, placed: dict[int, int], one: int, other: int) -> bool:
    """Whether the claim has a joining word, too, between the words that stand at these places of the sentence."""
    first, last = (next(at for at, place in placed.items() if place == each) for each in (one, other))
    return any(token.lower in claim.lexicon.conjunctions for token in claim.tokens[first:last])


def _may_skip(sentence: Reading, one: int, other: int, joined: bool) -> bool:
    """Whether the claim may leave out what stands between two words that it repeats.

    joined: it has a joining word there itself.
    """
    inside = _without_parenthesis(sentence, list(range(one + 1, other)))
    tokens, lexicon = sentence.tokens, sentence.lexicon
    if not any(at in sentence.content for at in inside):
        return joined or not _crosses(sentence, inside)
    if any(tokens[at].key == ";" for at in inside):
        return False
    if tokens[one].kind == "number" and any(at not in sentence.content for at in inside):
        return False
    first = tokens[inside[0]]
    if first.kind == "word" and first.lower in lexicon.possessives:
        return False
    return (
        _is_phrase(sentence, inside)
        or _is_modifier(sentence, one, inside)
        or _is_list(sentence, inside)
        or _is_other_predicate(sentence, inside, other)
    )


def _without_parenthesis(sentence: Reading, inside: list[int]) -> list[int]:
    """What is left without the words between two commas, dashes or brackets, where only function words are."""
    for start, at in enumerate(inside):
        closing = _PARENTHESES.get(sentence.tokens[at].key) if sentence.tokens[at].kind == "mark" else None
        if closing is None:
            continue
        for end in range(len(inside) - 1, start + 1, -1):
            if sentence.tokens[inside[end]].key == closing:
                rest = inside[:start] + inside[end + 1 :]
                joined = any(sentence.tokens[each].key == ";" for each in inside[start:end])
                return rest if not joined and not any(each in sentence.content for each in rest) else inside
    return inside


def _is_other_predicate(sentence: Reading, inside: Sequence[int], other: int) -> bool:
    """What else is said of the same subject: "has seven arches and" before "is 212 metres long"."""
    tokens, lexicon = sentence.tokens, sentence.lexicon
    joins = [at for at in inside if tokens[at].kind == "word" and tokens[at].lower in lexicon.conjunctions]
    if not sentence.is_verb(inside[0]):
        return False
    if tokens[inside[-1]].key == "," and tokens[other].lower.endswith("ing") and not joins:
        return True  # "writings circulated widely, reaching France"
    if not joins:
        return False
    after = joins[-1] + 1
    return after <= other and sentence.is_verb(after) and not any(tokens[at].key in (";", ":") for at in inside)


def _crosses(sentence: Reading, inside: Sequence[int]) -> bool:
    """Whether function words alone lead into another clause: "…, and he …"."""
    words = [sentence.tokens[at].lower for at in inside if sentence.tokens[at].kind == "word"]
    lexicon = sentence.lexicon
    joined = any(word in lexicon.conjunctions for word in words)
    return joined and any(word in lexicon.pronouns - lexicon.determiners for word in words)


def _is_phrase(sentence: Reading, inside: Sequence[int]) -> bool:
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


def _is_modifier(sentence: Reading, one: int, inside: Sequence[int]) -> bool:
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
    plain = all(tokens[at].kind == "word" and not sentence.is_verb(at) for at in skipped)
    if start - 1 == one and tokens[one].kind == "word" and not sentence.is_verb(one) and not tokens[one].capital:
        opened = opened or (not tokens[start].capital and one in sentence.content and _has_determiner(sentence, one))
    return opened and behind and plain


def _has_determiner(sentence: Reading, at: int) -> bool:
    """Whether a word stands in a noun's phrase that a determiner or a number opens."""
    tokens = sentence.tokens
    hyphened = {side for mark, token in enumerate(tokens) if token.key == "-" for side in (mark - 1, mark, mark + 1)}
    while at > 0 and (
        at in hyphened or (at in sentence.content and tokens[at].kind == "word" and not sentence.is_verb(at))
    ):
        at -= 1
    return tokens[at].lower in sentence.lexicon.determiners or tokens[at].kind == "number"


def _is_list(sentence: Reading, inside: Sequence[int]) -> bool:
    """Other members of a list, before or behind those that the claim repeats."""
    tokens, lexicon = sentence.tokens, sentence.lexicon
    joins = [
        at
        for at in inside
        if tokens[at].key == ","
        or (tokens[at].kind == "word" and tokens[at].lower in ("and", "und", "y", "e", "et", "as", "well"))
    ]
    content = [at for at in inside if at in sentence.content]
    if not joins or any(sentence.is_verb(at) for at in inside if at >= content[0]):
        return False
    if any(tokens[at].kind in ("number", "date") for at in inside):
        return False
    allowed = set(joins) | set(sentence.content)
    others = [
        at for at in inside if at > content[0] and at not in allowed and tokens[at].lower not in lexicon.determiners
    ]
    if others:
        return False
    ends = max(joins) > content[-1]
    return ends != (min(joins) == inside[0])


def _same_operators(claim: Reading, sentence: Reading, region: Sequence[int]) -> bool:
    """Whether negations, hedges, conditions, quantifiers and comparisons are the same on both sides.

    Those of the sentence count where they stand among the words that the claim repeats, before them in their clause,
    or, if they bear on all of a sentence, before or behind them.
    """
    mine = Counter(name for name in claim.operator if name)
    theirs = Counter(name for at, name in enumerate(sentence.operator) if name and _bears(sentence, at, region))
    return mine == theirs


def _bears(sentence: Reading, at: int, region: Sequence[int]) -> bool:
    """Whether an operator of a sentence bears on a region of it."""
    name, low, high = sentence.operator[at], region[0], region[-1]
    start, end = _clause(sentence, low, high)
    if low <= at <= high:
        return name in _ALWAYS or not _aside(sentence, at, region)
    if name == "except" and at > high and "all" in sentence.operator[high:at]:
        return False  # "every day except Sunday" is left out whole
    if start <= at < low:
        return True
    if high < at < end:
        return name in _SCOPES or name == "than" or (at == high + 1 and name in ("more", "less"))
    if name == "neg":
        return at < low and not _parted(sentence, at, low)
    return (name in _ALWAYS and at < low) or name in ("if", "except")


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
        weight = weigh(claim.tokens[at].key) * (1 if at in placed else 1 - _LIGHT)
        total += weight
        found += weight * similarity(claim.tokens[at], sentence.tokens[placed[at]]) if at in placed else 0.0
    low, high = min(placed.values()), max(placed.values())
    within = sum(low <= at <= high for at in sentence.content)
    density = len(set(placed.values())) / within
    return found / total * (1 - _LEFT_OUT * (1 - math.sqrt(density)))
