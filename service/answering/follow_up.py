"""Whether a question leans on the conversation before it, and the words that it then needs to stand alone.

By rule, without a model: a question that points back ("How much does it weigh?", "And in 1920?") or leaves out what it
is about gets the words of the question that opened the topic, of the turn before, and the names of the last answer. A
question that stands by itself is left as it is: a new topic must not be searched for with the words of the old one.
Rules exist for English, German, Spanish, French and Chinese.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from bm25s import stopwords

MOST_WORDS = 24
"""Carried into one question: about what two questions and the names of an answer come to."""
MOST_NAMES = 8
"""Carried from one answer."""
MOST_TURNS = 20
"""Looked back over."""
READ_CHARS = 2_000
"""Of each turn: what it is about stands at its beginning."""

_WORD = re.compile(r"[^\W_]+(?:(?:[.'’/-]|(?<=\d),(?=\d))[^\W_]+)*")
_ELISION = re.compile(r"^(?:l|d|c|j|n|s|m|t|qu)['’](?=\w)", re.IGNORECASE)
_POSSESSIVE = re.compile(r"['’]s$")
_CLAUSE = re.compile(
    r"[,;]|\b(?:and|but|or|if|when|while|because|before|after|und|oder|aber|wenn|weil|bevor|nachdem|y|o|pero|si|cuando|"
    r"porque|et|ou|mais|quand|parce)\b",
    re.IGNORECASE,
)
_HAN = re.compile(r"[\u3400-\u9fff]")
_HAN_REFERS = re.compile(r"[它他她其该此]|这|那|同样|另外|前者|后者|呢\W*$|^(?:还有|以及)")
_HAN_SHORT = 4
"""Characters of a Chinese question that names nothing: "为什么？", "多少钱？"."""


@dataclass(frozen=True)
class _Language:
    """The closed classes of one language's words.

    Attributes:
        function: words that name nothing, in lower case.
        refers: what stands for something said before.
        opens: how a question begins that continues another.
        defines: how one begins that asks what a thing is, of which nothing need be known.
        definite: what stands before a thing that is known; `articles`: before any thing.
        capitals: whether a capital within a sentence makes a name.
    """

    function: frozenset[str]
    refers: re.Pattern[str]
    opens: re.Pattern[str]
    defines: re.Pattern[str]
    definite: frozenset[str]
    articles: frozenset[str]
    capitals: bool = True


def _language(
    function: Iterable[str], also: str, refers: str, opens: str, defines: str, definite: str, articles: str
) -> _Language:
    return _Language(
        frozenset(function) | frozenset(also.split()),
        re.compile(rf"\b(?:{refers})\b", re.IGNORECASE),
        re.compile(rf"\W*(?:{opens})\b", re.IGNORECASE),
        re.compile(rf"\W*(?:{defines})\b", re.IGNORECASE),
        frozenset(definite.split()),
        frozenset(f"{definite} {articles}".split()),
        capitals="die" not in definite.split(),
    )


_ENGLISH_IT = r"it(?! (?:is |was )?(?:true|possible|necessary|allowed|common|usual|important|better|correct)\b)"
_ENGLISH_THERE = r"(?<!is )(?<!are )(?<!was )(?<!were )there(?! (?:is|are|was|were|be)\b)"
_ENGLISH_THAT = (
    r"(?:is|was|were|does|did|do|of|in|for|by|about|after|before|with|from|to|on|at|why|how|like) that|that$"
)
_LANGUAGES = {
    "en": _language(
        stopwords.STOPWORDS_EN_PLUS,
        "much many tell say said says please give show list name describe explain compare summarise summarize would "
        "could shall may might must us one ones else such another whose exactly mean means meant called yet also",
        rf"{_ENGLISH_IT}|its|itself|they|them|their|theirs|he|him|his|she|her|hers|former|latter|ones|the same|else|"
        rf"(?:the|this|that|which|other|first|last|next) one|others?|{_ENGLISH_THERE}|{_ENGLISH_THAT}|"
        r"th(?:is|ese|ose)(?! (?:document|text|file|book|paper|report|librar|collection))",
        "and|but|or|also|so|then|what about|how about|what else|who else",
        "what (?:is|are) (?!the)|who (?:is|was) (?!the)|what does (?!the)|define|explain|describe",
        "the",
        "a an its their his her",
    ),
    "de": _language(
        stopwords.STOPWORDS_GERMAN,
        "wer wen wem wessen wo wann warum wieso weshalb wie viel viele wieviel gibt bitte wird wurde wurden heißt "
        "nennt genau bedeutet",
        "er|es(?! gibt)|ihn|ihm|ihre?[mnrs]?|seine?[mnrs]?|dessen|deren|diese[mnrs]?|jene[mnrs]?|dort|davon|dazu|damit|"
        "dafür|daran|darin|daraus|darauf|derselbe|dieselbe|dasselbe|sonst|andere[mnrs]?|sie|ihnen|letztere[mnrs]?",
        "und|aber|oder|auch|also|was ist mit|wie steht es mit|was sonst|wer sonst",
        "was (?:ist|sind) (?!de|da|di)|wer (?:ist|war) (?!de|da|di)|was bedeutet",
        "der die das den dem des im am zum zur vom beim",
        "ein eine einen einem einer eines",
    ),
    "es": _language(
        stopwords.STOPWORDS_SPANISH,
        "cuánto cuánta cuántos cuántas cuál cuáles qué quién quiénes dónde cuándo cómo hay tiene tienen significa "
        "llama exactamente",
        "él|ellas?|ellos|ello|sus?|suy[oa]s?|esto|eso|est[ae]s?|es[ae]|es[ao]s|allí|ahí|mism[ao]s?|otr[ao]s?",
        "y|e|pero|o|también|entonces|qué hay de|qué pasa con|qué más|quién más",
        "qué (?:es|son)|quién (?:es|fue)|qué significa",
        "el la los las del al",
        "un una unos unas",
    ),
    "fr": _language(
        stopwords.STOPWORDS_FRENCH,
        "quel quelle quels quelles combien comment pourquoi quand où qui que quoi est-ce a-t-il a-t-elle sont était "
        "été signifie appelle exactement est-il est-elle",
        "elles?|ils?(?! y a)|lui|leurs?|sa|ses|celui|celles?|ceux|cela|ça|cet|cette|ces|là|a-t-elle|est-elle|est-il|"
        "mêmes?|autres?",
        "et|mais|ou|aussi|alors|qu['’]en est-il|et pour|quoi d['’]autre",
        "qu['’]est-ce que? |qui (?:est|était)|que signifie",
        "le la les du des au aux",
        "un une",
    ),
}


def stand_alone(question: str, turns: Sequence[tuple[str, str]]) -> str:
    """The question with what it needs of the conversation; the question itself where it needs nothing.

    Args:
        turns: (role, text) of each earlier turn, oldest first; role is user or assistant.
    """
    turns = [(role, text[:READ_CHARS]) for role, text in turns[-MOST_TURNS:]]
    asked = [text for role, text in turns if role == "user"]
    if not asked:
        return question
    if _HAN.search(question):
        return f"{_last_that_stands(asked)} {question}" if _han_refers_back(question) else question
    topic: list[str] = []
    before: list[str] = []
    names: list[str] = []
    spoken = " ".join([*asked, question])
    for role, text in turns:
        language = _language_of(text, spoken)
        if role != "user":
            names = [name for name in _names(text, language) if not _is_number(name)][:MOST_NAMES]
        elif topic and _refers_back(text, [*topic, *before, *names], language):
            before = _content(text, language)
            topic = [*_kept(topic, text, language), *_names(text, language)]
        else:
            topic, before, names = _content(text, language), [], []
    language = _language_of(question, spoken)
    if not _refers_back(question, [*topic, *before, *names], language):
        return question
    carried = _kept([*topic, *before, *names], question, language)
    known = {word.casefold() for word in _words(question)}
    fresh = {word.casefold(): word for word in carried if word.casefold() not in known}
    return " ".join([question, *list(fresh.values())[:MOST_WORDS]])


def _refers_back(question: str, earlier: Sequence[str], language: _Language) -> bool:
    """Whether the question cannot be understood without what was said earlier."""
    if any(not _explained(question, match.start(), language) for match in language.refers.finditer(question)):
        return True
    opened = language.opens.match(question)
    rest = question[opened.end() :] if opened else question
    content, named = _content(rest, language), bool(_names(rest, language))
    if opened:
        return not named or len(content) < 3
    if not content:
        return True
    if named:
        return False
    if len(content) == 1:
        return language.defines.match(question) is None
    return not _definite(question, language).isdisjoint(word.casefold() for word in earlier)


def _explained(question: str, at: int, language: _Language) -> bool:
    """Whether what the pronoun at this place stands for is named in a clause of the question before it."""
    breaks = [match.start() for match in _CLAUSE.finditer(question, 0, at)]
    if not breaks:
        return False
    clause = question[: breaks[-1]]
    words = [word.casefold() for word in _words(clause)]
    thing = any(a in language.articles and b not in language.function for a, b in pairwise(words))
    return thing or bool(_names(clause, language))


def _definite(question: str, language: _Language) -> set[str]:
    """The words behind a definite article: of things that are taken for known."""
    words = [word.casefold() for word in _words(question)]
    return {b for a, b in pairwise(words) if a in language.definite and b not in language.function}


def _kept(words: Sequence[str], question: str, language: _Language) -> list[str]:
    """Without the names in whose place the question puts others: "And the Tay Bridge?", "And in 1920?"."""
    if not language.opens.match(question) or language.refers.search(question):
        return list(words)
    put = {_is_number(word) for word in _names(question, language)}
    return [word for word in words if not (_is_name(word, language) and _is_number(word) in put)]


def _content(text: str, language: _Language) -> list[str]:
    words = [word for word in _words(text) if len(word) > 1 or word.isdigit()]
    return [word for word in words if word.casefold() not in language.function]


def _names(text: str, language: _Language) -> list[str]:
    return [word for word in _content(text, language) if _is_name(word, language)]


def _is_name(word: str, language: _Language) -> bool:
    """A number, an abbreviation, or a word with a capital that is no function word."""
    if any(c.isdigit() for c in word) or any(c.isupper() for c in word[1:]):
        return True
    return language.capitals and word[0].isupper()


def _is_number(word: str) -> bool:
    return word[0].isdigit()


def _words(text: str) -> list[str]:
    """Words without elisions ("l'arche") and possessives ("Ada's")."""
    return [_ELISION.sub("", _POSSESSIVE.sub("", word)) for word in _WORD.findall(text)]


def _language_of(text: str, conversation: str) -> _Language:
    """The language with the most function words in the text, or as many and more in the conversation."""
    words = [[word.casefold() for word in _words(one)] for one in (text, conversation)]
    return max(_LANGUAGES.values(), key=lambda language: [sum(w in language.function for w in one) for one in words])


def _han_refers_back(question: str) -> bool:
    return bool(_HAN_REFERS.search(question)) or len(_HAN.findall(question)) <= _HAN_SHORT


def _last_that_stands(asked: Sequence[str]) -> str:
    standing = [text for text in asked if not _han_refers_back(text)]
    return (standing or asked[:1])[-1]
