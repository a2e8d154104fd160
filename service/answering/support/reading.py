"""A claim or a stored sentence with the roles of its words: what says something, behind which preposition, as what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from service.answering.support.lexicon import Lexicon
from service.answering.support.words import Token

AND = frozenset({"and", "or", "und", "oder", "y", "e", "o", "et", "ou"})
_ADVERBS = frozenset({"also", "then", "later", "soon", "already", "still", "just", "often", "again", "now", "first"})
_SENTENCE = 4
"""words of a sentence in a language whose verbs are not known by their form"""
_LONGEST_SUBJECT = 10
"""tokens"""


@dataclass(frozen=True)
class Reading:
    """The tokens of a claim or a sentence with their roles.

    Attributes:
        content: indices into ``tokens`` of those that say something.
        role: per token, the class of the preposition that governs it, or "".
        shared: the same, if a list goes on over a comma or an "and": "in France and Italy".
        operator: per token, its class, or "".
    """

    tokens: tuple[Token, ...]
    content: tuple[int, ...]
    role: tuple[str, ...]
    shared: tuple[str, ...]
    operator: tuple[str, ...]
    lexicon: Lexicon

    @classmethod
    def of(cls, tokens: Sequence[Token], lexicon: Lexicon) -> Reading:
        operator = tuple(_operator(tokens, at, lexicon) for at in range(len(tokens)))
        content = tuple(at for at, token in enumerate(tokens) if not operator[at] and _says(token, lexicon))
        role: list[str] = []
        shared: list[str] = []
        governor, full, over = "", False, ""  # full: the preposition has its noun; over: what a list carries on
        for at, token in enumerate(tokens):
            if token.kind == "word" and not token.named and token.lower in lexicon.prepositions:
                governor, full = lexicon.prepositions[token.lower], False
                over = governor
            elif _resets(token, lexicon) or (full and token.lower in lexicon.determiners):
                governor, full = "", False
                over = over if token.key == "," or token.lower in AND or token.lower in lexicon.determiners else ""
            role.append(governor)
            shared.append(over)
            if at in content:
                if full and tokens[at - 1].kind == "date":
                    role[-1] = governor = ""
                full = True
        return cls(tuple(tokens), content, tuple(role), tuple(shared), operator, lexicon)

    def is_verb(self, at: int) -> bool:
        token = self.tokens[at]
        return token.kind == "word" and not token.named and self.lexicon.is_verb(token.lower)

    def is_passive(self, at: int) -> bool:
        """Whether a participle stands behind a form of "be", or before who did it."""
        token = self.tokens[at]
        if token.kind != "word" or at not in self.content or token.lower.endswith("ing") or not self.is_verb(at):
            return False
        before = at - 1
        while before >= 0 and (
            self.operator[before] or self.tokens[before].lower.endswith("ly") or self.tokens[before].lower in _ADVERBS
        ):
            before -= 1
        if before >= 0 and self.tokens[before].lower in self.lexicon.passive:
            return True
        after = self.tokens[at + 1].lower if at + 1 < len(self.tokens) else ""
        return (
            self.lexicon.code == "en" and after in self.lexicon.agent and token.lower.endswith(("ed", "en", "t", "n"))
        )

    def is_aside(self, at: int) -> bool:
        """Whether a participle opens a parenthesis: "(born 1815)", ", opened in 1958,"."""
        return self.is_verb(at) and at > 0 and self.tokens[at - 1].key in ("(", ",")

    def has_predicate(self) -> bool:
        """Whether something is said of something: a verb, or a formula."""
        if self.lexicon.code != "en" and sum(token.kind == "word" for token in self.tokens) >= _SENTENCE:
            return True
        return any(self.is_verb(at) or token.kind == "formula" for at, token in enumerate(self.tokens))


def _says(token: Token, lexicon: Lexicon) -> bool:
    if token.kind == "mark":
        return False
    named = token.named and token.lower not in lexicon.determiners
    return token.kind != "word" or named or token.lower not in lexicon.function


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


def replaced(reading: Reading, at: int, by: Sequence[Token]) -> Reading:
    """The reading with one token (a pronoun) replaced by what it stands for."""
    opens = reading.tokens[at].opens
    inserted = [replace(token, opens=opens and number == 0 and not token.capital) for number, token in enumerate(by)]
    return Reading.of([*reading.tokens[:at], *inserted, *reading.tokens[at + 1 :]], reading.lexicon)


def pronoun_of(reading: Reading) -> int | None:
    """The place of a personal pronoun that is the subject of a sentence, or None."""
    for at, token in enumerate(reading.tokens):
        if token.kind != "word":
            continue
        if token.lower in reading.lexicon.pronouns and token.lower not in reading.lexicon.determiners:
            return at
        if reading.is_verb(at) or (at in reading.content and not reading.role[at]):
            return None
    return None


def same_pronoun(pronoun: Token, sentence: Reading) -> bool:
    at = pronoun_of(sentence)
    return at is not None and sentence.tokens[at].lower == pronoun.lower


def subject_of(reading: Reading) -> list[Token] | None:
    """What a sentence speaks of: from the first noun or name that stands behind no preposition to the verb."""
    found: list[Token] = []
    for at, token in enumerate(reading.tokens):
        if found and (reading.is_verb(at) or token.kind == "mark"):
            break
        if found or (at in reading.content and not reading.is_verb(at) and not reading.role[at]):
            found.append(token)
    return found[:_LONGEST_SUBJECT] or None


def clauses_of(reading: Reading) -> list[Reading]:
    """The clauses of a claim, each with a subject: that of the first where it has none; none for a single clause."""
    lexicon = reading.lexicon
    parts: list[list[Token]] = [[]]
    for at, token in enumerate(reading.tokens):
        word = token.lower if token.kind == "word" and not token.named else ""
        if (
            token.key == ";"
            or word in lexicon.conjunctions
            or (word in ("which", "who") and at and reading.tokens[at - 1].key == ",")
        ):
            parts.append([])
        else:
            parts[-1].append(token)
    read = [Reading.of(part, lexicon) for part in parts if part]
    if len(read) < 2 or not all(each.has_predicate() and len(each.content) > 1 for each in read):
        return []
    subject = subject_of(read[0])
    done = [read[0]]
    for each in read[1:]:
        verb = next((at for at, token in enumerate(each.tokens) if each.is_verb(at) or token.kind == "formula"), None)
        if verb is None:
            return []
        owned = [at for at in each.content if at < verb and not each.role[at]]
        pronoun = pronoun_of(each)
        if pronoun is None and owned:
            done.append(each)
        elif subject is None:
            return []
        elif pronoun is not None:
            done.append(replaced(each, pronoun, subject))
        else:
            done.append(Reading.of([*(replace(token, opens=False) for token in subject), *each.tokens], lexicon))
    return done
