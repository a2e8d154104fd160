"""The synchronous engine: requests in, tokens out, one forward a step, deterministic.

A step is

    step    = scheduler.schedule()           which tokens run; pages reserved
    drafting.propose(slice)                  guesses below the pending tokens; may be empty
    forward = runner.run(step.slices)        one forward of the unmodified model
    verdict = verify(tree, choices)          pure
    emitted = stop_checker.take(tokens)      where the output ends, and its text
    scheduler.commit(step, emitted)          lengths move, pages return

A failure belongs to one request: what its drafter, its logits, its constraint or its text raises ends it with an error,
and the others of the step get the tokens that they would have got. Where the forward itself fails, all that it was run
for fail. No length has moved before commit.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
import torch
from torch import Tensor

from drafters.stats import TARGET
from drafters.tree import EMPTY
from drafters.verify import NO_TOKEN, Verdict
from service.engine.blending import Blending
from service.engine.block_manager import BlockManager, OutOfPages, salt_of
from service.engine.canary import Canary
from service.engine.checks import check_options, shape_of
from service.engine.config import EngineConfig
from service.engine.detokenizer import Detokenizer
from service.engine.drafting.drafting import Drafting
from service.engine.drafting.resources import draft_resources
from service.engine.drafting.sessions import DraftPages
from service.engine.finish import Emitted, FinishReason, StopChecker
from service.engine.kv.layout import checked_policy, head_layout, kv_memory, make_pool
from service.engine.kv.passage_store import PassageFiles, PassageStore
from service.engine.kv.tiers import HostTier, Tiers, WarmTier
from service.engine.loading.checkpoint import DTYPES, EMBEDDED, LoadedModel, load_model
from service.engine.lookups import Lookups
from service.engine.mixture import Mixture, MixtureSource
from service.engine.outputs import TokenLogprobs, TokenOutput
from service.engine.overlap import Flight, OverlapStats, why_apart
from service.engine.params import DraftSources, SamplingParams
from service.engine.request import Reading, Request
from service.engine.runner.device import is_lost
from service.engine.runner.factory import make_runner
from service.engine.runner.gpu_invariance import make_gpu_invariant, why_not_invariant
from service.engine.runner.host_allocator import keep_freed_memory
from service.engine.runner.model_runner import Forward
from service.engine.runner.ranks import leading
from service.engine.runner.row_invariance import make_row_invariant
from service.engine.runner.tensor_parallel import Load
from service.engine.sampling.constraint import ConstrainedText, ConstraintCompiler
from service.engine.sampling.forced import ForcedText
from service.engine.sampling.logits_processor import LogitsProcessor
from service.engine.sampling.sampler import RowKeys, has_choice, sample, token_logprobs
from service.engine.scheduler import Scheduler, SchedulerConfig
from service.engine.spans import PassageSpans
from service.engine.step import Slice, Step
from service.errors import DeviceLost, InvalidRequest
from sparse_attn.kernels import select_kernels
from sparse_attn.kv.lifetimes import PageLifetimes
from sparse_attn.plan.policies import Blend
from sparse_attn.plan.policy import ModelShape, Policy

log = structlog.get_logger(__name__)

_IDLE_S = 0.005  # longest wait for look-ups where nothing else is to be done: a command may come meanwhile


@dataclass(frozen=True)
class Outcome:
    """What a step came to for a slice that samples.

    Attributes:
        rows: of the step's logits: its pending token's and its tree's nodes'.
        verdict: what was verified. emitted: what of it the request keeps.
    """

    seq: Slice
    rows: slice
    verdict: Verdict
    emitted: Emitted


@dataclass
class EngineTotals:
    """Sums over the life of an engine."""

    steps: int = 0
    forward_s: float = 0.0
    step_s: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    finished: int = 0
    failed: int = 0


class Engine:
    """Runs requests over one model. Not thread-safe: one thread owns it (see ``AsyncEngine``)."""

    def __init__(self, loaded: LoadedModel, config: EngineConfig | None = None) -> None:
        self.config = config = (config or EngineConfig()).resolved(loaded.device, loaded.dtype)
        self.loaded = loaded
        self.tokenizer = loaded.tokenizer
        self.max_model_len = min(loaded.max_len, config.max_model_len or loaded.max_len)
        if config.device == "cpu":
            keep_freed_memory()
        if config.batch_invariant:
            self._demand_batch_invariance()
        self.shape = ModelShape.of_config(
            loaded.model.config.get_text_config(),
            config.page_size,
            self.max_model_len,
            fingerprint=loaded.name if loaded.name == EMBEDDED else "",
            checkpoint=loaded.name,
        )
        pool = make_pool(loaded, config, head_layout(config, self.shape) if loaded.ranks is None else None)
        num_pages = pool.num_pages
        self.warmed = WarmTier(pool, config.warm_folder) if config.warm_folder is not None else None
        host = [HostTier(pool, config.host_memory)] if config.host_memory else []
        lower = Tiers([*host, *([self.warmed] if self.warmed is not None else [])])
        groups = pool.layout.num_groups
        self.blocks = BlockManager(num_pages, config.page_size, config.prefix_cache, lower, groups)
        self.lent = DraftPages(self.blocks)
        limits = SchedulerConfig(config.step_tokens, config.max_running)
        self.scheduler = Scheduler(limits, self.blocks, self.lent.reclaim)
        self.runner = make_runner(loaded, pool, config, self.shape)
        on_disk = PassageFiles(config.warm_folder) if config.warm_folder is not None else None
        store = PassageStore(config.passage_memory, config.passage_dtype == "int8", on_disk)
        self.blending = Blending(loaded, self.runner, self.scheduler, store, config.max_running)
        self.canary = Canary(config.canary, config.canary_bound, self.scheduler, self.runner.logits_of)
        self.lookups = Lookups()
        self.totals = EngineTotals()
        self.kernels: set[str] = set()
        self._requests: dict[str, Request] = {}
        self._outputs: list[TokenOutput] = []
        self.overlap = OverlapStats()
        self.overlaps = config.device.startswith("cuda") and loaded.ranks is None
        self._flight: Flight | None = None
        self._ids = itertools.count(1)
        resources = draft_resources(loaded, config, self.runner, self.lent, self.scheduler, self._requests, self.salt)
        most_nodes = min(limits.max_draft, self.blocks.num_pages * self.blocks.page_size - 1)
        self.drafting = Drafting(resources, config, most_nodes)
        self.constraints = ConstraintCompiler(loaded.tokenizer, loaded.vocab_size, loaded.eos_ids)

    @classmethod
    def from_pretrained(cls, model: str, config: EngineConfig | None = None, **options: Any) -> Engine:
        """Load a model (folder, hub id or ``embedded``) and build an engine; `options` go over those of `config`.

        Raises:
            ModelError: the model is not there, not readable or not supported.
            InvalidRequest: there is no such option; the default drafter does not exist or the default attention policy
                does not suit the model. Its weights have not been read.
        """
        given = config.model_dump() if config is not None else {}
        chosen = EngineConfig.of(**{**given, **options}).resolved()
        named = chosen.attention if chosen.attention != "auto" else None  # which suits every model
        check_options(chosen.drafter, named, None, lambda: shape_of(model, chosen))
        select_kernels(torch.device(chosen.device), DTYPES.get(chosen.dtype, torch.float32), chosen.backend)
        if chosen.threads:
            torch.set_num_threads(chosen.threads)
        ranks = leading(chosen.tensor_parallel)
        if ranks is not None:
            chosen = chosen.model_copy(update={"device": ranks.device})
            ranks.tell(Load(model, chosen))
        loaded = load_model(
            model,
            chosen.dtype,
            chosen.device,
            chosen.max_model_len,
            ranks,
            chosen.weights,
            chosen.activations,
            kv_memory(chosen) if chosen.device == "cpu" else chosen.kv_memory or 0,
        )
        return cls(loaded, chosen)

    def add_request(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams | None = None,
        request_id: str | None = None,
        draft_sources: DraftSources | None = None,
        mixture: MixtureSource | None = None,
        reading: Reading | None = None,
        spans: PassageSpans | None = None,
    ) -> str:
        """Queue a request that was let in (`service.engine.admission`); returns its id.

        Args:
            draft_sources: what its drafter may draw on besides the prompt.
            mixture: what its tokens are chosen from besides the model.
            reading: who wants the prompt read, which is then not answered.
            spans: where the prompt holds passages.

        Raises:
            InvalidRequest: the engine lacks what its drafter, its policy or its constraint needs; nothing was queued.
        """
        params = params or SamplingParams()
        request_id = request_id or f"r{next(self._ids)}"
        if request_id in self._requests:
            raise InvalidRequest(f"A request {request_id!r} is already running.", param="request_id")
        detokenizer = Detokenizer(self.tokenizer, params.stop) if self.tokenizer is not None else None
        stop_checker = StopChecker(self._stop_ids(params), params.max_tokens, detokenizer)
        request = Request(request_id, prompt_ids, params, draft_sources, stop_checker, reading)
        request.prefix_owner = params.owner if self.config.prefix_scope == "owner" else None
        if mixture is not None:
            request.mixture = mixture.open(params, stop_checker.stop_ids, self.loaded)
        request.logits_processor = self._logits_processor(request)
        self._set_policy(request, spans)
        self.drafting.open(request, stop_checker.stop_ids)
        self.scheduler.add(request)
        self._requests[request_id] = request
        return request_id

    @property
    def salt(self) -> str:
        """What else than the tokens decides the KV of a dense sequence: model, dtypes, and which heads share a page."""
        invariant = "invariant" if self.config.batch_invariant else ""
        layout = self.runner.pool.layout.name()
        rounded = "" if self.config.activations == "auto" else f"activations {self.config.activations}"
        kinds = (self.config.dtype, self.loaded.weights, rounded, self.config.kv_dtype, layout, invariant)
        return "/".join([self.loaded.fingerprint, *filter(None, kinds)])

    @property
    def vocab_size(self) -> int:
        return self.loaded.vocab_size

    @property
    def num_pages(self) -> int:
        """Of KV, for all requests together."""
        return self.blocks.num_pages

    def most_pages(self, prompt_len: int, max_len: int, attention: str | None = None) -> int:
        """No less than the pages that a request of `max_len` tokens holds at any time under a policy."""
        policy = checked_policy(attention or self.config.attention, self.shape)
        lifetimes = self._lifetimes(policy.resolve(prompt_len, self.shape), prompt_len)
        return self.scheduler.most_pages(max_len, lifetimes)

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work or bool(self._outputs) or self.canary.has_work or self._flight is not None

    def step(self) -> list[TokenOutput]:
        """Run one forward; returns what it brought to each request, and what was aborted since the last step.

        Raises:
            DeviceLost: the device will answer no later step either.
        """
        started = time.perf_counter()
        if self._flight is not None:
            flight, self._flight = self._flight, self._follow(self._flight)
            return self._ran(flight.step, started, flight)
        self._settle()
        self.blending.resume(self._fail)
        self.canary.resume()
        self.drafting.resume()
        step = self.scheduler.schedule()
        for request, error in step.failed:
            self._fail(request, error)
        if not step:
            self._idle()
        self._prepare(step)
        self.drafting.read_ahead(self.config.step_tokens - step.num_rows)
        if step and self._flies(step):
            self._flight = self._launch(step)
        if step and self._flight is None:
            return self._ran(step, started)
        return self._taken()

    def abort(self, request_id: str) -> None:
        """End a request between steps; its pages are free when this returns. Unknown ids are ignored."""
        request = self._requests.get(request_id)
        if request is not None:
            self._outputs.append(self._finish(request, FinishReason.ABORT))

    def keep_warm(self, name: str, request: Request) -> Path:
        """Keep the whole pages of a sequence that was read on disk; see ``AsyncEngine.warm``."""
        assert self.warmed is not None
        keys = self.blocks.tier_keys(request.token_ids, request.pages, request.digests)
        return self.warmed.write(name, list(keys), list(keys.values()), {"salt": request.salt})

    def reset(self) -> None:
        """Abort every request and forget the outputs that nobody has taken."""
        for request_id in list(self._requests):
            self.abort(request_id)
        self.canary.stop()
        self._outputs.clear()
        self._flight = None

    def stats(self) -> dict[str, Any]:
        """Figures of the engine now and since it was made."""
        blocks, totals, pool = self.blocks, self.totals, self.runner.pool
        page_bytes = pool.page_bytes + pool.stats_bytes
        return {
            "model": self.loaded.name,
            "requests_running": len(self.scheduler.running),
            "requests_waiting": len(self.scheduler.waiting),
            "kv_pages": blocks.num_pages,
            "kv_pages_used": blocks.num_owned,
            "kv_bytes": blocks.num_pages * page_bytes,
            "kv_bytes_used": blocks.num_owned * page_bytes,
            "kv_cache_usage": blocks.num_owned / blocks.num_pages,
            "prefix_cache_queries": blocks.queries,
            "prefix_cache_hits": blocks.hits,
            "prefix_cache_evictions": blocks.evictions,
            "prefix_cache_restored_pages": blocks.restored,
            "passage_queries": self.blending.store.queries,
            "passage_hits": self.blending.store.hits,
            "passage_restored": self.blending.store.restored,
            "passage_evictions": self.blending.store.evictions,
            "passage_bytes_used": self.blending.store.num_bytes,
            "canary": {policy: found.figures() for policy, found in self.canary.compared.items()},
            "canary_skipped": self.canary.skipped,
            "preemptions": self.scheduler.num_preemptions,
            "kernels": sorted(self.kernels),
            "precision": self.loaded.arithmetic,
            "drafting": self.drafting.totals.as_dict(),
            "draft_sessions_reclaimed": self.lent.reclaimed,
            "overlap": self.overlap.as_dict(),
            **self.runner.figures(),
            **vars(totals),
        }

    def check_integrity(self) -> None:
        """Assert that pages in use are those of the running requests (see BlockManager.check_integrity)."""
        self.scheduler.check_integrity(self.lent.owners())

    def _set_policy(self, request: Request, spans: PassageSpans | None) -> None:
        """Put the attention policy in force; pages of a prefix are shared under equal policies only, by one owner's.

        Raises:
            InvalidRequest: there is no such policy, or the model and its pages do not allow it.
        """
        policy = self._policy_in_force(request)
        request.salt = salt_of(self.salt, request.prefix_owner)
        if isinstance(policy, Blend):
            self.blending.open(request, policy, spans, request.salt)
            return
        if policy.is_dense(self.shape, request.prompt_len, request.max_len):
            return
        if policy.needs_page_stats(self.shape):
            self.runner.keep_stats()
        request.policy = self.runner.policy_state(policy, self.shape, request.prompt_len)
        request.lifetimes = self._lifetimes(policy, request.prompt_len)
        patterns = [p for n in range(self.shape.num_layers) for p in policy.prefill(n, self.shape, request.prompt_len)]
        if not all(pattern.static for pattern in patterns):
            request.prefill_grid = self.config.step_tokens
        request.salt = salt_of(f"{self.salt}/{policy.cache_key()}", request.prefix_owner)

    def _policy_in_force(self, request: Request) -> Policy:
        """What its prompt's length makes of the policy that it names, or of the default, which may be withdrawn."""
        named = checked_policy(request.params.attention or self.config.attention, self.shape)
        policy = named.resolve(request.prompt_len, self.shape)
        if not self.canary.is_withdrawn(policy.cache_key(), request.params.owner):
            return policy
        if request.params.attention is not None and policy == named:
            self.canary.check(policy.cache_key(), request.params.owner)
        return Policy()

    def _logits_processor(self, request: Request) -> LogitsProcessor | None:
        params, constraint = request.params, request.params.constraint
        constrained: ConstrainedText | ForcedText | None = None
        if constraint is not None:
            constrained = self.constraints.start(constraint, request.prompt_len)
        elif params.forced:
            constrained = ForcedText(params.forced, request.prompt_len)
        return LogitsProcessor.of(
            constrained, params.penalties, request.token_ids, params.temperature, self.loaded.vocab_size
        )

    def _lifetimes(self, policy: Policy, prompt_len: int) -> PageLifetimes | None:
        return PageLifetimes.of(self.runner.pool.layout, policy, self.shape, prompt_len)

    def _stop_ids(self, params: SamplingParams) -> frozenset[int]:
        own = frozenset(params.stop_token_ids)
        return own if params.ignore_eos else own | self.loaded.eos_ids

    def _demand_batch_invariance(self) -> None:
        """Have the rows of prompts computed as those of decoding are. Raises InvalidRequest where they cannot be."""
        config, model = self.config, self.loaded.model
        kernels = select_kernels(torch.device(config.device), DTYPES[config.dtype], config.backend)
        if config.device.startswith("cuda"):
            reason = why_not_invariant(model) if kernels.row_invariant else "there is no Triton here"
            if reason is not None:
                raise InvalidRequest(
                    f"batch_invariant cannot be kept by this model: {reason}.", param="batch_invariant"
                )
            make_gpu_invariant(model)
            return
        on_kernels = config.dtype == "float32" or (config.dtype == "bfloat16" and self.loaded.weights != "plain")
        if not on_kernels or not kernels.row_invariant:
            raise InvalidRequest(
                "batch_invariant is for a GPU, or for a CPU with a C++ compiler, in float32 or with weights as stored.",
                param="batch_invariant",
            )
        make_row_invariant(model, max_rows=None)

    @contextmanager
    def _failing_alone(self, request: Request) -> Iterator[None]:
        """What is raised in here fails this request; the others of the step go on."""
        try:
            yield
        except Exception as error:
            log.exception("request failed", request=request.id)
            self._fail(request, error)

    def _prepare(self, step: Step) -> None:
        """Copy what slices pass over into their pages, and let the drafters guess.

        A request whose drafter cannot do without is left out of the step.
        """
        batch_size = sum(seq.samples for seq in step.slices)
        for seq in step.slices:
            with self._failing_alone(seq.request):
                if seq.fills:
                    self.blending.fill(seq)
                self.drafting.propose(seq, batch_size)
        step.slices = [seq for seq in step.slices if seq.request.finish_reason is None and not seq.request.parked]

    def _taken(self) -> list[TokenOutput]:
        outputs, self._outputs = self._outputs, []
        return outputs

    def _ran(self, step: Step, started: float, flight: Flight | None = None) -> list[TokenOutput]:
        """Run a step, or go on with one that was launched before; returns the outputs."""
        self._run(step, flight)
        self.totals.steps += 1
        self.totals.step_s += time.perf_counter() - started
        return self._taken()

    def _flies(self, step: Step) -> bool:
        """Whether a step may be read when the next one has been launched; counts why not."""
        if not self.overlaps:
            return False
        for seq in step.slices:
            reason = why_apart(seq) or (None if self.drafting.is_plain(seq.request) else "drafts")
            if reason is not None:
                self.overlap.apart[reason] += 1
                return False
        return True

    def _follow(self, flight: Flight) -> Flight | None:
        """Launch the step behind one whose tokens nobody has read yet, where nothing else is to be done before."""
        step = self.scheduler.follow(flight.step)
        behind = self._launch(step, flight) if step is not None else None
        self.overlap.overlapped += behind is not None
        return behind

    def _launch(self, step: Step, before: Flight | None = None) -> Flight | None:
        """None where it cannot be launched: then it is run, and fails, in its turn."""
        try:
            return Flight(self.runner, step, before)
        except Exception:
            log.exception("a step could not be launched ahead", requests=[seq.request.id for seq in step.slices])
            if before is not None:
                self.scheduler.rollback(step)
            return None

    def _run(self, step: Step, flight: Flight | None = None) -> None:
        """From the forward, or from what was launched before, to the outputs."""
        forwarded = time.perf_counter()
        try:
            forward = flight.forward if flight is not None else self.runner.run(step.slices)
            chosen = flight.verdicts() if flight is not None else None
            verifying = time.perf_counter()
            outcomes = self._verify(step, forward, chosen)
        except DeviceLost:
            raise
        except Exception as error:  # of the model, and so of all that it was run for
            log.exception("step failed", requests=[seq.request.id for seq in step.slices])
            self.scheduler.rollback(step)
            for seq in step.slices:
                if seq.request.finish_reason is None:
                    self._fail(seq.request, error)
            return
        verified = time.perf_counter()
        self.totals.forward_s += verified - forwarded
        self.drafting.count_verifying([outcome.seq.request for outcome in outcomes], verified - verifying)
        self.scheduler.commit(step, {outcome.seq.request.id: outcome.emitted for outcome in outcomes})
        self._collect(step, outcomes, forward)
        if flight is None:
            self.drafting.record(step, time.perf_counter() - forwarded)
            self.scheduler.observe(step, time.perf_counter() - forwarded)

    def _verify(self, step: Step, forward: Forward, chosen: list[Verdict] | None = None) -> list[Outcome]:
        """Choose a token after every row, unless they are ``chosen``, walk the trees, end the outputs, and keep the KV
        of accepted nodes."""
        sampling = [
            (seq, _rows(seq, first)) for seq, first in zip(step.slices, forward.first_row, strict=True) if seq.samples
        ]
        logits = self._processed(sampling, forward.logits)
        keyed = chosen if chosen is not None else []
        if sampling and chosen is None:
            keyed = sample(logits, _keys([seq for seq, _ in sampling]))
        outcomes = {}
        for (seq, rows), walked in zip(sampling, keyed, strict=True):
            request = seq.request
            if request.finish_reason is None:
                with self._failing_alone(request):
                    verdict = self._judge(seq, logits[rows], walked, forward.states.get(request.id))
                    if request.mixture is not None:
                        verdict = _guessed(request.mixture, seq, logits[rows][0], forward.hidden[request.id][-1])
                        emitted = Emitted(list(verdict.tokens))  # provisional: what ends there is decided later
                    else:
                        emitted = request.stop_checker.take(verdict.tokens, request.num_output)
                    outcomes[request.id] = Outcome(seq, rows, verdict, emitted)
        for seq in step.slices:
            if seq.request.finish_reason is None:
                with self._failing_alone(seq.request):
                    self._keep_rows(seq, outcomes[seq.request.id].verdict.path if seq.samples else ())
        return [outcome for outcome in outcomes.values() if outcome.seq.request.finish_reason is None]

    def _processed(self, sampling: Sequence[tuple[Slice, slice]], logits: Tensor) -> Tensor:
        """The logits that tokens are chosen from: the model's, or a changed copy where a request asks for that."""
        changed = [
            (seq, rows) for seq, rows in sampling if seq.request.logits_processor or self.drafting.is_lossy(seq.request)
        ]
        if not changed:
            return logits
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32), copy=True)
        for seq, rows in changed:
            with self._failing_alone(seq.request):
                own = self.drafting.adjust(seq, logits[rows]).to(logits.dtype)
                if seq.request.logits_processor is not None:
                    own = seq.request.logits_processor(own, seq.request.token_ids, seq.tree or EMPTY)
                logits[rows] = own
        return logits

    def _judge(self, seq: Slice, logits: Tensor, walked: Verdict, states: Tensor | None) -> Verdict:
        """The verdict on a tree: the keyed walk's, or that of a drafter with a rule of its own; logits [n + 1, V], and
        the states that the drafter reads.

        Raises:
            FloatingPointError: it came to a row from which no token can be chosen.
        """
        verdict = self.drafting.verify(seq, logits, walked, states)
        if NO_TOKEN in verdict.tokens or (verdict is not walked and not has_choice(logits[verdict.rows]).all()):
            position = seq.end
            raise FloatingPointError(
                f"no token can be chosen from position {position} on: logits are not numbers, or none is finite"
            )
        return verdict

    def _keep_rows(self, seq: Slice, path: Sequence[int]) -> None:
        """Keep what the forward made of a slice's tokens and of the accepted nodes."""
        count = len(seq.token_ids)
        if path:
            self.runner.keep_nodes(seq.request.pages, seq.end, path)
        if seq.request.policy is not None:
            seq.request.policy.commit([*range(count), *(count + node for node in path)])

    def _collect(self, step: Step, outcomes: Sequence[Outcome], forward: Forward) -> None:
        """Queue what the step brought to each request, and end those that are done."""
        now = time.perf_counter()
        self.kernels |= forward.kernels
        paths = {outcome.seq.request.id: outcome.verdict.path for outcome in outcomes}
        for seq in step.slices:
            seq.request.scheduled = seq.request.scheduled or now
            scores = forward.scores.get(seq.request.id, [])
            seq.request.scored[seq.start : seq.start + len(scores)] = scores
            states = forward.states.get(seq.request.id)
            if seq.request.finish_reason is not None:
                continue
            if seq.request.reading is not None:
                hidden = states if seq.request.reading.layers else forward.hidden.get(seq.request.id)
                self._hand_over(seq, seq.request.reading, hidden)
            elif states is not None:
                self.drafting.read(seq, paths.get(seq.request.id, ()), states)
        for outcome in outcomes:
            request = outcome.seq.request
            request.steps += 1
            if request.mixture is not None:
                if request.parked:
                    self.lookups.start(request)
                continue
            with self._failing_alone(request):
                self._outputs.append(self._output(outcome, forward.logits[outcome.rows]))

    def _output(self, outcome: Outcome, logits: Tensor) -> TokenOutput:
        """What the step brought to one request, which is ended where it is done; logits [n + 1, V] of the model."""
        request, emitted, verdict = outcome.seq.request, outcome.emitted, outcome.verdict
        sources = self.drafting.observe(outcome.seq, verdict, emitted.token_ids, logits)
        count, logprobs = request.params.logprobs, None
        if count is not None:
            reached = list(verdict.rows)[: len(emitted.token_ids)]
            logprobs = token_logprobs(logits[reached], emitted.token_ids, count)
        return self._given(request, emitted, sources, logprobs)

    def _given(
        self, request: Request, emitted: Emitted, sources: list[str], logprobs: list[TokenLogprobs] | None = None
    ) -> TokenOutput:
        """The output of tokens that were committed; their request is ended where it is done."""
        ids, pieces = emitted.token_ids, emitted.pieces
        output = TokenOutput(request.id, ids, "".join(pieces), logprobs=logprobs, sources=sources, pieces=pieces)
        if request.params.prompt_logprobs is not None and request.first_token is None:
            output.prompt_logprobs = request.scored
        request.last_token = now = time.perf_counter()
        request.first_token = request.first_token or now
        if emitted.reason is not None:
            done = self._finish(request, emitted.reason)
            output.finished, output.finish_reason, output.stats = True, done.finish_reason, done.stats
        return output

    def _settle(self) -> None:
        """Give out what the look-ups of mixtures have decided since the last step."""
        for request, error in self.lookups.ended():
            with self._failing_alone(request):
                if error is not None:
                    raise error
                assert request.mixture is not None
                emitted = request.stop_checker.take(request.mixture.settle(), request.num_output)
                self.scheduler.settle(request, emitted)
                self._outputs.append(self._given(request, emitted, [TARGET] * len(emitted.token_ids)))

    def _idle(self) -> None:
        """Where no row can run: wait for look-ups; without any, end a request that waits for a drafter in vain."""
        if self.lookups:
            self.lookups.wait(_IDLE_S)
        elif self.drafting.stuck is not None:
            self._fail(self.drafting.stuck, OutOfPages("no page is left for what its drafter must read"))

    def _hand_over(self, seq: Slice, reading: Reading, hidden: Tensor | None) -> None:
        """Tell who wanted a sequence read what was read of it, and end it where it is whole."""
        request = seq.request
        with self._failing_alone(request):
            if not reading.take(request, seq.start, hidden):
                return
            if self._requests.get(request.id) is not request:  # the engine's own, and no request of anybody's
                self.scheduler.finish(request, FinishReason.STOP)
            else:
                self._outputs.append(self._finish(request, FinishReason.STOP))

    def _finish(self, request: Request, reason: FinishReason) -> TokenOutput:
        if request.finish_reason in (FinishReason.STOP, FinishReason.LENGTH) and not self.drafting.is_lossy(request):
            self.canary.consider(request)
        self.scheduler.finish(request, reason)
        self._requests.pop(request.id, None)
        totals = self.totals
        totals.finished += 1
        totals.prompt_tokens += request.prompt_len
        totals.cached_tokens += request.cached_tokens
        totals.output_tokens += request.num_output
        stats = {**request.stats(), "lossy": self._is_lossy(request), "kernels": sorted(self.kernels)}
        stats |= {**self.drafting.close(request), **self.blending.close(request)}
        if request.mixture is not None:
            stats |= request.mixture.stats()
        return TokenOutput(request.id, [], "", True, reason.value, stats)

    def _is_lossy(self, request: Request) -> bool:
        """Whether its answer may be another than the model's own, read and decoded densely."""
        return request.lossy_policy is not None or self.drafting.is_lossy(request)

    def _fail(self, request: Request, error: BaseException) -> None:
        """End a request with an error; its pages are free when this returns.

        Raises:
            DeviceLost: the error is none of the request's own.
        """
        if is_lost(error):
            reason = str(error).splitlines()[0]
            raise DeviceLost(f"The device {self.config.device} is lost: {reason}.", hint="Start anew.") from error
        if self._requests.get(request.id) is not request:  # the engine's own: whoever wanted it will notice
            self.scheduler.finish(request, FinishReason.ERROR)
            return
        self.totals.failed += 1
        output = self._finish(request, FinishReason.ERROR)
        output.error = f"{type(error).__name__}: {error}"
        output.refusal = error if isinstance(error, InvalidRequest) else None
        self._outputs.append(output)


def _guessed(mixture: Mixture, seq: Slice, logits: Tensor, hidden: Tensor) -> Verdict:
    """A mixture's guess for the token behind a slice, if it has one; logits [V], hidden [d]."""
    guess = mixture.guess(logits, hidden, seq.end)
    return Verdict((), () if guess is None else (guess,))


def _keys(sampling: Sequence[Slice]) -> RowKeys:
    """How the tokens after the pending token and the tree's nodes of each slice are chosen."""
    return RowKeys(
        [seq.request.params for seq in sampling],
        [seq.tree or EMPTY for seq in sampling],
        [seq.end for seq in sampling],
    )


def _rows(seq: Slice, first: int) -> slice:
    """A sampling slice's rows of a step's logits: its pending token and its tree's nodes."""
    return slice(first, first + 1 + seq.num_nodes)
