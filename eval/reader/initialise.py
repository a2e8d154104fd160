"""Structured initialisation: the reader starts near a circuit that selects and copies.

From random weights a model of this size needs hours on two cores to learn to select. So the weights are set
to an algorithm written by hand ("mimetic" initialisation, cf. Trockman & Kolter 2023, taken further), and
training starts from there. The algorithm, layer by layer:

The residual stream is seven blocks of 64: sixty dimensions of code and four of flags.
``ID`` the token's own code; ``STEM`` the code of its word stem, longer for rarer words and zero inside words;
``PREV`` the code of the token before; ``PREV3`` of the one three back; ``JOIN`` in its second half
the code of the token before, inside words only, in its first half that of the token before the last;
``REF`` the code of the reference token of the sentence; ``VOTE`` votes for sentences. A code is six chunks of
ten dimensions of equal length, so any union of chunks is a shorter code.

Layer 0 (rotary) looks around:
  heads "one back", "three back": constant queries and keys whose rotary planes agree at one distance; they
    write ``PREV`` and ``PREV3``;
  head "inside the word": like "one back", asked only by tokens that continue a word; writes half of ``JOIN``;
  head "two back" writes the other half;
  head "answered": attends to ``<|answer|>`` where there is one and sets the flag `ANSWERED`;
  head "my reference": keys only at reference tokens, score falling with the logarithm of the distance (fitted
    by least squares on the rotary planes); writes the code of the nearest reference before into ``REF``.
Layer 1 (no positions) votes. A token asks for tokens of the same stem (head "word"), or of the same code with
  the same code before it (head "piece"), and takes their ``REF`` into ``VOTE``. The softmax divides by the
  number of occurrences, so rare words decide. Words found nowhere attend to ``<|none|>`` and vote for it;
  common words attend to ``<|bos|>``, which is silent. Only tokens of a
  question ask, and they are barred as keys.
Layer 2 (no positions) gathers: ``<|answer|>`` averages the ``VOTE`` of the question.
Layer 3 (no positions) speaks, into ``ID``, which the tied head reads (the final norm passes nothing else):
  head "winner": ``<|answer|>`` attends to the reference tokens whose code got most votes;
  heads "copy": a token of the answer attends to tokens of the same ``REF`` whose ``PREV`` is its own code and,
    for words that a sentence repeats, which also stood behind the same token (two heads) or
    behind the same token but one (one head): what followed there follows here. Tokens of question and answer are barred
    as keys. ``<|end|>`` closes a sentence and is copied like any other token.
All other weights are small and random, the MLPs silent at first (their last matrix is zero).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from service.reader.tokenizer import ANSWER, BOS, END, NONE, QUESTION, REFERENCES, reference

HEAD = 64
CODE = 60
CHUNK = 10
BLOCKS = ("ID", "STEM", "PREV", "PREV3", "JOIN", "REF", "VOTE")
HIDDEN = HEAD * len(BLOCKS)
LAYERS, HEADS, KV_HEADS, MLP = 4, 8, 4, 384
THETA = 100_000.0
MAX_POSITIONS = 65_536

IN_QUESTION, IS_NONE, IS_ANSWER = (CODE + i for i in range(3))
"""Flags in the tail of ``ID``; the first two travel on with the code of a reference."""
CONTENT, JOINED, IS_REFERENCE, IS_BOS = (HEAD + CODE + i for i in range(4))
"""Flags in the tail of ``STEM``."""
IS_CITABLE = 2 * HEAD + CODE + 3
ANSWERED = 4 * HEAD + CODE
"""Set by layer 0 from ``<|answer|>`` on."""
BALLAST = 3 * HEAD + CODE
"""Read by nobody: gives tokens that carry little else about the length of the others, lest norms differ."""

_COMMON = (
    "document documents learn passage passages speak speaks "
    "a about above after again all also an and any are as asked at be been before being both but by can "
    "could     describe described did do does done each explain find for from get give given had has have "
    "he her here him     his how i if in into is it its know let made may me mention mentioned might more "
    "most much must my no not of     on only or other our out over quote said same say says sentence "
    "shall she should so some state stated such     tell text than that the their them then there these "
    "they this those through to told too under up upon us very     was we were what when where which "
    "while who whom whose why will with would written you your "
)
STOP_WORDS = frozenset(_COMMON.split())
_SUFFIX = re.compile(r"(?:'s|ingly|edly|ings|ing|edly|ed|ies|ied|es|s|ly|er|ers|e|y)$")


def config(vocab_size: int) -> Any:
    """The model's configuration: SmolLM3, a Llama whose layers may go without rotary positions."""
    from transformers import SmolLM3Config

    sizes: dict[str, Any] = {"head_dim": HEAD, "vocab_size": vocab_size}
    return SmolLM3Config(
        **sizes,
        hidden_size=HIDDEN,
        intermediate_size=MLP,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=MAX_POSITIONS,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        no_rope_layers=[1, 0, 0, 0],
        use_sliding_window=False,
        attention_bias=True,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )


def stem(word: str) -> str:
    """A crude stem: lower case, one common English ending off, at least three letters left."""
    word = word.lower()
    if len(word) < 4:
        return word
    bare = _SUFFIX.sub("", word)
    if len(bare) > 3 and bare[-1] == bare[-2] and bare[-1] not in "lsze":
        bare = bare[:-1]
    return bare if len(bare) >= 3 else word


def codes(count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` random unit codes float64[count, CODE] whose chunks all have the same length."""
    chunks = rng.standard_normal((count, CODE // CHUNK, CHUNK))
    chunks /= np.linalg.norm(chunks, axis=-1, keepdims=True)
    return chunks.reshape(count, CODE) / np.sqrt(CODE / CHUNK)


def at(block: str) -> int:
    """First dimension of a block of the residual stream."""
    return HEAD * BLOCKS.index(block)


def embeddings(tokenizer: Any, texts: Iterable[str], rng: np.random.Generator) -> np.ndarray:
    """The embedding matrix float64[V, HIDDEN]; frequencies of stems are counted in `texts`."""
    size = len(tokenizer)
    table = np.zeros((size, HIDDEN))
    table[:, :CODE] = codes(size, rng)
    words = {i: tokenizer.decode([i]) for i in range(size)}
    special = {tokenizer.convert_tokens_to_ids(t) for t in (BOS, END, NONE, QUESTION, ANSWER)}
    cited = [tokenizer.convert_tokens_to_ids(reference(i)) for i in range(REFERENCES)]
    plain = [i for i in range(size) if i not in special and i < min(cited)]
    counts = Counter(stem(w) for text in texts for w in re.findall(r"[^\W\d_]+", text))
    total = sum(counts.values())
    stems: dict[str, np.ndarray] = {}
    for i in plain:
        word = words[i]
        bare = word.strip()
        if not word.startswith(" ") or not bare.isalpha():
            table[i, JOINED] = float(bare.isalnum())
            table[i, BALLAST] = 0.0 if bare.isalnum() else np.sqrt(2.0)
            continue
        key = stem(bare)
        if key not in stems:
            stems[key] = codes(1, rng)[0]
        weight = 0.0
        if len(bare) > 1 and bare.lower() not in STOP_WORDS:
            information = -np.log((counts[key] + 1) / total)
            weight = float(np.clip((information - 2.0) / 3.0, 0.8, 1.0))
        own = codes(1, rng)[0]
        table[i, HEAD : HEAD + CODE] = weight * (np.sqrt(0.98) * stems[key] + np.sqrt(0.02) * own)
        table[i, CONTENT] = weight
        table[i, BALLAST] = np.sqrt(2.0 * (1.0 - weight**2))
    for i in cited:
        table[i, [IS_REFERENCE, IS_CITABLE]] = 1.0
    flags = {
        BOS: ([IS_BOS], 5.0),
        NONE: ([IS_NONE, IS_REFERENCE, IS_CITABLE], 0.0),
        QUESTION: ([IN_QUESTION, IS_REFERENCE], 1.0),
        ANSWER: ([IS_ANSWER], 2.0),
        END: ([], 2.0),
    }
    for token, (dims, ballast) in flags.items():
        row = table[tokenizer.convert_tokens_to_ids(token)]
        if token not in (NONE, END):
            row[:CODE] = 0.0
        row[dims] = 1.0
        row[BALLAST] = np.sqrt(ballast)
    return table


def frequencies() -> np.ndarray:
    """Angular frequencies of the rotary planes, radians a token, float64[HEAD / 2]."""
    return THETA ** (-np.arange(HEAD // 2) / (HEAD // 2))


def back(distance: int) -> tuple[np.ndarray, np.ndarray]:
    """Key and query biases [HEAD] whose rotary score is sharply largest `distance` tokens back."""
    strength = np.full(HEAD // 2, 6.0)
    strength[:4] = 16.0
    strength[-1] = 0.5
    phase = frequencies() * distance
    amplitude = np.sqrt(strength * np.sqrt(HEAD))
    key = np.concatenate([amplitude, np.zeros(HEAD // 2)])
    return key, np.concatenate([amplitude * np.cos(phase), -amplitude * np.sin(phase)])


def nearest(top: float = 90.0, slope: float = 40.0, knee: float = 60.0) -> tuple[np.ndarray, np.ndarray]:
    """Key and query [HEAD] whose rotary score is about top − slope·ln(1 + distance / knee)."""
    distance = np.unique(np.round(np.concatenate([np.arange(400), np.geomspace(400, MAX_POSITIONS, 600)])))
    angles = distance[:, None] * frequencies()
    target = np.maximum(top - slope * np.log1p(distance / knee), top - 210.0)
    weight = (1.0 / (1.0 + distance / 50.0))[:, None]
    basis = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    ridge = 1e-3 * np.eye(HEAD)
    fitted = np.linalg.solve(basis.T @ (weight * basis) + ridge, basis.T @ (weight[:, 0] * target))
    cosine, sine = np.split(fitted, 2)
    size = np.sqrt(np.hypot(cosine, sine) * np.sqrt(HEAD)) + 1e-9
    key = np.concatenate([size, np.zeros(HEAD // 2)])
    pull = np.sqrt(HEAD) / size
    return key, np.concatenate([cosine * pull, -sine * pull])


class _Writer:
    """Sets entries of one attention layer in units of the residual stream's own, before its norm.

    Args:
        square: expected squared length of the residual stream at this layer's input.
    """

    def __init__(self, layer: Any, square: float) -> None:
        self.attn = layer.self_attn
        self.unit = np.sqrt(HIDDEN / square)
        """What the norm makes of a residual component of one."""

    def query(self, head: int, dim: int, source: int, value: float) -> None:
        self.attn.q_proj.weight[head * HEAD + dim, source] += value / self.unit

    def key(self, head: int, dim: int, source: int, value: float) -> None:
        self.attn.k_proj.weight[head * HEAD + dim, source] += value / self.unit

    def query_bias(self, head: int, dim: int, value: float) -> None:
        self.attn.q_proj.bias[head * HEAD + dim] += value

    def match(self, q_head: int, kv_head: int, dims: range, asks: int, offers: int, score: float) -> None:
        """Score `score` where the slice of the asking block equals the slice of the offering one."""
        scale = np.sqrt(score * np.sqrt(HEAD))
        for i, dim in enumerate(dims):
            self.query(q_head, dim, asks + i, scale)
            self.key(kv_head, dim, offers + i, scale)

    def read(self, kv_head: int, block: str) -> None:
        for i in range(HEAD):
            self.attn.v_proj.weight[kv_head * HEAD + i, at(block) + i] = 1.0 / self.unit

    def write(self, head: int, block: str, gain: float = 1.0) -> None:
        self.attn.o_proj.weight[:, head * HEAD : (head + 1) * HEAD] = 0.0
        for i in range(HEAD):
            self.attn.o_proj.weight[at(block) + i, head * HEAD + i] = gain


def _bare(model: Any, rng: torch.Generator) -> None:
    """Small random weights everywhere, silent attention outputs and MLPs, no biases, norms of one."""
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "o_proj" in name or "down_proj" in name:
            parameter.zero_()
        elif "norm" in name:
            parameter.fill_(1.0)
        else:
            parameter.copy_(torch.randn(parameter.shape, generator=rng) * 0.02)


def _clear(attn: Any, queries: Iterable[int], keys: Iterable[int]) -> None:
    for head in queries:
        attn.q_proj.weight[head * HEAD : (head + 1) * HEAD] = 0.0
    for head in keys:
        attn.k_proj.weight[head * HEAD : (head + 1) * HEAD] = 0.0
        attn.v_proj.weight[head * HEAD : (head + 1) * HEAD] = 0.0


def _tensor(values: np.ndarray) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def _look_around(layer: Any) -> None:
    w = _Writer(layer, square=3.0)
    attn = w.attn
    _clear(attn, (0, 1, 2, 3, 4, 6), (0, 1, 2, 3))
    slow = HEAD // 2 - 1
    silent = 25.0 * np.sqrt(HEAD)
    for kv in (0, 1):
        attn.k_proj.bias[kv * HEAD : (kv + 1) * HEAD] = _tensor(back(0)[0])
        w.key(kv, slow, IS_BOS, 1.0)
        w.read(kv, "ID")
    for head, query in ((0, back(1)[1]), (1, back(3)[1]), (3, back(2)[1])):
        attn.q_proj.bias[head * HEAD : (head + 1) * HEAD] = _tensor(query)
    for dim, value in enumerate(back(1)[1]):
        w.query(2, dim, JOINED, value)
    w.query_bias(2, slow, silent)
    key, query = nearest()
    for dim, value in enumerate(key):
        w.key(2, dim, IS_REFERENCE, value)
    attn.q_proj.bias[4 * HEAD : 5 * HEAD] = _tensor(query)
    w.key(3, slow, IS_ANSWER, 2.0)
    w.key(3, slow, IS_BOS, 1.0)
    w.query_bias(6, slow, silent)
    for kv in (2, 3):
        w.read(kv, "ID")
    for head, block in ((0, "PREV"), (2, "JOIN"), (4, "REF")):
        w.write(head, block)
    attn.o_proj.weight[ANSWERED, 6 * HEAD + IS_ANSWER] = 1.0
    w.write(1, "PREV3")
    half = CODE // 2
    w.write(3, "JOIN")
    for head, dims in ((2, range(half)), (3, range(half, HEAD))):
        for i in dims:
            attn.o_proj.weight[at("JOIN") + i, head * HEAD + i] = 0.0


def _vote(layer: Any, word: float = 44.0, piece: float = 36.0) -> None:
    w = _Writer(layer, square=6.2)
    _clear(w.attn, (0, 2), (0, 1))
    flag_none, flag_bos, flag_question = CODE, CODE + 1, CODE + 2
    scale = np.sqrt(HEAD)
    w.match(0, 0, range(CODE), at("STEM"), at("STEM"), word)
    w.query(0, flag_none, CONTENT, 0.6 * word * scale)
    w.query_bias(0, flag_bos, 0.4 * word * scale)
    half = CODE // 2
    w.match(2, 1, range(half), at("ID"), at("ID"), piece)
    w.match(2, 1, range(half, CODE), at("JOIN") + half, at("PREV") + half, piece)
    w.query(2, flag_none, JOINED, 0.8 * piece * scale)
    w.query_bias(2, flag_bos, 0.7 * piece * scale)
    for head, kv in ((0, 0), (2, 1)):
        w.key(kv, flag_none, IS_NONE, 1.0)
        w.key(kv, flag_bos, IS_BOS, 1.0)
        w.key(kv, flag_question, at("REF") + IN_QUESTION, 1.0)
        w.query_bias(head, flag_question, -80.0 * scale)
        w.query_bias(head, flag_bos, 80.0 * scale)
        w.query(head, flag_bos, at("REF") + IN_QUESTION, -80.0 * scale)
        w.read(kv, "REF")
        w.write(head, "VOTE")


def _gather(layer: Any) -> None:
    w = _Writer(layer, square=7.0)
    _clear(w.attn, (0,), (0,))
    scale = np.sqrt(HEAD)
    w.key(0, 0, at("REF") + IN_QUESTION, 1.0)
    w.query(0, 0, IS_ANSWER, 14.0 * scale)
    w.key(0, 1, CONTENT, 1.0)
    w.key(0, 1, JOINED, 1.0)
    w.query(0, 1, IS_ANSWER, 2.0 * scale)
    w.key(0, 2, IS_BOS, 1.0)
    w.query_bias(0, 2, 12.0 * scale)
    w.query(0, 2, IS_ANSWER, -12.0 * scale)
    w.read(0, "VOTE")
    w.write(0, "STEM", gain=2.0)


def _speak(layer: Any, same: float = 120.0, after: float = 110.0, before: float = 75.0) -> None:
    w = _Writer(layer, square=6.0)
    _clear(w.attn, (0, 2, 4, 6), (0, 1, 2, 3))
    scale = np.sqrt(HEAD)
    w.match(0, 0, range(CODE), at("STEM"), at("ID"), 100.0)
    w.query(0, CODE, at("STEM") + IS_NONE, -45.0 * scale)
    w.key(0, CODE, IS_NONE, 1.0)
    w.query(0, CODE + 1, IS_ANSWER, 30.0 * scale)
    w.key(0, CODE + 1, IS_CITABLE, 1.0)
    third = CODE // 3
    for turn, (head, kv) in enumerate(((2, 1), (4, 2), (6, 3))):
        first, second = third * turn, third * ((turn + 1) % 3)
        w.match(head, kv, range(third), at("REF") + first, at("REF") + first, same)
        w.match(head, kv, range(third, 2 * third), at("ID") + second, at("PREV") + second, after)
    for head, kv, first in ((2, 1, 0), (6, 3, third // 2)):
        w.match(head, kv, range(2 * third, CODE), at("PREV") + first, at("JOIN") + first, before)
    w.match(4, 2, range(2 * third, CODE), at("JOIN"), at("PREV3"), before)
    for kv, head, silent, gain in ((0, 0, 90.0, 20.0), (1, 2, 25.0, 10.0), (2, 4, 25.0, 10.0), (3, 6, 25.0, 10.0)):
        w.key(kv, CODE + 2, IS_BOS, 1.0)
        w.query_bias(head, CODE + 2, silent * scale)
        w.read(kv, "ID")
        w.write(head, "ID", gain=gain)
    w.query(0, CODE + 2, IS_ANSWER, -90.0 * scale)
    for kv, head in ((1, 2), (2, 4), (3, 6)):
        w.key(kv, CODE + 3, ANSWERED, 1.0)
        w.key(kv, CODE + 3, at("REF") + IN_QUESTION, 1.0)
        w.query_bias(head, CODE + 3, -60.0 * scale)


@torch.no_grad()
def build(tokenizer: Any, texts: Iterable[str], seed: int = 0) -> Any:
    """The initialised model in float32, reproducible from `seed`, the tokenizer and `texts`."""
    from transformers import SmolLM3ForCausalLM

    settings = config(len(tokenizer))
    settings.bos_token_id = tokenizer.bos_token_id
    settings.eos_token_id = settings.pad_token_id = tokenizer.eos_token_id
    model = SmolLM3ForCausalLM(settings).float()
    _bare(model, torch.Generator().manual_seed(seed))
    table = embeddings(tokenizer, texts, np.random.default_rng(seed))
    model.model.embed_tokens.weight.copy_(_tensor(table))
    steps: tuple[Callable[[Any], None], ...] = (_look_around, _vote, _gather, _speak)
    for layer, step in zip(model.model.layers, steps, strict=True):
        step(layer)
    final: nn.Parameter = model.model.norm.weight
    final.zero_()
    final[:CODE] = 1.4
    return model.eval()
