"""Whether a question leans on the conversation before it, and the words that it then needs to stand alone.

By rule, without a model: a question that points back ("How much does it weigh?", "And in 1920?") or leaves out what it
is about gets the words of the question that opened the topic, of the turn before, and the names of the last answer. A
question that stands by itself is left as it is: a new topic must not be searched for with the words of the old one.
Rules exist for English, German, Spanish, French and Chinese.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from bm25s import stopwords

MOST_WORDS = 24
"""Carried into one question: about what two questions and the names of an answer come to."""
MOST_NAMES = 8
"""Carried from one answer."""
NAMED, UNNAMED = 3, 4
"""Words of a question that begins with "And", from which on it needs no others: with a name among them, without."""
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
        things: those of them that never stand for a person.
        opens: how a question begins that continues another.
        defines: how one begins that asks what a thing is, of which nothing need be known.
        definite: what stands before a thing that is known; `articles`: before any thing.
        which: what stands before a thing that is asked for.
        links: what may stand within the name of a thing, as "of".
        capitals: whether a capital within a sentence makes a name.
    """

    function: frozenset[str]
    refers: re.Pattern[str]
    things: re.Pattern[str]
    opens: re.Pattern[str]
    defines: re.Pattern[str]
    definite: frozenset[str]
    articles: frozenset[str]
    which: frozenset[str]
    links: frozenset[str]
    capitals: bool = True


def _language(
    function: Iterable[str],
    also: str,
    *,
    things: str,
    persons: str,
    opens: str,
    defines: str,
    definite: str,
    articles: str,
    which: str,
    links: str,
    capitals: bool = True,
) -> _Language:
    """persons: patterns of words that stand for a thing or a person."""

    def words(pattern: str) -> re.Pattern[str]:
        return re.compile(rf"\b(?:{pattern})\b", re.IGNORECASE)

    return _Language(
        frozenset(function) | frozenset(also.split()),
        words(f"{things}|{persons}"),
        words(things),
        re.compile(rf"\W*(?:{opens})\b", re.IGNORECASE),
        re.compile(rf"\W*(?:{defines})\b", re.IGNORECASE),
        frozenset(definite.split()),
        frozenset(f"{definite} {articles}".split()),
        frozenset(which.split()),
        frozenset(links.split()),
        capitals,
    )


_ENGLISH_IT = r"it(?! (?:is |was )?(?:true|possible|necessary|allowed|common|usual|important|better|correct)\b)"
_ENGLISH_THERE = r"(?<!is )(?<!are )(?<!was )(?<!were )there(?! (?:is|are|was|were|be)\b)"
_ENGLISH_THAT = (
    r"(?:is|was|were|does|did|do|of|in|for|by|about|after|before|with|from|to|on|at|why|how|like) that|that$"
)
_LANGUAGES = {
    "en": _language(
        stopwords.STOPWORDS_EN_PLUS,
        "much many tell say said says please give show describe explain compare summarise summarize would "
        "could shall may might must us one ones else such another whose exactly mean means meant called yet also",
        things=rf"{_ENGLISH_IT}|its|itself|{_ENGLISH_THERE}|{_ENGLISH_THAT}|"
        r"th(?:is|ese|ose)(?! (?:document|text|file|book|paper|report|librar|collection))",
        persons="they|them|their|theirs|he|him|his|she|her|hers|former|latter|ones|the same|else|others?|"
        "(?:the|this|that|which|other|first|last|next) one",
        opens="and|but|or|also|so|then|what about|how about|what else|who else",
        defines="what (?:is|are) (?!the)|who (?:is|was) (?!the)|what does (?!the)|define|explain|describe",
        definite="the",
        articles="a an its their his her",
        which="which what",
        links="of at in on for from to with between",
    ),
    "de": _language(
        stopwords.STOPWORDS_GERMAN,
        "wer wen wem wessen wo wann warum wieso weshalb wie viel viele wieviel gibt bitte wird wurde wurden heißt "
        "nennt genau bedeutet",
        things="es(?! gibt)|dort|davon|dazu|damit|dafür|daran|darin|daraus|darauf|dasselbe",
        persons="er|ihn|ihm|ihre?[mnrs]?|seine?[mnrs]?|dessen|deren|diese[mnrs]?|jene[mnrs]?|derselbe|dieselbe|sonst|"
        "andere[mnrs]?|sie|ihnen|letztere[mnrs]?",
        opens="und|aber|oder|auch|also|was ist mit|wie steht es mit|was sonst|wer sonst",
        defines="was (?:ist|sind) (?!de|da|di)|wer (?:ist|war) (?!de|da|di)|was bedeutet",
        definite="der die das den dem des im am zum zur vom beim",
        articles="ein eine einen einem einer eines",
        which="welche welcher welches welchen welchem",
        links="von an in auf für zu mit aus bei",
        capitals=False,
    ),
    "es": _language(
        stopwords.STOPWORDS_SPANISH,
        "cuánto cuánta cuántos cuántas cuál cuáles qué quién quiénes dónde cuándo cómo hay tiene tienen significa "
        "llama exactamente",
        things="ello|esto|eso|allí|ahí",
        persons="él|ellas?|ellos|sus?|suy[oa]s?|est[ae]s?|es[ae]|es[ao]s|mism[ao]s?|otr[ao]s?",
        opens="y|e|pero|o|también|entonces|qué hay de|qué pasa con|qué más|quién más",
        defines="qué (?:es|son)|quién (?:es|fue)|qué significa",
        definite="el la los las del al",
        articles="un una unos unas",
        which="qué cuál cuáles",
        links="de del en para con a",
    ),
    "fr": _language(
        stopwords.STOPWORDS_FRENCH,
        "quel quelle quels quelles combien comment pourquoi quand où qui que quoi est-ce a-t-il a-t-elle sont était "
        "été signifie appelle exactement est-il est-elle",
        things="cela|ça|là",
        persons="elles?|ils?(?! y a)|lui|leurs?|sa|ses|celui|celles?|ceux|cet|cette|ces|mêmes?|autres?",
        opens="et|mais|ou|aussi|alors|qu['’]en est-il|et pour|quoi d['’]autre",
        defines="qu['’]est-ce que? |qui (?:est|était)|que signifie",
        definite="le la les du des au aux",
        articles="un une",
        which="quel quelle quels quelles",
        links="de du des à en pour avec",
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
    spoken = " ".join([*asked, question])
    said = _Said()
    for role, text in turns:
        said = said.after(role, text, _language_of(text, spoken))
    language = _language_of(question, spoken)
    if not _refers_back(question, said.words, language):
        return question
    known = {word.casefold() for word in _words(question)}
    carried = _kept(said.meant(question, language), question, language)
    fresh = {word.casefold(): word for word in carried if word.casefold() not in known}
    return " ".join([question, *list(fresh.values())[:MOST_WORDS]])


@dataclass(frozen=True)
class _Said:
    """What a conversation is about.

    Attributes:
        topic, topic_things: all words of the question that opened the topic; those that name things. Among both are the
            names that later questions brought or meant.
        before, before_things: of the turn before, where that is another.
        names: of the last answer.
        thing: whether the last question asked for a thing, so that the answer names one.
    """

    topic: tuple[str, ...] = ()
    topic_things: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    before_things: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    thing: bool = True

    @property
    def words(self) -> list[str]:
        return [*self.topic, *self.before, *self.names]

    def after(self, role: str, text: str, language: _Language) -> _Said:
        """With one turn more."""
        if role != "user":
            names = [name for name in _names(text, language) if not _is_number(name)]
            return replace(self, names=tuple(names[:MOST_NAMES]))
        content, things = tuple(_content(text, language)), tuple(_things(text, language))
        thing = any(word.casefold() in language.which for word in _words(text)[:2])
        if not self.topic or not _refers_back(text, self.words, language):
            return _Said(content, things, thing=thing)
        names = [*self._answered(text, language), *_names(text, language)]
        topic, topic_things = ([*_kept(one, text, language), *names] for one in (self.topic, self.topic_things))
        return _Said(tuple(topic), tuple(topic_things), content, things, thing=thing)

    def meant(self, question: str, language: _Language) -> list[str]:
        """The words that the question leaves out.

        A pronoun, or "the bridge", stands for a thing or a person of which something new is asked: the words for things
        are enough. A question without either leaves out what is said of them, too.
        """
        pointer = language.refers.search(question)
        known = not language.opens.match(question) and bool(_definite(question, language))
        if not (pointer or known) or not _content(question, language):
            return self.words
        things = self.topic_things or self.topic
        return [*things, *self.before_things, *self._answered(question, language)]

    def _answered(self, question: str, language: _Language) -> tuple[str, ...]:
        """The names of the last answer, where a pronoun of the question can stand for them."""
        pointer = language.refers.search(question)
        if pointer is None or (language.things.match(question, pointer.start()) and not self.thing):
            return ()
        return self.names


def _refers_back(question: str, earlier: Sequence[str], language: _Language) -> bool:
    """Whether the question cannot be understood without what was said earlier."""
    if any(not _explained(question, match.start(), language) for match in language.refers.finditer(question)):
        return True
    opened = language.opens.match(question)
    rest = question[opened.end() :] if opened else question
    content, named = _content(rest, language), bool(_names(rest, language))
    if opened:
        return len(content) < (NAMED if named else UNNAMED)
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


def _things(text: str, language: _Language) -> list[str]:
    """Words that name things: what follows an article or "which", with what is linked to it, and names."""
    found: list[str] = []
    phrase: list[str] = []
    begun = False
    for word in [*_words(text), ""]:
        key = word.casefold()
        linked = bool(phrase) and phrase[-1].casefold() in language.links
        verb = bool(phrase) and phrase[-1][0].isupper() and word[:1].islower()  # behind a name
        if key in language.links and phrase:
            phrase.append(word)
        elif key in language.articles | language.which and linked:
            continue
        elif word and key not in language.function and not verb and (begun or _is_name(word, language)):
            begun = True
            phrase.append(word)
        else:
            found += phrase[:-1] if linked else phrase
            phrase, begun = [], key in language.articles | language.which
    return found


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
