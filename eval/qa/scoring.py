"""Answers held to the right ones: exact match and F1 by SQuAD's rule (MLQA's for other languages), right, loops.

English is compared by the script of SQuAD 1.1 (Rajpurkar et al. 2016), other languages by that of MLQA (Lewis et al.
2019): lower case, no punctuation, no articles of the language; Chinese by characters.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Callable, Iterable, Sequence

from eval.scoring.text import english_words, f1

_ARTICLES = {
    "de": r"\b(ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des)\b",
    "es": r"\b(un|una|unos|unas|el|la|los|las)\b",
    "vi": r"\b(của|là|cái|chiếc|những)\b",
    "ar": r"\sال^|ال",
    "hi": None,
    "zh": None,
}
LANGUAGES = frozenset({"en", *_ARTICLES})
_MARKER = re.compile(r"\[\d{1,4}(?:\s*,\s*\d{1,4})*\]")
_CHINESE = re.compile(r"[\u4e00-\u9fa5]")
_WORD = re.compile(r"[^\W_]+")
_DASHES = str.maketrans("‐‑‒–—−", "------")
_SHORTEST_LOOP = 8
"""Words that a repeated stretch has in all, the first time included."""


def words_of(language: str) -> Callable[[str], list[str]]:
    """The rule by which an answer in the language is cut into what is compared."""
    return english_words if language == "en" else lambda text: _mlqa_words(text, language)


def exact_match(answer: str, references: Iterable[str], language: str) -> float:
    """1 where the answer is one of the references, but for case, punctuation and articles."""
    words = words_of(language)
    return float(words(plain(answer)) in [words(reference) for reference in references])


def best_f1(answer: str, references: Sequence[str], language: str) -> float:
    """The best F1 of words with one of the references."""
    words = words_of(language)
    return max((f1(words(plain(answer)), words(reference)) for reference in references), default=0.0)


def holds(text: str, accepted: Iterable[Sequence[str]]) -> bool:
    """Whether the text holds one of the accepted answers: all the strings of one, each as whole words.

    Compared is what `folded` leaves: case, width and hyphens of line ends do not count. A string that begins or ends
    with a Chinese sign needs no border there.
    """
    within = folded(text)
    return any(all(_stands(folded(part), within) for part in parts) for parts in accepted)


def prints(text: str, sentence: str) -> bool:
    """Whether the text holds the sentence word for word."""
    said, wanted = "".join(_WORD.findall(folded(text))), "".join(_WORD.findall(folded(sentence)))
    return bool(wanted) and wanted in said


def loops(text: str) -> bool:
    """Whether the text goes round: a stretch said three times in a row, or a sentence three times in all."""
    words = pieces(text)
    for period in range(1, len(words) // 3 + 1):
        run = 0
        for at in range(len(words) - period):
            run = run + 1 if words[at] == words[at + period] else 0
            if run >= 2 * period and run + period >= _SHORTEST_LOOP:
                return True
    said = [" ".join(pieces(part)) for part in re.split(r"[.!?。！？\n]+", text)]
    return any(said.count(one) >= 3 for one in said if len(one.split()) >= 3)


def plain(answer: str) -> str:
    """The answer without its markers of citation."""
    return " ".join(_MARKER.sub(" ", answer).split())


def folded(text: str) -> str:
    """Lower case in normal width, white space as one space, without soft hyphens and other signs that do not show."""
    text = unicodedata.normalize("NFKC", text).casefold().translate(_DASHES)
    return " ".join("".join(c for c in text if unicodedata.category(c) != "Cf" and c != "\ufffe").split())


def _stands(part: str, within: str) -> bool:
    before = r"(?<!\w)" if _is_word(part[:1]) else ""
    after = r"(?!\w)" if _is_word(part[-1:]) else ""
    return re.search(before + re.escape(part) + after, within) is not None


def _is_word(character: str) -> bool:
    return character.isalnum() and not _CHINESE.match(character)


def pieces(text: str) -> list[str]:
    """Words in lower case; of Chinese, signs."""
    return [piece for word in _WORD.findall(folded(text)) for piece in (word if _CHINESE.search(word) else [word])]


# -- MLQA's script


def _mlqa_words(text: str, language: str) -> list[str]:
    text = "".join(c for c in text.lower() if not _is_punctuation(c))
    articles = _ARTICLES[language]
    if articles is not None:
        text = re.sub(articles, " ", text)
    return _mixed(text) if language == "zh" else text.split()


def _mixed(text: str) -> list[str]:
    """Chinese signs one by one, the rest by white space."""
    return re.sub(_CHINESE, lambda sign: f" {sign.group()} ", text).split()


def _is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")
