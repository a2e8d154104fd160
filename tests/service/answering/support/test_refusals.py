"""A refusal in any wording is one; content, and a refusal that goes on to answer, is none."""

from __future__ import annotations

import time

import pytest

from service.answering.answer import NOTHING_FOUND
from service.answering.prompting.styles import NOT_STATED
from service.answering.support.refusals import is_refusal

REFUSALS = [
    NOT_STATED,
    NOTHING_FOUND,
    "The documents do not say",
    "The documents do not say. [1]",
    '"The documents do not say."',
    "Answer: The documents do not say.",
    "The documents do not say who built the bridge.",
    "The passages don't mention the length of the bridge.",
    "The provided documents do not contain the answer to this question.",
    "The document does not provide any information about the number of employees.",
    "The text does not specify when it was built.",
    "None of the passages mention the length of the bridge.",
    "None of the documents say.",
    "There is no information about the length of the bridge in the documents.",
    "There is no mention of a tunnel in the given passages.",
    "Based on the given documents, there is no information about the height of the tower.",
    "According to the passages, the documents do not say.",
    "The answer is not stated in the passages above.",
    "The length of the bridge is not mentioned in the documents.",
    "The length is not explicitly stated in the provided text.",
    "The information is not available.",
    "It is not clear from the passages how long the bridge is.",
    "Not mentioned.",
    "Not specified in the documents.",
    "I do not know.",
    "I don't know the answer to that question.",
    "I'm sorry, but I cannot answer this question from the documents.",
    "I'm sorry, I don't have enough information to answer your question. Please provide more context.",
    "I cannot determine the height of the tower from the passages.",
    "Unfortunately, the documents do not contain this information.",
    "The documents do not say how long it is. They only mention that it was finished in 1862.",
    "It is impossible to determine from the given passages.",
    "The real name of the man whom Dick calls Boffin is not revealed in the passage.",
    "The passage is about the phenomenon of resonance, but the answer is not provided.",
    "The passage does not state the answer to the question.",
    "The document does not contain the answer to the question.",
    "The documents do not say. The passage does not contain the answer to the question.",
    "The document does not say who brought out the first book about electricity that follows a scientific method.",
    "Unknown.",
    "Die Dokumente sagen dazu nichts.",
    "Dazu steht nichts in den Dokumenten.",
    "In den Dokumenten steht nicht, wer die Brücke gebaut hat.",
    "Die Dokumente enthalten keine Informationen über die Länge der Brücke.",
    "Die Länge der Brücke wird in den Dokumenten nicht erwähnt.",
    "Das geht aus den vorliegenden Texten nicht hervor.",
    "Es gibt keine Angaben zur Länge der Brücke.",
    "Ich weiß es nicht.",
    "Leider kann ich diese Frage nicht beantworten.",
    "Los documentos no lo dicen.",
    "Los documentos no mencionan la longitud del puente.",
    "No hay información sobre la longitud del puente en los documentos.",
    "La longitud del puente no se menciona en los documentos.",
    "No lo sé.",
    "Lo siento, no puedo responder a esta pregunta.",
    "Les documents ne le disent pas.",
    "Les documents ne mentionnent pas la longueur du pont.",
    "Il n'y a pas d'information sur la longueur du pont.",
    "La longueur du pont n’est pas mentionnée dans les documents.",
    "Je ne sais pas.",
    "文档中没有提到桥的长度。",
    "文件没有说明。",
    "根据提供的资料，无法回答这个问题。",
    "我不知道。",
    "抱歉，文中没有相关信息。",
    "未提及。",
]
ANSWERS = [
    "",
    "Ada Merrow built the bridge.",
    "The law does not say that a tenant must pay in advance.",
    "The law does not mention dogs.",
    "The contract contains no information on prices.",
    "The treaty did not provide any compensation to the farmers.",
    "The documents do not say. However, the bridge was finished in 1862.",
    "The documents do not say who planned it, but Ada Merrow built it.",
    "Ada Merrow built it. The documents do not say when.",
    "I do not know him, said the king.",
    "She said that she did not know the answer.",
    "The documents were not signed by the minister.",
    "The documents do not say that the bridge is closed.",
    "The passage does not specify what resonance is, but it does say that it is a phenomenon of sound.",
    "The passage about the Chinese using the compass is dated to 2634 b.c.",
    "The passage was closed in 1901.",
    "No information may be given to third parties without consent.",
    "There is no evidence that the drug works better than a placebo.",
    "It is unclear whether the sun will rise, wrote Hume in 1748.",
    "Unknown to the king, the army had left.",
    "Nothing was found in the tomb.",
    "The text was written in 1862. It does not mention the war.",
    "The author of the letter is unknown.",
    "Das Gesetz sagt nicht, dass Mieter im Voraus zahlen müssen.",
    "Die Brücke wurde nicht fertig.",
    "Die Brücke wurde 1862 gebaut. Mehr sagen die Dokumente nicht.",
    "La ley no dice que los inquilinos deban pagar.",
    "El puente no se terminó.",
    "La loi ne dit pas que le locataire doit payer.",
    "Le pont n'est pas terminé.",
    "法律没有说明租户必须预付。",
    "桥长三百米。",
    "文档没有提到，但是桥长三百米。",
]


@pytest.mark.parametrize("text", REFUSALS)
def test_a_refusal_is_one_in_any_wording(text: str) -> None:
    assert is_refusal(text)
    assert is_refusal(f"  {text}\n")


@pytest.mark.parametrize("text", ANSWERS)
def test_content_and_answers_behind_a_refusal_are_none(text: str) -> None:
    assert not is_refusal(text)


@pytest.mark.parametrize(
    "unit", ["the documents ", "in the, ", "no ", "没有", "the given provided available ", "ne ", "a"]
)
def test_no_text_takes_long(unit: str) -> None:
    began = time.perf_counter()
    for ending in ("", " do not", "。"):
        is_refusal((unit * 800)[:790] + ending)
    assert time.perf_counter() - began < 1
