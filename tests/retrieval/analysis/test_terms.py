"""Text to terms: folding, words, languages, stems."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from retrieval.analysis.folding import fold, unaccented
from retrieval.analysis.languages import is_english, likeliest, votes
from retrieval.analysis.terms import chunk_terms, language_of, query_terms, terms
from retrieval.analysis.words import words

ENGLISH = "The river had risen in the night, and the lanterns of the boats were burning on the water."
GERMAN = "Der Fluss war in der Nacht gestiegen, und die Laternen der Boote brannten auf dem Wasser."
SPANISH = "El río había subido durante la noche y las linternas de los barcos ardían sobre el agua."


def stems(found: list[str]) -> list[str]:
    return [term.partition("\x1f")[0] for term in found]


@given(st.text())
@example("e\u200d\u0301")
@example("\u1e9e\u0345\u00ad")
def test_folding_twice_is_folding_once(text: str) -> None:
    once = fold(text)
    assert fold(once) == once
    bare = unaccented(once)
    assert unaccented(bare) == bare


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("co\u00adope\u200brate", "cooperate"),
        ("ﬁle", "file"),
        ("ＡＢＣ１２", "abc12"),
        ("STRASSE", "straße"),
        ("10,000 and 1.234.567", "10000 and 1234567"),
        ("\u202bpage\u202c", "PAGE"),
    ],
)
def test_what_reads_the_same_is_the_same(one: str, other: str) -> None:
    assert fold(one) == fold(other)


@pytest.mark.parametrize("text", ["3.5", "12.05.2019", "1,23", "v1.2.34"])
def test_not_every_point_groups_thousands(text: str) -> None:
    assert fold(text) == text


@pytest.mark.parametrize(
    ("accented", "bare"),
    [("café", "cafe"), ("łódź", "lodz"), ("מֹשֶׁה", "משה"), ("كِتَاب", "كتاب"), ("が", "が"), ("हिन्दी", "हिन्दी")],
)
def test_accents_go_and_letters_stay(accented: str, bare: str) -> None:
    assert unaccented(accented) == bare


def test_words() -> None:
    assert words(fold("The ﬁfth Café\u2014it's 3.5 foo_bar")) == [
        "the",
        "fifth",
        "café",
        "it",
        "s",
        "3",
        "5",
        "foo",
        "bar",
    ]
    assert words("हिन्दी भाषा") == ["हिन्दी", "भाषा"]
    assert words("日本語1999年") == ["日", "本", "語", "日本", "本語", "1999", "年"]
    assert words("한국어 서울") == ["한", "국", "어", "한국", "국어", "서", "울", "서울"]


@given(st.text())
def test_no_word_is_lost(text: str) -> None:
    folded = fold(text)
    found = words(folded)
    assert all(found)
    assert set("".join(found)) >= set("".join(re.findall(r"[^\W_]", folded)))


@pytest.mark.parametrize(("text", "language"), [(ENGLISH, "en"), (GERMAN, "de"), (SPANISH, "es"), ("17 42", "")])
def test_languages(text: str, language: str) -> None:
    assert likeliest(votes(words(fold(text))), {}, 0.0) == language


def test_a_chunk_is_stemmed_in_its_own_language() -> None:
    table = "lanterns 17\nLaternen 42"
    analysed = chunk_terms([("a.txt", "", ENGLISH), ("a.txt", "", GERMAN), ("a.txt", "", GERMAN), ("a.txt", "", table)])
    assert [language for language, _ in analysed] == ["en", "de", "de", "de"], "the table is of its document's language"
    assert "lantern" in stems(analysed[0][1])
    assert "latern" in stems(analysed[1][1])
    assert chunk_terms([("a.csv", "", table)]) == [("", ["lanterns", "17", "laternen", "42", "a"])]


def test_headings_and_the_name_of_the_file_are_terms() -> None:
    [(_, found)] = chunk_terms([("reports/Harbour-2019.pdf", "Dues › Boats", ENGLISH)])
    assert stems(found).count("boat") == 3, "twice as a heading, once in the text"
    assert {"report", "harbour", "2019"} <= set(stems(found))
    assert "pdf" not in stems(found)


def test_a_query_asks_each_language_in_its_own_stems() -> None:
    found = query_terms("Where were the lanterns burning?", {"en": 3, "de": 1, "": 1})
    by_language = {
        language: [s for t in found for s in stems([t]) if language_of(t) == language] for language in ("en", "de", "")
    }
    assert by_language["en"] == ["lantern", "burn"]
    assert by_language[""] == ["lanterns", "burning"]
    assert len(by_language["de"]) == 2


@pytest.mark.parametrize(
    ("query", "languages", "kept"),
    [
        ("die hard", {"en": 9}, ["die", "hard"]),
        ("Wann war die Flut?", {"de": 9}, ["flut"]),
        ("Wann war die Flut?", {"en": 9}, ["flut"]),
        ("to be or not to be", {"en": 9}, ["to", "be", "or", "not", "to", "be"]),
        ("?!", {"en": 9}, []),
    ],
)
def test_stop_words_of_a_query(query: str, languages: dict[str, int], kept: list[str]) -> None:
    assert stems(query_terms(query, languages)) == kept


def test_inflected_words_meet() -> None:
    for language, one, other in [
        ("en", "burning lanterns", "burned lantern"),
        ("de", "Häuser", "hauser"),
        ("es", "canciones", "CANCIÓN"),
        ("fr", "écoles", "ecole"),
        ("ru", "книги", "книга"),
    ]:
        assert terms(one, language) == terms(other, language)


@given(
    st.lists(st.tuples(st.text(max_size=5), st.text(max_size=5), st.text(max_size=20)), max_size=4),
    st.text(max_size=20),
)
def test_any_text_has_terms_or_none(chunks: list[tuple[str, str, str]], query: str) -> None:
    analysed = chunk_terms(chunks)
    assert len(analysed) == len(chunks)
    languages = {language: 1 for language, _ in analysed}
    for _, found in analysed:
        assert all(language_of(term) in languages for term in found)
    assert all(language_of(term) in languages for term in query_terms(query, languages))


@pytest.mark.parametrize(
    ("text", "english"),
    [
        ("What was it?", True),
        ("Marlow 40 mass", True),
        ("Was war das?", False),
        ("¿Qué era?", False),
        ("这是什么？", False),
        ("Größe", False),
    ],
)
def test_what_is_english(text: str, english: bool) -> None:
    assert is_english(text) is english
