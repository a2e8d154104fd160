"""The shipped model does what its card says, on text and questions written for this test alone."""

from typing import Any

import torch

from eval.reader.data import NOWHERE, Example, Question
from eval.reader.evaluate import answers
from eval.reader.packing import Packer
from service.reader import verify_model

SENTENCES = [
    "The ferry to Marrow Island leaves every morning at seven.",
    "In winter the crossing takes two hours, because the captain avoids the northern reefs.",
    "Tickets are sold at a green kiosk behind the fish market.",
    "Old Henrietta Vance has kept the lighthouse since her husband drowned.",
    "She paints the railings blue each spring and counts the herons.",
    "The village school closed when only three pupils were left.",
    "Its bell was moved to the chapel, where it rings for storms.",
    "Smugglers once hid brandy in the caves below the cliff.",
    "A geologist from Bergen measured the caves and drew a careful map.",
    "The map hangs in the post office beside the tide tables.",
    "Fresh water comes from a single well near the pine wood.",
    "In the dry summer of 1921 the well failed and water was shipped in barrels.",
    "The islanders speak a dialect that visitors seldom understand.",
    "Every August they race small boats painted like birds.",
    "The winner receives a loaf of rye bread and a silver spoon.",
    "The access code of the boathouse is 58213.",
    "The weight of the great anchor is 740 kilograms.",
]
ASKED = {
    "When does the ferry to Marrow Island leave?": 0,
    "Why does the crossing take two hours in winter?": 1,
    "Where are tickets sold?": 2,
    "Who has kept the lighthouse?": 3,
    "What does she do with the railings?": 4,
    "When did the village school close?": 5,
    "What did smugglers hide in the caves?": 7,
    "Who measured the caves and drew a map?": 8,
    "Where does fresh water come from?": 10,
    "What happened in the dry summer of 1921?": 11,
    "Which dialect do the islanders speak?": 12,
    "What does the winner receive?": 14,
    "What is the access code of the boathouse?": 15,
    "What is the weight of the great anchor?": 16,
    "How many elephants live in Kenya?": NOWHERE,
    "Who invented the telephone?": NOWHERE,
}
RIGHT, QUOTED = 13, 13
"""Of 16 questions; see the model card for figures on longer and harder text."""


def test_the_files_are_those_of_the_manifest() -> None:
    assert {"model.safetensors", "tokenizer.json", "README.md"} <= set(verify_model())


def test_it_answers_plain_questions_by_quoting(reader_model: Any, packer: Packer) -> None:
    example = Example(SENTENCES, [Question(text, answer, "plain") for text, answer in ASKED.items()])
    given = answers(reader_model, packer, example)
    wrong = [a.question.text for a in given if not a.right]
    assert len(given) - len(wrong) >= RIGHT, wrong
    assert sum(a.quoted for a in given) >= QUOTED


def test_reading_an_answer_in_one_forward_equals_generating_it(reader_model: Any, packer: Packer) -> None:
    text = "Where are tickets sold?"
    ids = packer.context(SENTENCES, packer.references[: len(SENTENCES)])
    ids += [packer.question, *packer.encode(text), packer.answer]
    said = reader_model.generate(torch.tensor([ids]), max_new_tokens=40, do_sample=False)[0, len(ids) :].tolist()
    (answer,) = answers(reader_model, packer, Example(SENTENCES, [Question(text, 2, "plain")]))
    truth = [packer.references[2], *packer.encode(SENTENCES[2]), packer.end]
    assert answer.quoted == (said == truth)
