"""Measure the reader on text it has never seen: ``python -m eval.reader.evaluate DIR --text FILE --json OUT``.

Runs the model with plain transformers. Contexts are consecutive sentences of the text, references are dealt
in order as the layout deals them, the context is read once and each question continues from its cache; answers
are greedy. A question counts as *right* if the reference is that of the sentence it was made from
(or of one with the same words), as *quoted* if the whole sentence also follows, word for word.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from eval.reader.data import FRAMES, NOWHERE, UNSEEN_FRAMES, Example, Maker, Question
from eval.reader.packing import Packer
from service.reader.sentences import split
from service.reader.tokenizer import REFERENCES


@dataclass(frozen=True, slots=True)
class Answer:
    """What the reader said: right reference, and the right words behind it."""

    question: Question
    right: bool
    quoted: bool


def load(folder: str) -> tuple[Any, Packer]:
    """The model in float32 and its packer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, Packer(AutoTokenizer.from_pretrained(folder))


@torch.no_grad()
def answers(model: Any, packer: Packer, example: Example) -> list[Answer]:
    """The reader's answers to the questions of one context, read once.

    A greedy answer equals the expected one exactly if each of its tokens is the most likely one behind the
    tokens before it, so one forward over the expected answer tells.
    """
    references = [packer.references[i % REFERENCES] for i in range(len(example.sentences))]
    ids = packer.context(example.sentences, references)
    cache = model(torch.tensor([ids]), use_cache=True, logits_to_keep=1).past_key_values
    found = []
    for question in example.questions:
        asked = [packer.question, *packer.encode(question.text), packer.answer]
        truth = packer.answer_ids(example, references, question.answer)
        said = _likeliest(model, cache, len(ids), asked, truth)
        if said[0] != truth[0] and _same_words(example, references, question.answer, said[0]):
            truth = [said[0], *truth[1:]]
            said = _likeliest(model, cache, len(ids), asked, truth)
        found.append(Answer(question, said[0] == truth[0], said == truth))
    return found


def _likeliest(model: Any, cache: Any, length: int, asked: list[int], answer: list[int]) -> list[int]:
    """The likeliest token at each place of `answer`, given those before it; the cache is left as it was."""
    new = asked + answer[:-1]
    positions = torch.arange(length, length + len(new))[None]
    logits = model(
        torch.tensor([new]), past_key_values=cache, position_ids=positions, logits_to_keep=len(answer)
    ).logits[0]
    cache.crop(-len(new))
    return logits.argmax(-1).tolist()


def _same_words(example: Example, references: Sequence[int], answer: int, token: int) -> bool:
    if answer == NOWHERE or token not in references:
        return False
    return example.sentences[references.index(token)] == example.sentences[answer]


def passkeys(maker: Maker, rng: random.Random, tokens: int, count: int) -> Example:
    """A context with `count` pass keys at even depths, each of a name of its own, and a question for each."""
    sentences = maker.context(rng, tokens)
    names = rng.sample(sorted(maker.names), count)
    stated = [f"The pass key of {name} is {rng.randrange(10_000, 100_000)}." for name in names]
    for i, statement in enumerate(stated):
        sentences.insert(int((i + 0.5) / count * len(sentences)), statement)
    asked = [
        Question(f"What is the pass key of {name}?", sentences.index(statement), "passkey")
        for name, statement in zip(names, stated, strict=True)
    ]
    return Example(sentences, asked)


def measure(
    model: Any, packer: Packer, maker: Maker, *, tokens: int, contexts: int, questions: int, seed: int
) -> dict[str, Any]:
    """Share of right and of quoted answers by kind of question, over contexts of about `tokens` tokens."""
    rng = random.Random(f"{seed}:{tokens}")
    tally: dict[str, list[Answer]] = defaultdict(list)
    for _ in range(contexts):
        for answer in answers(model, packer, maker.example(rng, tokens, questions)):
            tally[answer.question.kind].append(answer)
    stated = [a for kind, given in tally.items() for a in given if a.question.answer != NOWHERE]
    made = [a for a in stated if a.question.kind in ("keywords", "phrase", "gap")]
    return {
        "tokens": tokens,
        "contexts": contexts,
        "quote": _share(made),
        "all stated": _share(stated),
        "by kind": {kind: _share(given) for kind, given in sorted(tally.items())},
    }


def _share(given: Sequence[Answer]) -> dict[str, float | int]:
    count = max(1, len(given))
    return {
        "questions": len(given),
        "right": round(sum(a.right for a in given) / count, 4),
        "quoted": round(sum(a.quoted for a in given) / count, 4),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m eval.reader.evaluate", description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--text", type=Path, required=True, help="a text the model was not trained on")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--lengths", type=int, nargs="*", default=[1024, 4096, 16_384])
    parser.add_argument("--passkey-lengths", type=int, nargs="*", default=[1024, 4096, 16_384, 32_768])
    parser.add_argument("--contexts", type=int, default=8, help="contexts at 1K; fewer at greater lengths")
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    model, packer = load(options.model)
    sentences = [s.words for s in split(options.text.read_text(encoding="utf-8"))]
    maker = Maker([sentences], packer.length, frames=(*FRAMES, *UNSEEN_FRAMES))
    report: dict[str, Any] = {
        "command": "python -m eval.reader.evaluate service/reader/model --text "
        f"{options.text.name} --contexts {options.contexts} --questions {options.questions} --seed {options.seed}",
        "text": options.text.name,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "quotes": [],
        "passkey": [],
    }
    started = time.perf_counter()
    for tokens in options.lengths:
        contexts = max(2, options.contexts * 1024 // tokens)
        asked = options.questions * options.contexts // contexts if tokens > 1024 else options.questions
        result = measure(
            model, packer, maker, tokens=tokens, contexts=contexts, questions=min(asked, 48), seed=options.seed
        )
        report["quotes"].append(result)
        print(json.dumps(result), file=sys.stderr, flush=True)
    for tokens in options.passkey_lengths:
        example = passkeys(maker, random.Random(f"{options.seed}:pass:{tokens}"), tokens, 10)
        result = {"tokens": tokens, **_share(answers(model, packer, example))}
        report["passkey"].append(result)
        print(json.dumps(result), file=sys.stderr, flush=True)
    report["seconds"] = round(time.perf_counter() - started, 1)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
