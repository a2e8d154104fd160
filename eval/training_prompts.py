"""Prompts that a drafter is trained on the answers to: ``python -m eval.training_prompts XQUAD OUTPUT.jsonl``.

Of the kinds that Spec-Bench asks (writing, roleplay, explaining, code, reasoning, sums, questions, passages, summaries,
translations), none of them its own: sentences put together here, and the English and German paragraphs and questions of
XQuAD. A drafter learns what its target says, so that what it is asked must be as various as what it will be asked.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_TOPICS = (
    "the first day at a new school", "a lighthouse keeper", "saving water at home", "a lost dog that finds its way",
    "moving to another city", "learning the violin", "a small bakery", "renewable energy", "a rainy afternoon",
    "the benefits of reading", "a trip by train through the Alps", "growing tomatoes", "working from home",
    "a robot that learns to paint", "healthy breakfasts", "an old clock", "the history of bicycles", "friendship",
    "a night market", "protecting forests", "public libraries", "a mountain village in winter", "learning a language",
    "volunteering", "a chess game between two strangers",
)  # fmt: skip
_KINDS = (
    "Write a short story about {}.", "Write a poem about {}.", "Write a blog post about {}.",
    "Draft a friendly email about {}.", "Write a persuasive paragraph about {}.",
    "Give me an outline for an essay about {}.", "Write a news report about {}.",
    "Write a dialogue between two people about {}.",
)  # fmt: skip
_ROLES = (
    "a travel guide in Lisbon", "a ship's captain in 1750", "a doctor who explains things simply", "a museum curator",
    "a patient maths teacher", "a detective at the scene of a theft", "a cook in a busy restaurant",
    "an astronaut on the Moon", "a librarian", "a gardener", "a medieval blacksmith", "a football coach",
)  # fmt: skip
_AS = (
    "Imagine you are {}. Introduce yourself and tell me about your day.",
    "Imagine you are {}. Give me three pieces of advice for a beginner.",
    "Imagine you are {}. Answer a visitor who asks why your work matters.",
    "Imagine you are {}. Describe what you see in front of you.",
)  # fmt: skip
_CONCEPTS = (
    "how vaccines work", "why the sky is blue", "what inflation is", "how a battery stores energy",
    "the causes of the First World War", "what DNA does", "how rainbows form", "the water cycle",
    "the difference between weather and climate", "how computers store numbers", "what a black hole is",
    "the Renaissance", "supply and demand", "how earthquakes happen", "the separation of powers", "photosynthesis",
    "Newton's laws of motion", "how the heart works", "the Roman Republic", "plate tectonics", "what an algorithm is",
    "probability and independence", "the periodic table", "how elections work", "the theory of evolution", "stoicism",
    "the industrial revolution", "how sound travels", "what philosophy is about", "the structure of the atom",
)  # fmt: skip
_EXPLAIN = (
    "Explain {} in simple terms.", "What should everyone know about {}? Answer in detail.",
    "Give an overview of {} with examples.",
)  # fmt: skip
_FUNCTIONS = (
    "reverses a linked list", "finds the most common word in a text file", "checks whether a string is a palindrome",
    "merges two sorted lists", "computes the greatest common divisor of two numbers",
    "reads a CSV file and prints the mean of each column", "implements binary search",
    "counts the vowels in a sentence", "sorts a list of dictionaries by a key", "generates the first n prime numbers",
    "implements a stack with push and pop", "converts Celsius to Fahrenheit", "finds duplicates in a list",
    "validates an email address with a regular expression", "computes a moving average", "flattens a nested list",
    "implements a queue with two stacks", "draws a triangle of stars",
)  # fmt: skip
_CODE = (
    "Write a Python function that {}.", "Write a program in Python that {}, and explain it step by step.",
    "Show me JavaScript code that {}.",
)  # fmt: skip
_NAMES = (
    "Anna", "Ben", "Clara", "David", "Elena", "Frank", "Grace", "Hugo", "Ivy", "Jack", "Kira", "Leo", "Mona", "Nils",
)  # fmt: skip
_REASONING = (
    "If all roses are flowers and some flowers fade quickly, do some roses fade quickly? Explain.",
    "Which is heavier, a kilogram of feathers or a kilogram of iron, and why do people get it wrong?",
    "A farmer must bring a wolf, a goat and a cabbage over a river. Describe how.",
    "Put these in order of size and explain: a whale, a mouse, a horse, a bee.",
    "Why might a city decide to close its centre to cars? Give arguments for and against.",
    "My plant loses its leaves. What may be the reasons, and how do I find out which one it is?",
    "Compare trains and planes for a journey of 500 kilometres.",
    "Three friends share a bill and one forgot his money. Suggest a fair way to settle it.",
    "What would happen if the Earth turned twice as fast?",
    "Plan a weekend in a city with little money.",
)
_LONGEST = 800  # characters of a paragraph, so that prompt and answer fit a sequence


def prompts(xquad: Path, seed: int = 0) -> list[str]:
    """About 550 prompts, in an order that `seed` decides; `xquad` is the folder of XQuAD's files."""
    draw = random.Random(seed)
    english, german = (_paragraphs(xquad / f"xquad.{language}.json") for language in ("en", "de"))
    found = [*_made_up(draw), *_of_paragraphs(english, german, draw)]
    found = list(dict.fromkeys(found))
    draw.shuffle(found)
    return found


def _made_up(draw: random.Random) -> Iterator[str]:
    for kinds, subjects in ((_KINDS, _TOPICS), (_AS, _ROLES), (_EXPLAIN, _CONCEPTS), (_CODE, _FUNCTIONS)):
        for subject in subjects:
            for _ in range(2):
                yield draw.choice(kinds).format(subject)
    yield from _REASONING
    for _ in range(80):
        yield _sum(draw)


def _sum(draw: random.Random) -> str:
    a, b, c, d = (draw.randint(2, 12) for _ in range(4))
    one, other = draw.sample(_NAMES, 2)
    return draw.choice([
        f"{one} has {a * b} marbles and gives {other} {a} of them. Then {one} buys {c} bags with {d} marbles each. "
        f"How many marbles does {one} have now?",
        f"A shop sells pens for ${a} and books for ${b + 10}. {one} buys {c} pens and {d} books. How much does {one} "
        "pay in all?",
        f"{one} runs {a} miles every day from Monday to Friday and {b} miles on each day of the weekend. How many "
        f"miles does {one} run in {c} weeks?",
        f"A train travels {a * 10} miles in {b} hours. At the same speed, how far does it travel in {c} hours?",
        f"{one} earns ${a + 8} an hour and works {b} hours a day. After {c} days {one} spends ${d * 10}. How much "
        "money is left?",
        f"There are {a * b} students in {b} classes of equal size. In each class {min(c, a)} students play football. "
        "How many students do not play football?",
        f"{one} reads {a + 10} pages a day. {other} reads twice as many. How many pages do they read together in {c} "
        "days?",
        f"A box holds {a} rows of {b} apples. {one} sells {c} boxes for ${d} each. How many apples were sold, and for "
        "how much money?",
        f"The sum of two numbers is {a + b} and their difference is {abs(a - b)}. What are the numbers?",
        f"A recipe for {a} people needs {b * a} grams of flour. How much flour is needed for {c + a} people?",
    ])  # fmt: skip


def _of_paragraphs(english: list[Any], german: list[Any], draw: random.Random) -> Iterator[str]:
    short = [one for one in english if len(one["context"]) < _LONGEST]
    for one in draw.sample(english, 100):
        yield from (asked["question"] for asked in draw.sample(one["qas"], 1))
    asks = ["Answer the question from the text.", "Use the following passage to answer the question."]
    for one in draw.sample(short, 70):
        ask = draw.choice(asks)
        yield f"{ask}\n\n{one['context']}\n\nQuestion: {draw.choice(one['qas'])['question']}"
    summaries = [
        "Summarize: {}",
        "Summarize the following text in a few sentences.\n\n{}",
        "{}\n\nSummarize the text above.",
    ]
    for one in draw.sample(short, 50):
        yield draw.choice(summaries).format(one["context"])
    lists = [
        "List all names, dates and numbers in this text.\n\n{}",
        "Extract the key facts of this text as a list.\n\n{}",
    ]
    for one in draw.sample(short, 20):
        yield draw.choice(lists).format(one["context"])
    for one in draw.sample(german, 70):
        count = draw.choice([1, 1, 2, 3])
        ask = draw.choice(["Translate German to English: {}", "Translate this into English: {}"])
        yield ask.format(". ".join(one["context"].split(". ")[:count])[:600])


def _paragraphs(file: Path) -> list[Any]:
    articles = json.loads(file.read_text(encoding="utf-8"))["data"]
    return [paragraph for article in articles for paragraph in article["paragraphs"]]


def main() -> None:
    xquad, output = map(Path, sys.argv[1:])
    lines = [json.dumps({"prompt": text}, ensure_ascii=False) for text in prompts(xquad)]
    output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
