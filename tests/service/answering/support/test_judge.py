"""The rule of support: what carries a claim, and the false answers that no rule may let pass."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.qa.support import figures, verdicts
from eval.qa.support_pairs import HALVES, pairs
from service.answering.passages import Passage
from service.answering.support.judge import Judge, Supported, judge

MODEL = "In this model the pressure is p = ωρ, with −1 ≤ ω ≤ 1."
PEOPLE = (
    "Ada Lovelace retired in 2005 after 30 years. The company has 10,000 employees. The Broncos beat the Panthers [2]. "
    "The bridge at Hampton was built by Ada in 1887. It has seven arches. Joe owned the mill until 12 May 1902."
)


def passages(*texts: str) -> list[Passage]:
    return [Passage(f"d{n}", f"{n}.txt", 50, 50 + len(text), None, text) for n, text in enumerate(texts)]


def support(answer: str, *texts: str, finished: bool = True) -> list[str]:
    return [one.support for one in judge(answer, passages(*texts or (PEOPLE,)), finished)]


def test_a_stored_sentence_is_verbatim_and_its_span_exact() -> None:
    (one,) = judge("The company has 10,000 employees.", passages(PEOPLE))
    assert (one.support, one.score) == ("verbatim", 1.0)
    (span,) = one.spans
    assert span.cited_text == "The company has 10,000 employees." == PEOPLE[span.start - 50 : span.end - 50]
    assert (span.document, span.label, span.quoted, span.answer_start, span.answer_end) == ("d0", 1, True, 0, 33)


@pytest.mark.parametrize(
    "claim",
    [
        "p = ω ≤ 1.",
        "The pressure is p = ω ≤ 1.",
        "In this model the pressure is p = ω, with −1 ≤ ω ≤ 1.",
        "In this model the pressure is p = ωρ ≤ 1.",
        "The pressure is p ≤ ωρ.",
    ],
)
def test_a_formula_is_whole_or_not_there(claim: str) -> None:
    assert support(claim, MODEL) == ["none"]
    assert support("The pressure is p = ωρ.", MODEL) == ["attributed"]


@pytest.mark.parametrize(
    ("claim", "expected"),
    [
        ("Ada Lovelace retired in 2005.", "attributed"),
        ("Ada Lovelace retired in 2019.", "none"),
        ("The company has ten thousand employees.", "attributed"),
        ("The company has 10000 employees.", "attributed"),
        ("The company has 1,900 employees.", "none"),
        ("Joe owned the mill until 1902-05-12.", "attributed"),
        ("Joe owned the mill until May 12, 1902.", "attributed"),
        ("Joe owned the mill until 5 December 1902.", "none"),
        ("Joe owned the mill until 12 May 1920.", "none"),
        ("Ada built the bridge at Hampton.", "attributed"),
        ("The bridge at Hampton was built.", "attributed"),
        ("Joe built the bridge at Hampton.", "none"),
        ("Ada owned the mill until 12 May 1902.", "none"),
        ("The Panthers beat the Broncos.", "none"),
        ("The Panthers were beaten by the Broncos.", "attributed"),
        ("The Broncos were beaten by the Panthers.", "none"),
        ("The bridge at Hampton has seven arches.", "attributed"),
        ("The mill has seven arches.", "none"),
        ("The bridge at Hampton was built by Ada in 1887 and Joe owned the mill.", "attributed"),
        ("The bridge at Hampton was built by Joe in 1887 and Ada owned the mill.", "none"),
        ("The bridge at Hampton was built by Ada in 1902.", "none"),
        ("Ada Lovelace", "none"),
        ("In 2005.", "none"),
        ("Who retired in 2005?", "none"),
    ],
)
def test_every_fact_of_a_claim_stands_in_its_role(claim: str, expected: str) -> None:
    assert support(claim) == [expected]


def test_a_reference_of_a_document_cites_nothing() -> None:
    (one,) = judge("The Broncos beat the Panthers [2].", passages(PEOPLE, "An other text tells of unicorns."))
    assert [span.document for span in one.spans] == ["d0"]
    assert support("Unicorns beat the Panthers [2].", PEOPLE, "An other text tells of unicorns.") == ["none"]


@pytest.mark.parametrize(
    ("stored", "claim"),
    [
        ("Smoking may cause cancer.", "Smoking causes cancer."),
        ("Smoking may cause cancer.", "Smoking does cause cancer."),
        ("The budget increased by 10% in 2010.", "The budget decreased by 10% in 2010."),
        ("The budget increased by 10% in 2010.", "The budget increased by 10 dollars in 2010."),
        ("All cats in the house sleep at noon.", "Some cats in the house sleep at noon."),
        ("Some cats in the house sleep at noon.", "All cats in the house sleep at noon."),
        ("More than ten people came to the feast.", "Less than ten people came to the feast."),
        ("More than ten people came to the feast.", "Ten people came to the feast."),
        ("Neither Tom nor Eva saw the wolf.", "Eva saw the wolf."),
        ("It is not true that the elm has died out.", "The elm has died out."),
        ("Critics claim that the elm has died out.", "The elm has died out."),
        ("If it rains, the feast is held indoors.", "The feast is held indoors."),
        ("The feast is held indoors unless it is warm.", "The feast is held indoors."),
        ("Not all odd numbers are prime.", "All odd numbers are prime."),
        ("The brother of Anna Berg shot a wolf.", "Anna Berg shot a wolf."),
        ("Anna Berg, unlike her brother, owned a gun.", "Her brother owned a gun."),
        ("Anna refused to build the bridge.", "Anna built the bridge."),
        ("Anna paid Tom to build the bridge.", "Anna built the bridge."),
        ("Tom dreamed that the elm had died out.", "The elm had died out."),
        ("Tom dreamed the elm had died out.", "The elm had died out."),
        ("Joe owned the mill and Ada sold the bridge.", "Joe sold the bridge."),
        ("Ada met the sister of Joe, who built the bridge.", "Joe built the bridge."),
        ("Ada met Joe, whom Tom had paid.", "Joe had paid Tom."),
        ("Tom is served by Route 99, the main road of Basel.", "Basel is the main road."),
        ("The train runs from Basel to Milan.", "The train runs from Milan to Basel."),
        ("She was born in 1815 and died in 1852.", "She was born in 1852 and died in 1815."),
        ("The shop sells 400 apples and 30 pears a day.", "The shop sells 30 apples and 400 pears a day."),
        ("Der Turm ist 57,5 Meter hoch.", "Der Turm ist 575 Meter hoch."),
        ("Der Turm ist 1.900 Meter vom Hafen entfernt.", "Der Turm ist 1,9 Meter vom Hafen entfernt."),
        ("Hunde dürfen nicht auf den Turm.", "Hunde dürfen auf den Turm."),
        ("El molino no pertenecía a Molina.", "El molino pertenecía a Molina."),
        ("Le moulin n'appartenait pas à Moulin.", "Le moulin appartenait à Moulin."),
        ("磨坊不属于王明。", "磨坊属于王明。"),
    ],
)
def test_an_operator_a_role_or_a_figure_that_changed_is_another_claim(stored: str, claim: str) -> None:
    assert support(claim, stored) == ["none"]
    assert support(stored, stored) == ["verbatim"]


def test_what_repeats_itself_or_is_cut_is_never_supported() -> None:
    sentence = "The company has 10,000 employees."
    assert support(f"{sentence} {sentence} {sentence}") == ["verbatim", "none", "none"]
    assert support("The company has 10,000 employees and has 10,000 employees and has 10,000 employees.") == ["none"]
    assert support("The company has 10,000 employ\ufffd") == ["none"]
    assert support(sentence, finished=False) == ["none"]
    assert support("A worn wheel shows itself by", "A worn wheel shows itself by\n- noise\n- heat") == ["none"]
    assert support(f"{sentence} Ada Lovelace retired in 2005.", finished=False) == ["verbatim", "none"]


@pytest.mark.parametrize(
    "evidence", ["", "Yes", "a" * 400, "aaaa aaaa aaaa aaaa", "ᚠᚢᚦᚨᚱᚲ", ". . .", "\ufffd\ufffd\ufffd"]
)
def test_poor_evidence_supports_nothing(evidence: str) -> None:
    for answer in (evidence, "The answer is yes.", f"{evidence} {evidence}"):
        assert all(one == "none" for one in support(answer, evidence))
    assert not Judge(passages(evidence)).can_support


def test_that_nothing_is_said_is_no_claim() -> None:
    assert support("The documents do not say.") == []


def test_cells_stand_for_their_row_and_column() -> None:
    rows = "Budget | Zone: EUR | Amount: 1,001.00\nBudget | Zone: USD | Amount: 2,340.50"
    table = "| Zone | Amount |\n|---|---|\n| EUR | {} |\n| USD | 2,340.50 |"
    assert support(table.format("1,001.00"), rows) == ["attributed", "attributed"]
    assert support(table.format("2,340.50"), rows) == ["none", "attributed"]
    years = "| Item | 2022 |\n|---|---|\n| Sales | {} |"
    assert support(years.format(7), "Sales | 2021: 5 | 2022: 7") == ["attributed"]
    assert support(years.format(5), "Sales | 2021: 5 | 2022: 7") == ["none"]


def test_an_item_says_what_its_list_is_announced_to_hold() -> None:
    text = "The trees of the valley are oaks, limes and elms. The birds of the valley are owls."
    assert support("The trees of the valley are:\n- oaks\n- limes", text) == ["attributed", "attributed"]
    assert support("The trees of the valley are:\n- oaks\n- owls", text) == ["attributed", "none"]


def test_judging_as_the_answer_grows_is_judging_it_whole() -> None:
    answer = "The company has 10,000 employees. It has 1,900 shops. Ada Lovelace retired in 2005. The Broncos won."
    growing = Judge(passages(PEOPLE))
    for end in range(len(answer)):
        growing.judge(answer[:end], finished=False)
    assert growing.judge(answer) == judge(answer, passages(PEOPLE))


def test_a_claim_over_half_a_million_characters_is_judged_at_once() -> None:
    words = [f"w{n % 4999}" for n in range(80_000)]
    filler = " ".join(" ".join(["the", *words[n : n + 15]]).capitalize() + "." for n in range(0, len(words), 15))
    judged = Judge(passages(f"{filler} {PEOPLE}"))
    judged.judge("The company has 10,000 employees. Ada", finished=False)
    began = time.thread_time()
    found = judged.judge(
        "The company has 10,000 employees. Ada Lovelace retired in 2005. Joe built it. And", finished=False
    )
    assert [one.support for one in found] == ["verbatim", "attributed", "none", "none"]
    assert time.thread_time() - began < 0.1  # two claims


# Sentences as people write them: a name, a verb, words, a year, a negation.
_NAMES = st.sampled_from(["Ada Miller", "Joseph Hart", "Karin Holm", "The council", "The old bridge"])
_VERBS = st.sampled_from(["built", "did not own", "was never seen in", "has kept", "may have sold", "owned"])
_THINGS = st.sampled_from(["the mill", "seven boats", "the grey house", "all the maps", "some of the land"])
_TAILS = st.builds("in {} near {}".format, st.integers(1000, 2100), st.sampled_from(["Leeds", "the river", "Basel"]))
_SENTENCES = st.builds("{} {} {} {}.".format, _NAMES, _VERBS, _THINGS, _TAILS)
_EVIDENCE = st.lists(_SENTENCES, min_size=1, max_size=5, unique=True)


@settings(deadline=None)
@given(_EVIDENCE, st.data())
def test_a_sentence_of_the_evidence_is_verbatim(evidence: list[str], data: st.DataObject) -> None:
    sentence = data.draw(st.sampled_from(evidence))
    assert support(sentence, *evidence) == ["verbatim"] == support(sentence, " ".join(evidence))


@settings(deadline=None)
@given(_EVIDENCE, st.data())
def test_a_changed_digit_is_never_supported(evidence: list[str], data: st.DataObject) -> None:
    sentence = data.draw(st.sampled_from(evidence))
    at = data.draw(st.sampled_from([n for n, c in enumerate(sentence) if c.isdigit()]))
    changed = (
        sentence[:at] + data.draw(st.sampled_from([d for d in "0123456789" if d != sentence[at]])) + sentence[at + 1 :]
    )
    assert support(changed, *[each for each in evidence if each != changed]) == ["none"] or changed in evidence


@settings(deadline=None)
@given(_EVIDENCE, st.data())
def test_a_negation_taken_away_is_never_supported(evidence: list[str], data: st.DataObject) -> None:
    negated = [each for each in evidence if " not " in each or " never " in each]
    if negated:
        sentence = data.draw(st.sampled_from(negated))
        changed = sentence.replace("did not own", "owned").replace("was never", "was")
        assert support(changed, *[each for each in evidence if each != changed]) == ["none"] or changed in evidence


@settings(deadline=None)
@given(_EVIDENCE, st.text(max_size=40), st.data())
def test_other_text_beside_it_raises_no_support(evidence: list[str], noise: str, data: st.DataObject) -> None:
    sentence = data.draw(_SENTENCES)
    alone = support(sentence, *evidence)[0]
    joined = data.draw(st.sampled_from([f"{sentence[:-1]} and {noise}.", f"{noise} {sentence}", f"{sentence} {noise}"]))
    of_this = [one for one in judge(joined, passages(*evidence)) if sentence[:-1] in one.claim.text]
    assert alone != "none" or all(one.support == "none" for one in of_this)


@settings(deadline=None)
@given(st.text(max_size=200), st.text(max_size=200))
def test_no_text_breaks_it_and_spans_are_slices(answer: str, evidence: str) -> None:
    for one in judge(answer, passages(evidence)):
        assert isinstance(one, Supported)
        assert (one.support != "none") == bool(one.spans)
        for span in one.spans:
            assert evidence[span.start - 50 : span.end - 50] == span.cited_text


@pytest.mark.parametrize("half", HALVES)
def test_precision_and_recall_on_judged_pairs(half: str) -> None:
    found = figures(verdicts(pair for pair in pairs() if pair.half == half))
    assert found["precision"]["value"] >= 0.95
    assert found["recall"]["value"] >= 0.80
