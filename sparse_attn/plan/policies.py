"""The named policies: dataclasses of their options. Two can be joined, for prefill and for decode.

`XAttention` is sparse in prefill, `Quest` in decode.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

from sparse_attn.errors import PatternFileError, PolicyError
from sparse_attn.kv.head_groups import HeadGroups
from sparse_attn.kv.page_stats import LOGICAL_PAGE
from sparse_attn.plan.formats import HeadPatterns, HeadScores, read_duo, read_minference, streaming_heads
from sparse_attn.plan.patterns import AntiDiagonal, AShape, Coverage, Dense, Pattern, TriShape
from sparse_attn.plan.policy import DecodeRule, ModelShape, PageSelection, Policy
from sparse_attn.plan.published import published_for, refuse_foreign

SHIPPED = "shipped"  # the value of a file option that asks for the file that comes with the package
CROSSOVERS = "crossovers.json"


@dataclass(frozen=True)
class Streaming(Policy):
    """Every head sees the first ``sink`` and the last ``local`` tokens (StreamingLLM); the rest is freed."""

    sink: int = 128
    local: int = 4096

    name: ClassVar[str] = "streaming"

    def check(self, model: ModelShape) -> None:
        super().check(model)
        _positive(self, "sink", "local")

    def prefill(self, layer: int, model: ModelShape, prompt_len: int) -> Sequence[Pattern]:
        return (AShape(self.sink, self.local),)

    def decode(self, layer: int, model: ModelShape) -> DecodeRule:
        return DecodeRule(tuple(range(model.num_kv_heads)), self.sink, self.local)

    def head_groups(self, model: ModelShape) -> HeadGroups:
        heads = tuple(tuple(range(model.num_kv_heads)) for _ in range(model.num_layers))
        return HeadGroups(heads, self.sink, self.local, self.local, self.gate, 1)


@dataclass(frozen=True)
class MInference(Policy):
    """Each query head has its own pattern in prefill (arXiv 2407.02490), from a MInference file.

    Attributes:
        file: a path, or "shipped" for the one that comes with the package for this model.
    """

    gate: int = 8192
    block: int = 64
    file: str = SHIPPED

    name: ClassVar[str] = "minference"

    def check(self, model: ModelShape) -> None:
        super().check(model)
        refuse_foreign(self.file, model.checkpoint)
        table = self._table(model)
        if len(table) != model.num_layers or len(table[0]) != model.num_q_heads:
            raise PolicyError(
                f"minference: {self.file} has {len(table)} layers of {len(table[0])} heads, the model "
                f"{model.num_layers} of {model.num_q_heads}: it belongs to another model"
            )

    def prefill(self, layer: int, model: ModelShape, prompt_len: int) -> Sequence[Pattern]:
        return self._table(model)[layer]

    def _table(self, model: ModelShape) -> HeadPatterns:
        return _read_patterns(_file(self, "file", self.file, model, "minference.json"))


@dataclass(frozen=True)
class XAttention(Policy):
    """Blocks by antidiagonal sums, as few as hold a share ``p`` of the attention (arXiv 2503.16428).

    Attributes:
        stride, p, sink, local, share, means: as in `AntiDiagonal`.
    """

    gate: int = 8192
    stride: int = 16
    p: float = 0.9
    sink: int = 128
    local: int = 128
    share: bool = False
    means: bool = False

    name: ClassVar[str] = "xattention"

    def check(self, model: ModelShape) -> None:
        super().check(model)
        _fraction(self, "p")
        if self.stride <= 0 or self.block % self.stride:
            raise PolicyError(f"xattention: stride={self.stride} must divide block={self.block}")

    def prefill(self, layer: int, model: ModelShape, prompt_len: int) -> Sequence[Pattern]:
        return (AntiDiagonal(self.stride, self.p, self.sink, self.local, self.share, self.means),)


@dataclass(frozen=True)
class FlexPrefill(Policy):
    """Columns and diagonals, or pooled blocks, up to a coverage ``gamma``, head by head (arXiv 2502.20766)."""

    gate: int = 8192
    gamma: float = 0.9
    tau: float = 0.1
    minimum: int = 1024

    name: ClassVar[str] = "flexprefill"

    def check(self, model: ModelShape) -> None:
        super().check(model)
        _fraction(self, "gamma")
        _positive(self, "minimum")

    def prefill(self, layer: int, model: ModelShape, prompt_len: int) -> Sequence[Pattern]:
        return (Coverage(self.gamma, self.tau, self.minimum),)


@dataclass(frozen=True)
class TriangleMix(Policy):
    """The deep layers see sinks and a window but for the last rows of the prompt (arXiv 2507.21526).

    Attributes:
        deep: the share of layers, counted from the last, that do.
        sink, local: how many first and last keys they see.
        last: rows that stay dense.
    """

    gate: int = 4096
    deep: float = 0.5
    sink: int = 8
    local: int = 512
    last: int = 128

    name: ClassVar[str] = "trianglemix"

    def check(self, model: ModelShape) -> None:
        super().check(model)
        _fraction(self, "deep")
        _positive(self, "sink", "local", "last")

    def prefill(self, layer: int, model: ModelShape, prompt_len: int) -> Sequence[Pattern]:
        if layer < model.num_layers - round(self.deep * model.num_layers):
            return ()
        return (TriShape(self.sink, self.local, prompt_len - self.last),)


@dataclass(frozen=True)
class Quest(Policy):
    """Decode reads the pages whose keys may matter most (arXiv 2406.10774). A sequence within the budget is dense.

    Attributes:
        budget, sink, recent, interval, top_p: as in `PageSelection`.
        dense_layers: so many first layers read everything.
    """

    budget: int = 4096
    sink: int = 64
    recent: int = 256
    interval: int = 1
    dense_layers: int = 2
    top_p: float = 1.0

    name: ClassVar[str] = "quest"

    def check(self, model: ModelShape) -> None:
        super().check(model)
        _check_selection(self, self._selection(), model)

    def decode(self, layer: int, model: ModelShape) -> DecodeRule | None:
        return DecodeRule(selection=self._selection()) if layer >= self.dense_layers else None

    @property
    def decode_gate(self) -> int:
        return max(self.gate, self.budget)

    def _selection(self) -> PageSelection:
        return PageSelection(self.budget, self.sink, self.recent, self.interval, self.top_p)


@dataclass(frozen=True)
class LServe(Policy):
    """A share of the KV heads streams, the others select pages by bounds of their keys (arXiv 2502.14866).

    Streaming heads see sinks and a window; the others are dense in prefill. A sequence within the budget is dense.

    Attributes:
        budget, recent, interval, top_p: as in `PageSelection`, for decode of the others.
        sink: first tokens that every head sees.
        local, prefill_local: last tokens that streaming heads see, in decode and in prefill.
        streaming: the share of heads that stream.
        heads: a DuoAttention table of alpha that says which, or "shipped".
    """

    budget: int = 4096
    sink: int = 128
    local: int = 256
    prefill_local: int = 4096
    recent: int = 256
    interval: int = 4
    streaming: float = 0.5
    heads: str = SHIPPED
    top_p: float = 1.0

    name: ClassVar[str] = "lserve"

    def check(self, model: ModelShape) -> None:
        super().check(model)
        _check_selection(self, self._selection(), model)
        _positive(self, "local", "prefill_local")
        if not 0 <= self.streaming <= 1:
            raise PolicyError(f"lserve: streaming={self.streaming} must lie in 0 … 1")
        if self.streaming:
            table = self._alpha(model)
            if len(table) != model.num_layers or len(table[0]) != model.num_kv_heads:
                raise PolicyError(
                    f"lserve: {self.heads} has {len(table)} layers of {len(table[0])} KV heads, the model "
                    f"{model.num_layers} of {model.num_kv_heads}: it belongs to another model"
                )

    def prefill(self, layer: int, model: ModelShape, prompt_len: int) -> Sequence[Pattern]:
        own = self._streaming(model)[layer]
        if not own:
            return ()
        group = model.num_q_heads // model.num_kv_heads
        window, dense = AShape(self.sink, self.prefill_local), Dense()
        return [window if h // group in own else dense for h in range(model.num_q_heads)]

    def decode(self, layer: int, model: ModelShape) -> DecodeRule:
        return DecodeRule(self._streaming(model)[layer], self.sink, self.local, self._selection())

    @property
    def prefill_gate(self) -> int:
        return max(self.gate, self.budget)

    @property
    def decode_gate(self) -> int:
        return max(self.gate, self.budget)

    def head_groups(self, model: ModelShape) -> HeadGroups | None:
        heads = self._streaming(model)
        if not any(heads):
            return None
        return HeadGroups(heads, self.sink, self.local, self.prefill_local, self.decode_gate, self.interval)

    def _selection(self) -> PageSelection:
        return PageSelection(self.budget, self.sink, self.recent, self.interval, self.top_p)

    def _alpha(self, model: ModelShape) -> HeadScores:
        return _read_alpha(_file(self, "heads", self.heads, model, "duo.tsv"))

    def _streaming(self, model: ModelShape) -> tuple[tuple[int, ...], ...]:
        if not self.streaming:
            return ((),) * model.num_layers
        return streaming_heads(self._alpha(model), self.streaming)


@dataclass(frozen=True)
class Blend(Policy):
    """Dense attention over passages whose keys and values were computed each alone, and are put where they stand now.

    How a passage reads what stands before it is lost, so that answers may differ.

    Attributes:
        first: of each passage so many first tokens are computed in place (EPIC's LegoLink, arXiv 2410.15332); 0 for
            none (block attention, arXiv 2409.15355).
        share: of all tokens of passages so many more, 0 to 1: those whose values differ most from what they are in
            this prompt, as the second layer tells (CacheBlend, arXiv 2405.16444).
    """

    first: int = 16
    share: float = 0.0

    name: ClassVar[str] = "blend"

    def check(self, model: ModelShape) -> None:
        if (self.gate, self.block) != (Policy.gate, Policy.block):
            raise PolicyError("blend: gate and block are for policies that leave keys out")
        if self.first < 0:
            raise PolicyError(f"blend: first={self.first} must not be negative")
        if not 0 <= self.share <= 1:
            raise PolicyError(f"blend: share={self.share:g} must be 0 to 1")

    def cache_key(self) -> str:
        return f"blend:first={self.first}" + (f",share={self.share:g}" if self.share else "")


@dataclass(frozen=True)
class SkipSoftmax(Policy):
    """Every tile of keys is scored, and one whose weights would hardly count is left out (BLASST, arXiv 2512.12087).

    It needs no plan and no table, and what it leaves out is bounded: of a row with n keys, those that each weigh less
    than ``lambda`` ÷ n of the largest weight, so that together they weigh less than ``lambda`` times that one.

    Attributes:
        lambda_: written ``lambda``; 0 leaves out nothing. `folio bench perplexity --skip` finds what a model bears.
    """

    gate: int = 1024
    lambda_: float = 1.0

    name: ClassVar[str] = "skip"

    def check(self, model: ModelShape) -> None:
        super().check(model)
        if self.lambda_ < 0:
            raise PolicyError(f"skip: lambda={self.lambda_:g} must not be negative")

    def skips(self, prefill: bool) -> tuple[float, int]:
        return self.lambda_, self.gate


@dataclass(frozen=True)
class Joined(Policy):
    """Prefill of one policy, decode of another."""

    first: Policy = field(default_factory=Policy)
    second: Policy = field(default_factory=Policy)

    name: ClassVar[str] = "joined"

    def check(self, model: ModelShape) -> None:
        self.first.check(model)
        self.second.check(model)

    def prefill(self, layer: int, model: ModelShape, prompt_len: int) -> Sequence[Pattern]:
        return self.first.prefill(layer, model, prompt_len)

    def decode(self, layer: int, model: ModelShape) -> DecodeRule | None:
        return self.second.decode(layer, model)

    def skips(self, prefill: bool) -> tuple[float, int]:
        return (self.first if prefill else self.second).skips(prefill)

    def resolve(self, prompt_len: int, model: ModelShape) -> Policy:
        first, second = (part.resolve(prompt_len, model) for part in (self.first, self.second))
        return Joined(self.gate, self.block, first, second)

    @property
    def prefill_gate(self) -> int:
        return self.first.prefill_gate

    @property
    def decode_gate(self) -> int:
        return self.second.decode_gate

    def cache_key(self) -> str:
        return f"{self.first.cache_key()}+{self.second.cache_key()}"


@dataclass(frozen=True)
class Auto(Policy):
    """What was measured to be fastest without loss at the prompt's length, from a table of crossovers.

    What a model bears is its own: `folio bench crossovers --table` measures it.

    Attributes:
        table: a path, or "shipped": the table that comes with the package for this model, else the one for any model.
        device: whose crossovers: "cpu" or "cuda".
    """

    table: str = SHIPPED
    device: str = "cpu"

    name: ClassVar[str] = "auto"

    def check(self, model: ModelShape) -> None:
        super().check(model)
        if self.table != SHIPPED:
            _refuse_table_of_another(self.table, model)
        for _, policy in self._rows(model):
            policy.check(model)

    def resolve(self, prompt_len: int, model: ModelShape) -> Policy:
        return next((policy for at_least, policy in reversed(self._rows(model)) if prompt_len >= at_least), Policy())

    def needs_page_stats(self, model: ModelShape) -> bool:
        return any(policy.needs_page_stats(model) for _, policy in self._rows(model))

    def is_dense(self, model: ModelShape, prompt_len: int | None = None, max_length: int | None = None) -> bool:
        return all(policy.is_dense(model, prompt_len, max_length) for _, policy in self._rows(model))

    def head_groups(self, model: ModelShape) -> HeadGroups | None:
        """Those of the first row that has any; a request's own are those of its resolved policy."""
        return next((found for _, policy in self._rows(model) if (found := policy.head_groups(model))), None)

    def _rows(self, model: ModelShape) -> tuple[tuple[int, Policy], ...]:
        if self.table != SHIPPED:
            return _read_crossovers(self.table, self.device)
        package = resources.files("sparse_attn")
        own = package / "heads" / model.fingerprint / CROSSOVERS
        return _read_crossovers(str(own if model.fingerprint and own.is_file() else package / CROSSOVERS), self.device)


POLICIES: dict[str, type[Policy]] = {
    cls.name: cls
    for cls in (
        Policy,
        Streaming,
        MInference,
        XAttention,
        FlexPrefill,
        TriangleMix,
        LServe,
        Quest,
        SkipSoftmax,
        Blend,
        Auto,
    )
}


def joined(policies: Sequence[Policy]) -> Policy:
    """One policy, or two as one: prefill of the first, decode of the second.

    Raises:
        PolicyError: there are more, or one is no choice of keys.
    """
    if len(policies) > 1 and any(isinstance(policy, Blend) for policy in policies):
        raise PolicyError("blend is joined with no other policy")
    if len(policies) > 2:
        names = "+".join(policy.name for policy in policies)
        raise PolicyError(f"{names}: at most two policies can be joined, one for prefill and one for decode")
    return Joined(first=policies[0], second=policies[1]) if len(policies) == 2 else policies[0]


def as_data(policy: Policy) -> list[dict[str, Any]]:
    """A policy as a table of crossovers holds it: ``[{"name": …, option: value, …}]``, two where two are joined."""
    parts = [policy.first, policy.second] if isinstance(policy, Joined) else [policy]
    return [
        {"name": part.name}
        | {f.name.rstrip("_"): vars(part)[f.name] for f in fields(part) if vars(part)[f.name] != f.default}
        for part in parts
    ]


def _positive(policy: Policy, *names: str) -> None:
    for name in names:
        if getattr(policy, name) <= 0:
            raise PolicyError(f"{policy.name}: {name}={getattr(policy, name)} must be positive")


def _fraction(policy: Policy, name: str) -> None:
    if not 0 < getattr(policy, name) <= 1:
        raise PolicyError(f"{policy.name}: {name}={getattr(policy, name)} must lie above 0 and not above 1")


def _check_selection(policy: Policy, selection: PageSelection, model: ModelShape) -> None:
    _positive(policy, "budget", "sink", "recent", "interval")
    _fraction(policy, "top_p")
    if model.page_size % min(LOGICAL_PAGE, model.page_size):
        raise PolicyError(f"{policy.name}: pages of {model.page_size} tokens are no multiple of {LOGICAL_PAGE}")
    if selection.middle_pages(model.page_size) < 1:
        least = selection.sink + selection.recent + 3 * model.page_size
        raise PolicyError(
            f"{policy.name}: budget={selection.budget} leaves no page to select beside sink={selection.sink} and "
            f"recent={selection.recent} in pages of {model.page_size} tokens; give at least budget={least}"
        )


def _file(policy: Policy, option: str, value: str, model: ModelShape, shipped_name: str) -> str:
    if value != SHIPPED:
        return value
    path = resources.files("sparse_attn") / "heads" / model.fingerprint / shipped_name
    if not model.fingerprint or not path.is_file():
        published = "".join(f"; there is {one}" for one in published_for(model.checkpoint))
        raise PolicyError(
            f"{policy.name}: no head file ships for this model{published}; make one with `folio calibrate` and give "
            f"{option}=FILE" + (", or streaming=0 to select pages in every head" if option == "heads" else "")
        )
    return str(path)


@lru_cache(maxsize=32)
def _read_patterns(path: str) -> HeadPatterns:
    return read_minference(path)


@lru_cache(maxsize=32)
def _read_alpha(path: str) -> HeadScores:
    return read_duo(path)


@lru_cache(maxsize=32)
def _read_crossovers(path: str, device: str) -> tuple[tuple[int, Policy], ...]:
    """``{"cpu": [{"min_length": 0, "policy": [{"name": "dense"}]}, …], …}`` → (least length, policy), ascending."""
    try:
        table = json.loads(Path(path).read_text(encoding="utf-8"))[device]
        rows = [(int(row["min_length"]), joined([_of_json(part) for part in row["policy"]])) for row in table]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise PatternFileError(f"{path}: no table of crossovers for {device!r}: {error!r}") from error
    return tuple(sorted(rows, key=lambda row: row[0]))


def shape_data(model: ModelShape) -> dict[str, int]:
    """Of a model, what a table says of the one that it was measured for."""
    return {
        "layers": model.num_layers,
        "query_heads": model.num_q_heads,
        "kv_heads": model.num_kv_heads,
        "head_dim": model.head_dim,
    }


def _refuse_table_of_another(path: str, model: ModelShape) -> None:
    """Refuse a table that says that it was measured for a model of another shape.

    Raises:
        PolicyError: names both.
    """
    try:
        measured = json.loads(Path(path).read_text(encoding="utf-8")).get("model")
    except (OSError, ValueError, AttributeError):
        return  # what reads its rows says so
    own = shape_data(model)
    if measured is not None and {name: measured.get(name) for name in own} != own:
        raise PolicyError(
            f"auto: {path} was measured for {measured.get('name')} ({measured.get('layers')} layers of "
            f"{measured.get('query_heads')} heads), the model has {model.num_layers} of {model.num_q_heads}: it "
            "belongs to another model; `folio calibrate --auto` measures this one"
        )


def _of_json(options: dict[str, Any]) -> Policy:
    policy = POLICIES[options["name"]]
    names = {f.name.rstrip("_"): f.name for f in fields(policy)}
    return policy(**{names.get(key, key): value for key, value in options.items() if key != "name"})
