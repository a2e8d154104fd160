"""Prompts: the official text, the official truncation, and room for the answer."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.errors import EvalError
from eval.harness.prompting import LayoutPrompter, OfficialPrompter, official_text, truncate_middle
from eval.tasks.example import Example
from service.answering.prompting.layouts import PlainLayout


def example(task, context="CTX", question="Q?", answer="A", options=()):
    return Example(0, task, context, question, answer, options)


def test_prompts_are_the_official_ones_word_for_word():
    assert official_text(example("passkey"), "yarn") == (
        "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. I will quiz you "
        "about the important information.\n\nCTX\n\nQ?\n\nThe pass key is"
    )
    asked = "You should answer with only one number, no other words. The second largest number of the list is: "
    assert official_text(example("math_find", "[1, 2]", asked), "gpt4") == (
        f"What is the second largest number in the following list?\n\n[1, 2]\n\n{asked}"
    )
    called = "Please give me the exact number of the return value of func_12(-3). Your response …"
    assert official_text(example("code_run", "CODE", called), "yarn") == (
        "There is a function called func_12 in the following Python code.\n\nCODE\n\nPlease compute the exact value of "
        "func_12(-3). The value of func_12(-3) is"
    )
    choice = official_text(example("longbook_choice_eng", options=("a", "b", "c", "d")), "yarn")
    assert choice.endswith("Question: Q?\nA. a\nB. b\nC. c\nD. d\n\nThe letter of the correct answer is")


def test_braces_in_a_context_are_text():
    assert "{context} {0}" in official_text(example("passkey", "{context} {0}"), "gpt4")


def test_an_example_without_options_is_named():
    with pytest.raises(EvalError, match="OPTION_A"):
        official_text(example("longbook_choice_eng"), "yarn")


@given(st.lists(st.integers(), max_size=60), st.integers(2, 40))
def test_truncation_keeps_both_ends(ids, limit):
    for prompt_set in ("gpt4", "yarn"):
        kept = truncate_middle(ids, limit, prompt_set)
        if len(ids) <= limit:
            assert kept == ids
        else:
            assert len(kept) == (limit if prompt_set == "gpt4" else 2 * (limit // 2))
            assert kept[: limit // 2] == ids[: limit // 2]
            assert kept[limit // 2 :] == ids[len(ids) - (len(kept) - limit // 2) :]


@settings(max_examples=25, deadline=None)
@given(
    limit=st.integers(60, 900),
    text=st.text("aé漢 .\n", min_size=0, max_size=800),
    kind=st.sampled_from(["gpt4", "yarn", "layout"]),
)
def test_no_prompt_is_longer_than_its_limit(tokenizer, limit, text, kind):
    prompter = (
        LayoutPrompter(tokenizer, PlainLayout(tokenizer)) if kind == "layout" else OfficialPrompter(tokenizer, kind)
    )
    whole = prompter.count(example("longbook_qa_eng", text))
    fixed = prompter.count(example("longbook_qa_eng", ""))
    if kind == "layout" and limit < fixed + 40:
        return
    made = prompter.build(example("longbook_qa_eng", text), limit)
    assert len(made.ids) <= limit
    assert (made.cut_tokens > 0) == (whole > limit)


def test_math_calc_for_gpt4_is_the_official_conversation(tokenizer):
    made = OfficialPrompter(tokenizer, "gpt4").build(example("math_calc", "1 + 2"), 5000)
    assert [message["content"] for message in made.messages[1:]] == ["1 + 2 - 4 - 10", "[1, 3, -1, -11]", "1 + 2"]
    assert made.messages[0]["content"].startswith("You are a calculator does nothing but")
