"""Training and evaluation examples: a context of sentences, and questions each answered by one of them.

Questions are made from the sentences themselves: some of their content words in a question's frame (in order
or not, inflected, in lower case), a phrase of theirs, or the sentence with its end taken out; and from facts,
pass keys and key–value lines put between them at random depths. A question is kept only if no other sentence
of the context holds all its content words. Questions whose words stand together nowhere in the context are
answered by ``<|none|>``.
"""

from __future__ import annotations

import random
import re
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from eval.reader.initialise import STOP_WORDS, stem

NOWHERE = -1
"""Index of the answer of a question that the context does not answer."""

FRAMES = (
    "Where is {} mentioned?",
    "What is said about {}?",
    "What does the text say about {}?",
    "What do the documents say about {}?",
    "Which sentence speaks of {}?",
    "Tell me about {}.",
    "What do we learn about {}?",
    "Quote what is said of {}.",
    "How is {} described?",
    "Find the passage on {}.",
    "Does the text mention {}?",
    "What about {}?",
    "Explain {}.",
    "Who or what is {}?",
    "Why {}?",
    "How {}?",
    "When {}?",
    "{}?",
    "{}",
)
UNSEEN_FRAMES = ("What happens with {}?", "Can you show me the part concerning {}?", "In what context does {} come up?")
"""Frames kept for evaluation."""

ATTRIBUTES = (
    "colour", "age", "height", "price", "owner", "capital", "birthplace", "deadline", "phone number", "budget",
    "favourite food", "profession", "room number", "password", "serial number", "speed", "weight", "population",
    "founder", "director", "opening hour", "temperature", "account number", "version", "port", "size",
)  # fmt: skip
FACTS = (
    ("The {a} of {e} is {v}.", "What is the {a} of {e}?"),
    ("{e} has the {a} {v}.", "Which {a} does {e} have?"),
    ("For {e}, the {a} was set to {v}.", "What was the {a} set to for {e}?"),
    ("It is known that the {a} of {e} is {v}.", "What is {e}'s {a}?"),
    ("{e}: {a} = {v}.", "{a} of {e}"),
)
KEYS = (
    ("The pass key is {v}.", "What is the pass key?"),
    ("The pass key is {v}. Remember it.", "What is the pass key?"),
    ("The special magic number for {e} is: {v}.", "What is the special magic number for {e}?"),
    ("One of the special magic numbers for {e} is {v}.", "Which special magic number does the text give for {e}?"),
    ("The secret code of {e} is {v}.", "Which secret code does {e} have?"),
    ("The access number for {e} is {v}.", "Give me the access number for {e}."),
)

_Made = tuple[str, str, str]
"""A statement ("" for none), a question about it, and its kind."""

_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][a-z]+)?|\d+")


@dataclass(frozen=True, slots=True)
class Question:
    """A question and the index of the sentence that answers it, or `NOWHERE`."""

    text: str
    answer: int
    kind: str


@dataclass(frozen=True, slots=True)
class Example:
    """Sentences of a context, and questions about it, each to be answered on its own."""

    sentences: list[str]
    questions: list[Question]


def words(text: str) -> list[str]:
    """Words and numbers of a text."""
    return _WORD.findall(text)


def content(text: str) -> list[str]:
    """Its words without common ones."""
    return [w for w in words(text) if len(w) > 1 and w.lower() not in STOP_WORDS]


def stems(text: str) -> frozenset[str]:
    """Stems of its content words."""
    return frozenset(stem(w) for w in content(text))


@dataclass
class Maker:
    """Draws examples from documents.

    Args:
        documents: sentences, one list a document.
        length: tokens of a text, to fill contexts to a budget; characters / 4.2 by default.
        frames: the question frames in use.
    """

    documents: Sequence[Sequence[str]]
    length: Callable[[str], int] = lambda text: int(len(text) / 4.2) + 3
    frames: Sequence[str] = FRAMES
    counts: Counter[str] = field(init=False)
    _stems: dict[str, frozenset[str]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.counts = Counter(s for document in self.documents for text in document for s in self.stems(text))
        self.names = [
            s.capitalize() for s, n in self.counts.items() if 2 <= n <= 60 and len(s) >= 4 and s.isalpha()
        ] or ["Folio"]

    def stems(self, text: str) -> frozenset[str]:
        """`stems`, remembered."""
        found = self._stems.get(text)
        if found is None:
            found = self._stems[text] = stems(text)
        return found

    def example(self, rng: random.Random, tokens: int, questions: int) -> Example:
        """One context of about `tokens` tokens with about `questions` questions."""
        sentences = self.context(rng, tokens)
        planted: list[_Made] = []
        for make, likely in ((self._facts, 0.45), (self._keys, 0.25), (self._pairs, 0.12)):
            if rng.random() < likely:
                planted += make(rng, sentences, room=max(1, tokens // 400))
        rng.shuffle(planted)
        place = {text: i for i, text in enumerate(sentences)}
        asked = [
            Question(text, place.get(statement, NOWHERE), kind)
            for statement, text, kind in planted[: max(2, questions // 2)]
        ]
        index = [self.stems(s) for s in sentences]
        for _ in range(4 * questions):
            if len(asked) >= questions:
                break
            made = self._nowhere(rng, index) if rng.random() < 0.15 else self._about(rng, sentences, index)
            if made:
                asked.append(made)
        rng.shuffle(asked)
        return Example(sentences, asked)

    def context(self, rng: random.Random, tokens: int) -> list[str]:
        """Runs of consecutive sentences of a few documents: neighbours are the hardest negatives."""
        sentences: list[str] = []
        seen: set[str] = set()
        used = 0
        while used < tokens:
            document = rng.choice(self.documents)
            run = rng.randint(3, 40)
            start = rng.randrange(max(1, len(document) - run))
            for text in document[start : start + run]:
                if text not in seen and used < tokens:
                    seen.add(text)
                    sentences.append(text)
                    used += self.length(text)
        return sentences

    def _about(self, rng: random.Random, sentences: Sequence[str], index: Sequence[frozenset[str]]) -> Question | None:
        answer = rng.randrange(len(sentences))
        made = self.ask(rng, sentences[answer])
        if made is None:
            return None
        text, kind = made
        asked = stems(text) & index[answer]
        if len(asked) < 2 or any(asked <= other for i, other in enumerate(index) if i != answer):
            return None
        return Question(text, answer, kind)

    def _nowhere(self, rng: random.Random, index: Sequence[frozenset[str]]) -> Question | None:
        made = self.ask(rng, rng.choice(rng.choice(self.documents)))
        if made is None:
            return None
        asked = stems(made[0])
        if len(asked) < 2 or max(len(asked & other) for other in index) * 2 > len(asked):
            return None
        return Question(made[0], NOWHERE, "not stated")

    def ask(self, rng: random.Random, sentence: str) -> tuple[str, str] | None:
        """A question about `sentence` and its kind, or None where it holds too little."""
        kind = rng.choices(("keywords", "phrase", "gap"), (6, 2, 3))[0]
        make = {"keywords": self._keywords, "phrase": self._phrase, "gap": self._gap}[kind]
        text = make(rng, sentence)
        return (text, kind) if text else None

    def _keywords(self, rng: random.Random, sentence: str) -> str | None:
        found = list(dict.fromkeys(content(sentence)))
        if len(found) < 2:
            return None
        weights = [1.0 / (1.0 + self.counts[stem(w)]) ** 0.3 for w in found]
        count = min(len(found), rng.choice((2, 3, 3, 4, 5)))
        chosen: list[str] = []
        while len(chosen) < count:
            word = rng.choices(found, weights)[0]
            if word not in chosen:
                chosen.append(word)
        if rng.random() < 0.6:
            chosen.sort(key=found.index)
        lower = rng.random() < 0.3
        chosen = [self._vary(rng, w.lower() if lower else w) for w in chosen]
        joint = rng.choice((" ", " ", ", ", " and "))
        text = rng.choice(self.frames).format(joint.join(chosen))
        return text[0].upper() + text[1:] if rng.random() < 0.7 else text

    def _vary(self, rng: random.Random, word: str) -> str:
        """The word, or one time in six another form of it."""
        if rng.random() > 0.17 or len(word) < 4 or not word.isalpha():
            return word
        bare = stem(word)
        return word[: len(bare)] + rng.choice(("s", "ed", "ing", "", "er", "es", "ly"))

    def _phrase(self, rng: random.Random, sentence: str) -> str | None:
        parts = sentence.rstrip(".!?:;").split()
        size = rng.randint(3, 8)
        if len(parts) < size:
            return None
        start = rng.randrange(len(parts) - size + 1)
        phrase = " ".join(parts[start : start + size]).strip(",;:()\"'")
        return rng.choice(self.frames).format(phrase)

    def _gap(self, rng: random.Random, sentence: str) -> str | None:
        """The sentence with one to four words taken out and a question word in their place."""
        parts = sentence.rstrip(".!?:;").split()
        if len(parts) < 6:
            return None
        size = rng.randint(1, 4)
        start = rng.choice((0, rng.randrange(len(parts) - size), len(parts) - size))
        rest = parts[:start] if start > len(parts) // 2 else parts[start + size :]
        rest = rest[: rng.randint(4, 14)] if start <= len(parts) // 2 else rest[-rng.randint(4, 14) :]
        text = " ".join(rest).strip(",;:()\"'")
        asks = rng.choice(("What", "Who", "Which", "Where", "When", "How", "What is it that"))
        return f"{asks} {text[0].lower() + text[1:]}?" if text else None

    def _name(self, rng: random.Random) -> str:
        name = rng.choice(self.names)
        return f"{name} {rng.choice(self.names)}" if rng.random() < 0.4 else name

    def _facts(self, rng: random.Random, sentences: list[str], room: int) -> list[_Made]:
        """Facts that share their attribute or their entity with one another, and questions for some."""
        entities = [self._name(rng) for _ in range(min(2 + room, 8))]
        attributes = rng.sample(ATTRIBUTES, min(2 + room, 6))
        pairs = [(e, a) for e in dict.fromkeys(entities) for a in attributes]
        rng.shuffle(pairs)
        told, untold = pairs[: 2 + 2 * room], pairs[2 + 2 * room :]
        shape, question = rng.choice(FACTS)
        made = []
        for e, a in told:
            value = str(rng.randrange(10 ** rng.randint(1, 6))) if rng.random() < 0.5 else self._name(rng)
            made.append((shape.format(a=a, e=e, v=value), question.format(a=a, e=e), "fact"))
        missing = untold[:1] if rng.random() < 0.5 else []
        return [
            *_plant(rng, sentences, made),
            *(("", question.format(a=a, e=e), "not stated") for e, a in missing),
        ]

    def _keys(self, rng: random.Random, sentences: list[str], room: int) -> list[_Made]:
        shape, question = rng.choice(KEYS)
        several = "{e}" in shape
        names = list(dict.fromkeys(self._name(rng) for _ in range(1 + room if several else 1)))
        digits = rng.choice((5, 5, 6, 7, 8))
        values = [str(rng.randrange(10 ** (digits - 1), 10**digits)) for _ in names]
        made = [(shape.format(e=e, v=v), question.format(e=e), "passkey") for e, v in zip(names, values, strict=True)]
        return list(_plant(rng, sentences, made))

    def _pairs(self, rng: random.Random, sentences: list[str], room: int) -> list[_Made]:
        made = []
        for _ in range(2 + room):
            key, value = (str(uuid.UUID(int=rng.getrandbits(128))) for _ in range(2))
            made.append((f'"{key}": "{value}"', f'What is the value of the key "{key}"?', "key–value"))
        return list(_plant(rng, sentences, made))


def _plant(rng: random.Random, sentences: list[str], made: Sequence[_Made]) -> Sequence[_Made]:
    """Put statements into `sentences` at random depths."""
    for statement, _, _ in made:
        sentences.insert(rng.randrange(len(sentences) + 1), statement)
    return made
