"""The synchronous engine: requests in, tokens out, one forward a step, deterministic.

A step is

    step     = scheduler.schedule()          which tokens run; pages reserved
    drafting.propose(step)                   guesses below the pending tokens; may be empty
    forward  = runner.run(step.slices)       one forward of the unmodified model
    verdicts = verify(tree, choices)         pure
    scheduler.commit(step, verdicts)         lengths move, pages return

and an exception anywhere before commit is a rollback: no length has moved. The requests of that step then fail with an
error each; the engine and the other requests go on.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
import torch
from torch import Tensor

from drafters.stats import TARGET
from drafters.tree import EMPTY
from drafters.verify import Verdict
from service.engine.block_manager import BlockManager
from service.engine.checks import check_options, shape_of
from service.engine.config import EngineConfig
from service.engine.detokenizer import Detokenizer
from service.engine.drafting.drafting import Drafting
from service.engine.drafting.resources import draft_resources
from service.engine.drafting.sessions import DraftPages
from service.engine.kv.layout import checked_policy, head_layout, make_pool
from service.engine.kv.tiers import HostTier, Tiers, WarmTier
from service.engine.loading.checkpoint import DTYPES, EMBEDDED, LoadedModel, load_model
from service.engine.mixture import Lookups, MixtureSource
from service.engine.reading import Reading
from service.engine.request import (
    DraftSources,
    FinishReason,
    Request,
    SamplingParams,
    TokenLogprobs,
    TokenOutput,
)
from service.engine.runner.device import is_lost
from service.engine.runner.factory import make_runner
from service.engine.runner.host_allocator import keep_freed_memory
from service.engine.runner.model_runner import Forward
from service.engine.runner.ranks import leading
from service.engine.runner.tensor_parallel import Load
from service.engine.sampling.constraint import ConstraintCompiler
from service.engine.sampling.logits_processor import LogitsProcessor
from service.engine.sampling.sampler import RowKeys, sample, token_logprobs
from service.engine.scheduler import Scheduler, SchedulerConfig
from service.engine.step import Slice, Step
from service.errors import DeviceLost, InvalidRequest
from sparse_attn.kernels import select_kernels
from sparse_attn.kv.lifetimes import PageLifetimes
from sparse_attn.plan.policy import ModelShape, Policy

log = structlog.get_logger(__name__)

_IDLE_S = 0.005  # longest wait for look-ups where nothing else is to be done: a command may come meanwhile


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
        self.shape = ModelShape.of_config(
            loaded.model.config.get_text_config(),
            config.page_size,
            self.max_model_len,
            fingerprint=loaded.name if loaded.name == EMBEDDED else "",
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
        self.runner = make_runner(loaded, pool, config)
        self.lookups = Lookups()
        self.totals = EngineTotals()
        self.kernels: set[str] = set()
        self._requests: dict[str, Request] = {}
        self._detokenizers: dict[str, Detokenizer] = {}
        self._outputs: list[TokenOutput] = []
        self._ids = itertools.count(1)
        resources = draft_resources(loaded, config, self.runner, self.lent, self._requests, self.salt)
        most_nodes = min(limits.max_draft, self.blocks.num_pages * self.blocks.page_size - 1)
        self.drafting = Drafting(resources, config.drafter, most_nodes)
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
        check_options(chosen.drafter, chosen.attention, None, lambda: shape_of(model, chosen))
        select_kernels(torch.device(chosen.device), DTYPES[chosen.dtype], chosen.attention_backend)
        if chosen.threads:
            torch.set_num_threads(chosen.threads)
        ranks = leading(chosen.tensor_parallel)
        if ranks is not None:
            chosen = chosen.model_copy(update={"device": ranks.device})
            ranks.tell(Load(model, chosen))
        return cls(load_model(model, chosen.dtype, chosen.device, chosen.max_model_len, ranks), chosen)

    def add_request(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams | None = None,
        request_id: str | None = None,
        draft_sources: DraftSources | None = None,
        mixture: MixtureSource | None = None,
        reading: Reading | None = None,
    ) -> str:
        """Queue a request that was let in (`service.engine.admission`); returns its id.

        Args:
            draft_sources: what its drafter may draw on besides the prompt.
            mixture: what its tokens are chosen from besides the model.
            reading: who wants the prompt read, which is then not answered.

        Raises:
            InvalidRequest: the engine lacks what its drafter or its constraint needs; nothing was queued.
        """
        params = params or SamplingParams()
        request_id = request_id or f"r{next(self._ids)}"
        if request_id in self._requests:
            raise InvalidRequest(f"A request {request_id!r} is already running.", param="request_id")
        request = Request(request_id, prompt_ids, params, draft_sources, reading)
        if mixture is not None:
            request.mixture = mixture.open(params, self._stop_ids(params), self.loaded)
        request.logits_processor = self._logits_processor(request)
        self._set_policy(request)
        self.drafting.open(request, self._stop_ids(params))
        self.scheduler.add(request)
        self._requests[request_id] = request
        if self.tokenizer is not None:
            self._detokenizers[request_id] = Detokenizer(self.tokenizer, params.stop)
        return request_id

    @property
    def salt(self) -> str:
        """What else than the tokens decides the KV of a dense sequence: model, dtypes, and which heads share a page."""
        kinds = (self.config.dtype, self.config.kv_dtype, self.runner.pool.layout.name())
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
        return self.scheduler.has_work or bool(self._outputs)

    def step(self) -> list[TokenOutput]:
        """Run one forward; returns what it brought to each request, and what was aborted since the last step.

        Raises:
            DeviceLost: the device will answer no later step either.
        """
        started = time.perf_counter()
        outputs, self._outputs = self._outputs, []
        outputs += self._settle()
        step = self.scheduler.schedule()
        if not step:
            self.lookups.wait(_IDLE_S)
            return outputs
        try:
            self.drafting.propose(step)
            forwarded = time.perf_counter()
            forward = self.runner.run(step.slices)
            verifying = time.perf_counter()
            verdicts = self._verify(step, forward) | _guesses(step, forward)
            verified = time.perf_counter()
            forward_s = verified - forwarded
        except Exception as error:  # whatever the model raises fails this step's requests, not the engine
            self.scheduler.rollback(step)
            if is_lost(error):
                reason = str(error).splitlines()[0]
                raise DeviceLost(f"The device {self.config.device} is lost: {reason}.", hint="Start anew.") from error
            log.exception("step failed", requests=[p.request.id for p in step.slices])
            return outputs + [self._fail(p.request, error) for p in step.slices]
        self.drafting.count_verifying(step, verified - verifying)
        self.scheduler.commit(step, verdicts, self._is_stop)
        outputs += self._collect(step, verdicts, forward)
        self.drafting.record(step, time.perf_counter() - forwarded)
        self.totals.steps += 1
        self.totals.forward_s += forward_s
        self.totals.step_s += time.perf_counter() - started
        return outputs

    def abort(self, request_id: str) -> None:
        """End a request between steps; its pages are free when this returns. Unknown ids are ignored."""
        request = self._requests.get(request_id)
        if request is not None:
            self._outputs.append(self._finish(request, FinishReason.ABORT))

    def keep_warm(self, name: str, request: Request) -> Path:
        """Keep the whole pages of a sequence that was read on disk; see ``AsyncEngine.warm``."""
        assert self.warmed is not None
        digests = self.blocks.digests(request.token_ids, request.salt, request.pages)
        return self.warmed.write(name, list(digests), list(digests.values()), {"salt": request.salt})

    def reset(self) -> None:
        """Abort every request and forget the outputs that nobody has taken."""
        for request_id in list(self._requests):
            self.abort(request_id)
        self._outputs.clear()

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
            "preemptions": self.scheduler.num_preemptions,
            "kernels": sorted(self.kernels),
            "drafting": self.drafting.totals.as_dict(),
            "draft_sessions_reclaimed": self.lent.reclaimed,
            **self.runner.figures(),
            **vars(totals),
        }

    def check_integrity(self) -> None:
        """Assert that pages in use are those of the running requests (see BlockManager.check_integrity)."""
        self.scheduler.check_integrity(self.lent.owners())

    def _set_policy(self, request: Request) -> None:
        """Put the attention policy in force; pages of a prefix are shared under equal policies only.

        Raises:
            InvalidRequest: there is no such policy, or the model and its pages do not allow it.
        """
        policy = checked_policy(request.params.attention or self.config.attention, self.shape)
        policy = policy.resolve(request.prompt_len, self.shape)
        request.salt = self.salt
        if policy.is_dense(self.shape, request.prompt_len, request.max_len):
            return
        if policy.needs_page_stats(self.shape):
            self.runner.keep_stats()
        request.policy = self.runner.policy_state(policy, self.shape, request.prompt_len)
        request.lifetimes = self._lifetimes(policy, request.prompt_len)
        patterns = [p for n in range(self.shape.num_layers) for p in policy.prefill(n, self.shape, request.prompt_len)]
        if not all(pattern.static for pattern in patterns):
            request.prefill_grid = self.config.step_tokens
        request.salt = f"{self.salt}/{policy.cache_key()}"

    def _logits_processor(self, request: Request) -> LogitsProcessor | None:
        params, constraint = request.params, request.params.constraint
        constrained = self.constraints.compile(constraint, request.prompt_len) if constraint is not None else None
        return LogitsProcessor.of(
            constrained, params.penalties, request.token_ids, params.temperature, self.loaded.vocab_size
        )

    def _lifetimes(self, policy: Policy, prompt_len: int) -> PageLifetimes | None:
        return PageLifetimes.of(self.runner.pool.layout, policy, self.shape, prompt_len)

    def _is_stop(self, request: Request, token: int) -> bool:
        return token in self._stop_ids(request.params)

    def _stop_ids(self, params: SamplingParams) -> frozenset[int]:
        own = frozenset(params.stop_token_ids)
        return own if params.ignore_eos else own | self.loaded.eos_ids

    def _verify(self, step: Step, forward: Forward) -> dict[str, Verdict]:
        """Choose a token after every row, walk the trees, and move the KV of accepted nodes into place."""
        sampling = [(part, first) for part, first in zip(step.slices, forward.first_row, strict=True) if part.samples]
        logits = self._chosen_from(sampling, forward.logits)
        keyed = sample(logits, _keys([part for part, _ in sampling])) if sampling else []
        verdicts = {}
        for (part, first), walked in zip(sampling, keyed, strict=True):
            verdict = self.drafting.verify(part, logits[_rows(part, first)], walked)
            verdicts[part.request.id] = verdict
            if verdict.path:
                self.runner.keep_nodes(part.request.pages, part.start + len(part.token_ids), verdict.path)
        for part in step.slices:
            if part.request.policy is not None:
                count = len(part.token_ids)
                path = verdicts[part.request.id].path if part.samples else ()
                part.request.policy.commit([*range(count), *(count + node for node in path)])
        return verdicts

    def _chosen_from(self, sampling: Sequence[tuple[Slice, int]], logits: Tensor) -> Tensor:
        """The logits that tokens are chosen from: the model's, or a changed copy where a request asks for that."""
        changed = [
            (part, first)
            for part, first in sampling
            if part.request.logits_processor or self.drafting.is_lossy(part.request)
        ]
        if not changed:
            return logits
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32), copy=True)
        for part, first in changed:
            rows, request = _rows(part, first), part.request
            own = self.drafting.adjust(part, logits[rows]).to(logits.dtype)
            if request.logits_processor is not None:
                own = request.logits_processor(own, request.token_ids, part.tree or EMPTY)
            logits[rows] = own
        return logits

    def _collect(self, step: Step, verdicts: dict[str, Verdict], forward: Forward) -> list[TokenOutput]:
        now = time.perf_counter()
        self.kernels |= forward.kernels
        outputs = []
        for i, (part, first) in enumerate(zip(step.slices, forward.first_row, strict=True)):
            request = part.request
            request.scheduled = request.scheduled or now
            if request.reading is not None:
                outputs += self._hand_over(part, forward.hidden[i] if forward.hidden is not None else None)
            if not part.samples:
                continue
            if request.mixture is not None:
                request.steps += 1
                if request.parked:
                    self.lookups.start(request)
                continue
            if request.logits_processor is not None and request.logits_processor.error is not None:
                outputs.append(self._fail(request, request.logits_processor.error))
                continue
            verdict = verdicts[request.id]
            before = part.start + len(part.token_ids)
            pieces = self._pieces(request, request.token_ids[before:], before)
            new_ids = request.token_ids[before:]  # a stop string may have cut them
            request.steps += 1
            sources = self.drafting.observe(part, verdict, new_ids, forward.logits[_rows(part, first)])
            output = self._output(request, new_ids, pieces, sources)
            if request.params.logprobs is not None:
                output.logprobs = self._logprobs(request, forward, first, verdict, new_ids)
            outputs.append(output)
        return outputs

    def _settle(self) -> list[TokenOutput]:
        """Give out what the look-ups of mixtures have decided since the last step."""
        outputs = []
        for request, error in self.lookups.ended():
            assert request.mixture is not None
            if error is not None:
                outputs.append(self._fail(request, error))
                continue
            before = request.num_certain
            self.scheduler.settle(request, request.mixture.settle(), self._is_stop)
            pieces = self._pieces(request, request.token_ids[before:], before)
            new_ids = request.token_ids[before:]
            outputs.append(self._output(request, new_ids, pieces, [TARGET] * len(new_ids)))
        return outputs

    def _hand_over(self, part: Slice, hidden: Tensor | None) -> list[TokenOutput]:
        """Tell who wanted a sequence read what was read of it; the end, where it is whole."""
        request, reading = part.request, part.request.reading
        assert reading is not None
        try:
            if reading.on_chunk is not None and hidden is not None:
                reading.on_chunk(part.start, hidden)
            if request.num_pending:
                return []
            if reading.on_read is not None:
                reading.on_read(request)
        except Exception as error:
            return [self._fail(request, error)]
        return [self._finish(request, FinishReason.STOP)]

    def _output(self, request: Request, new_ids: list[int], pieces: list[str], sources: list[str]) -> TokenOutput:
        """What a request is given now, and its end if this is it."""
        request.last_token = now = time.perf_counter()
        request.first_token = request.first_token or now
        output = TokenOutput(request.id, new_ids, "".join(pieces), sources=sources, pieces=pieces)
        if request.finish_reason is not None:
            done = self._finish(request, request.finish_reason)
            output.finished, output.finish_reason, output.stats = True, done.finish_reason, done.stats
        return output

    def _pieces(self, request: Request, new_ids: list[int], before: int) -> list[str]:
        """The text of each new token; a stop string ends the request at the token that completes it."""
        detokenizer = self._detokenizers.get(request.id)
        if detokenizer is None:
            return []
        pieces = []
        for i, token in enumerate(new_ids):
            last = i + 1 == len(new_ids) and request.finish_reason is not None
            pieces.append(detokenizer.push([token], last=last))
            if detokenizer.stopped:
                request.finish_reason = FinishReason.STOP
                del request.token_ids[before + i + 1 :]
                break
        return pieces

    def _logprobs(
        self, request: Request, forward: Forward, first: int, verdict: Verdict, token_ids: list[int]
    ) -> list[TokenLogprobs]:
        count = request.params.logprobs or 0
        rows = [first, *(first + node + 1 for node in verdict.path)]
        return [token_logprobs(forward.logits[row], token, count) for row, token in zip(rows, token_ids, strict=False)]

    def _finish(self, request: Request, reason: FinishReason) -> TokenOutput:
        self.scheduler.finish(request, reason)
        self._requests.pop(request.id, None)
        self._detokenizers.pop(request.id, None)
        totals = self.totals
        totals.finished += 1
        totals.prompt_tokens += request.prompt_len
        totals.cached_tokens += request.cached_tokens
        totals.output_tokens += request.num_output
        stats = {**request.stats(), "kernels": sorted(self.kernels), **self.drafting.close(request)}
        if request.mixture is not None:
            stats |= request.mixture.stats()
        return TokenOutput(request.id, [], "", True, reason.value, stats)

    def _fail(self, request: Request, error: BaseException) -> TokenOutput:
        self.totals.failed += 1
        request.finish_reason = FinishReason.ERROR
        output = self._finish(request, FinishReason.ERROR)
        output.error = f"{type(error).__name__}: {error}"
        return output


def _guesses(step: Step, forward: Forward) -> dict[str, Verdict]:
    """The verdicts on the rows of mixtures: a guess each, or nothing."""
    found: dict[str, Verdict] = {}
    for part, first, hidden in zip(step.slices, forward.first_row, forward.hidden or [], strict=False):
        if part.samples and part.request.mixture is not None:
            position = part.start + len(part.token_ids)
            guess = part.request.mixture.guess(forward.logits[first], hidden[-1], position)
            found[part.request.id] = Verdict((), () if guess is None else (guess,))
    return found


def _keys(sampling: list[Slice]) -> RowKeys:
    """How the tokens after the pending token and the tree's nodes of each slice are chosen."""
    return RowKeys(
        [part.request.params for part in sampling],
        [part.tree or EMPTY for part in sampling],
        [part.start + len(part.token_ids) for part in sampling],
    )


def _rows(part: Slice, first: int) -> slice:
    """A sampling slice's rows of a step's logits: its pending token and its tree's nodes."""
    return slice(first, first + part.num_rows - len(part.token_ids) + 1)
