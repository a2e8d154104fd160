"""Train the sentence ranker's cross-encoder: low-rank changes to the packaged MiniLM.

    python -m eval.reader.ranking.train --selqa selqa-ass-{dev,test}.json --pairs src-test.txt tgt-test.txt \\
        --kept xquad.en.json --out DIR --minutes 25

The questions in passes, each with the passage that answers and one that does not; some of them once more where nothing
answers: the passage without its answer, or the question with a word of the passage put in for one of its own, since a
passage on the very subject that does not answer is what refusing is about. Stopped by the clock or by the steps, by the
share of which that has gone the learning rate has fallen. ``--out`` keeps a checkpoint every fifty steps, and the same
command goes on from it.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eval.reader.ranking import data
from eval.reader.ranking.data import Example, Passage
from retrieval.embedding.embedder import SentenceEmbedder
from retrieval.ranking.cross_encoder import SEP, WEIGHTS, first
from retrieval.ranking.features import COMMON

RANK = 16
BATCH = 8
CHECKPOINT = "checkpoint.pt"
CHECKPOINT_STEPS = 50
RATE = 6e-4
Marked = tuple[Passage, frozenset[int]]
"""A passage, and the numbers of its sentences that answer."""
SIZES = (300, 450, 700, 900)
"""Characters of the passages that are read: short ones show more questions in the same time."""
OTHER_SHARE = 0.7
"""Questions that are read with a passage which does not answer, besides the one that does."""
BARE_SHARE = 0.3
"""Questions that are asked once more of the passage without the sentences that answer."""
CHANGED_SHARE = 0.12
"""Questions that are asked once more with one word changed, of the passage as it stands."""
CONTEXT_SHARE = 0.5
"""Questions whose passages are read under their headings, where all of them have some."""
CONTEXT_TOKENS = 48
_WORD = re.compile(r"\w+")


class LowRank(nn.Module):
    """A linear layer whose weight stays, plus ``up @ down``; the bias learns."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.base.bias.requires_grad_(True)
        self.down = nn.Parameter(torch.randn(rank, base.in_features) / math.sqrt(base.in_features))
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, hidden: Tensor) -> Tensor:
        return self.base(hidden) + hidden @ self.down.T @ self.up.T


class Reader(nn.Module):
    """MiniLM with low-rank changes, and the head that scores the mean of a sentence's states."""

    def __init__(self, minilm: Path) -> None:
        super().__init__()
        from transformers import BertModel

        self.bert = BertModel.from_pretrained(minilm, add_pooling_layer=False).requires_grad_(False)
        layers: Any = self.bert.encoder.layer
        for layer in layers:
            attention = layer.attention
            for owner, name in (
                (attention.self, "query"),
                (attention.self, "key"),
                (attention.self, "value"),
                (attention.output, "dense"),
                (layer.intermediate, "dense"),
                (layer.output, "dense"),
            ):
                setattr(owner, name, LowRank(getattr(owner, name), RANK))
        for name, parameter in self.bert.named_parameters():
            if "LayerNorm" in name or "token_type" in name:
                parameter.requires_grad_(True)
        self.start = {n: p.detach().clone() for n, p in self.bert.named_parameters() if p.requires_grad}
        self.head = nn.Linear(self.bert.config.hidden_size, 1)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.constant_(self.head.bias, -2.0)

    def forward(self, rows: Sequence[Row]) -> list[Tensor]:
        """The logits of each row's sentences."""
        longest = max(len(row.ids) for row in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        types, mask = torch.zeros_like(ids), torch.zeros_like(ids)
        for n, row in enumerate(rows):
            ids[n, : len(row.ids)] = torch.tensor(row.ids)
            types[n, row.lead : len(row.ids)] = 1
            mask[n, : len(row.ids)] = 1
        states = self.bert(input_ids=ids, token_type_ids=types, attention_mask=mask).last_hidden_state
        means = [torch.stack([states[n, a:b].mean(0) for a, b in row.spans]) for n, row in enumerate(rows)]
        return list(self.head(torch.cat(means).float()).squeeze(1).split([len(row.spans) for row in rows]))

    def changes(self) -> dict[str, Tensor]:
        """What `Bert` adds to MiniLM's weights (`low_rank_changes`), and the head."""
        found: dict[str, Tensor] = {"head.weight": self.head.weight[0], "head.bias": self.head.bias[0]}
        for name, parameter in self.bert.named_parameters():
            if parameter.requires_grad:
                plain = name.replace(".base.", ".")
                if name.endswith((".up", ".down")):
                    owner, _, side = name.rpartition(".")
                    found[f"{owner}.weight.{side}"] = parameter
                else:
                    found[plain] = parameter - self.start[name]
        return {name: tensor.detach().clone() for name, tensor in found.items()}


@dataclass(frozen=True)
class Row:
    """Question and passage as the model reads them.

    Attributes:
        lead: tokens before the passage. spans: of the sentences, in tokens. marked: which sentences answer.
    """

    ids: tuple[int, ...]
    lead: int
    spans: tuple[tuple[int, int], ...]
    marked: frozenset[int]


class Encoding:
    """Texts to rows."""

    LONGEST = 320

    def __init__(self, minilm: Path) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(minilm / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def row(self, question: str, passage: Passage, marked: frozenset[int]) -> Row:
        ids, spans = first(self._ids(question)), []
        lead = len(ids)
        ids += self._ids(passage.context)[:CONTEXT_TOKENS]
        for sentence in passage.sentences:
            tokens = self._ids(sentence)[: self.LONGEST - len(ids)]
            if tokens:
                spans.append((len(ids), len(ids) + len(tokens)))
                ids += tokens
        return Row((*ids, SEP), lead, tuple(spans), frozenset(m for m in marked if m < len(spans)))

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids


def loss_of(logits: Sequence[Tensor], rows: Sequence[Row]) -> Tensor:
    """Of one question: every sentence's own decision, and the choice among all of them."""
    scores = torch.cat(list(logits))
    target = torch.cat([torch.tensor([float(n in row.marked) for n in range(len(row.spans))]) for row in rows])
    each = nn.functional.binary_cross_entropy_with_logits(scores, target, reduction="sum")
    if not target.any():
        return each
    choice = torch.logsumexp(scores, 0) - torch.logsumexp(scores[target.bool()], 0)
    return each + choice


def questions(
    examples: Sequence[Example], pool: Sequence[Passage], encoding: Encoding, seed: int
) -> Iterator[list[Row]]:
    """The rows of each question, for ever; those of a batch are of like length, as they are padded to the longest."""
    epoch = given = 0
    while True:
        draw = random.Random(seed + 7919 * epoch)
        for example in data.shuffled(examples, seed, epoch):
            if given % BATCH == 0:
                most = draw.choice(SIZES)
            for question, read, answers in asked(example, pool, draw):
                cut = [part_of(passage, marked, most, draw) for passage, marked in read]
                if draw.random() >= CONTEXT_SHARE or not all(passage.context for passage, _ in read):
                    cut = [(Passage(passage.sentences), marked) for passage, marked in cut]
                rows = [encoding.row(question, passage, marked if answers else frozenset()) for passage, marked in cut]
                if any(row.marked for row in rows) == answers:
                    given += 1
                    yield rows
        epoch += 1


def asked(example: Example, pool: Sequence[Passage], draw: random.Random) -> Iterator[tuple[str, list[Marked], bool]]:
    """The question over what answers it, and where nothing does: each with what is read, and whether that answers."""
    answering = [pair for pair in example.passages if pair[1]]
    rest = [pair for pair in example.passages if not pair[1]]
    read = answering[:2]
    if rest and draw.random() < 0.5:
        read.append(draw.choice(rest))
    elif example.other and draw.random() < OTHER_SHARE:
        read.append((pool[draw.choice(example.other)], frozenset()))
    yield example.question, read, True
    passage, marked = draw.choice(answering)
    bare = Passage(tuple(s for n, s in enumerate(passage.sentences) if n not in marked), passage.context)
    if bare.sentences and draw.random() < BARE_SHARE:
        yield example.question, [(bare, frozenset())], False
    other = changed(example.question, bare, draw) if draw.random() < CHANGED_SHARE else None
    if other is not None:
        yield other, [(passage, marked)], False


def changed(question: str, passage: Passage, draw: random.Random) -> str | None:
    """The question with one of the words that say what it is about changed for one of the passage: a number for a
    number. None where there are no such words."""
    own = [word for word in _WORD.findall(question) if word.lower() not in COMMON]
    known = {word.lower() for word in own}
    old = draw.choice(own) if own else ""
    found = [w for w in _WORD.findall(passage.text) if w.isdigit() == old.isdigit() and len(w) > 3]
    new = [word for word in found if word.lower() not in known | COMMON]
    return re.sub(rf"\b{old}\b", draw.choice(new), question, count=1) if old and new else None


def part_of(passage: Passage, marked: frozenset[int], most: int, draw: random.Random) -> Marked:
    """A run of sentences of at most so many characters (or one sentence), with one that answers if there is any."""
    start = end = draw.choice(sorted(marked) or range(len(passage.sentences)))
    size = len(passage.sentences[start])
    while True:
        sides = [at for at in (start - 1, end + 1) if 0 <= at < len(passage.sentences)]
        at = draw.choice(sides) if sides else -1
        if at < 0 or size + len(passage.sentences[at]) > most:
            break
        start, end, size = min(start, at), max(end, at), size + len(passage.sentences[at])
    run = Passage(passage.sentences[start : end + 1], passage.context)
    return run, frozenset(m - start for m in marked if start <= m <= end)


def batches(stream: Iterator[list[Row]]) -> Iterator[list[list[Row]]]:
    while True:
        yield [next(stream) for _ in range(BATCH)]


def train(
    model: Reader,
    stream: Iterator[list[Row]],
    out: Path,
    minutes: float,
    steps: int,
    bf16: bool,
    stop: int | None = None,
) -> dict[str, Any]:
    """Train until the clock or the steps are out, or to step `stop`; writes checkpoints and the log as it goes."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.01, betas=(0.9, 0.98))
    step, spent, log = 0, 0.0, []
    if (out / CHECKPOINT).exists():
        state = torch.load(out / CHECKPOINT, weights_only=False)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        step, spent, log = state["step"], state["spent"], state["log"]
    source = batches(stream)
    for _ in range(step):
        next(source)
    running = 0.0
    while step < (stop or steps) and spent < minutes * 60:
        began = time.monotonic()
        done = max(step / steps, spent / (minutes * 60))
        rate = RATE * min(1.0, (step + 1) / 60) * max(0.02, 0.5 * (1 + math.cos(math.pi * done)))
        for group in optimiser.param_groups:
            group["lr"] = rate
        batch = next(source)
        rows = [row for question in batch for row in question]
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model(rows)
        at, losses = 0, []
        for question in batch:
            losses.append(loss_of(logits[at : at + len(question)], question))
            at += len(question)
        loss = torch.stack(losses).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        step += 1
        spent += time.monotonic() - began
        running = loss.item() if step == 1 else 0.97 * running + 0.03 * loss.item()
        if step % 20 == 0:
            log.append({"step": step, "loss": round(running, 4), "seconds": round(spent, 1)})
            print(json.dumps(log[-1]), flush=True)
        if step % CHECKPOINT_STEPS == 0:
            state = {"model": model.state_dict(), "optimiser": optimiser.state_dict()}
            torch.save(state | {"step": step, "spent": spent, "log": log}, out / CHECKPOINT)
            save(model, out)
    save(model, out)
    return {"steps": step, "questions": step * BATCH, "seconds": round(spent, 1), "log": log}


def save(model: Reader, out: Path) -> None:
    from safetensors.torch import save_file

    save_file({n: t.half().contiguous() for n, t in model.changes().items()}, out / WEIGHTS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--selqa", type=Path, nargs="*", default=[], help="selqa-ass-*.json to train on")
    parser.add_argument("--pairs", type=Path, nargs=2, help="src-*.txt and tgt-*.txt to train on")
    parser.add_argument("--kept", type=Path, nargs="*", default=[], help="SQuAD-like files whose text must not be read")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--cache", type=Path, help="file for the nearest passages, made where absent; default: in DIR")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="bfloat16 products, for processors that have them")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)
    embedder = SentenceEmbedder()
    minilm = embedder.folder
    cache = options.cache or options.out / "near.json"
    sets = data.prepare(options.selqa, options.pairs, options.kept, embedder.encode_queries, cache, options.seed)
    print(f"{len(sets.train)} questions, {len(sets.dev)} held, {len(sets.pool)} passages", flush=True)
    model = Reader(minilm)
    stream = questions(sets.train, sets.pool, Encoding(minilm), options.seed)
    figures = train(model, stream, options.out, options.minutes, options.steps, options.bf16)
    (options.out / "training.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
