"""Streaming heads: they read sinks and a window, and give back what lies between.

StreamingLLM (arXiv 2309.17453) for whole models, DuoAttention (2410.10819) and LServe (2502.14866) for some KV heads.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class HeadGroups:
    """The KV heads of each layer whose pages need not grow: they see sinks and a recent window only.

    A pool may keep these heads' pages apart (`HeadLayout`) and free what `freeable` names.

    Attributes:
        streaming: per layer, KV heads in ascending order.
        sink: first tokens that stay. local: last tokens that stay, in decode. prefill_local: the same in prefill.
        keep_all_below: a sequence no longer than this is dense, so nothing is freed before.
        slack: positions by which a row's window may begin earlier, for selections that are reused.
    """

    streaming: tuple[tuple[int, ...], ...]
    sink: int
    local: int
    prefill_local: int
    keep_all_below: int
    slack: int

    def retrieval(self, layer: int, num_kv_heads: int) -> tuple[int, ...]:
        """The other KV heads of a layer."""
        return tuple(h for h in range(num_kv_heads) if h not in self.streaming[layer])

    def freeable(self, next_position: int, prompt_len: int, page_size: int, block: int) -> range:
        """Pages, counted in the sequence, that no row from ``next_position`` on will read in a streaming head.

        ``block`` is the policy's rows a query block: a prefill row sees its block's window. What is freed during
        prefill must not be wanted by the rows of decode either.
        """
        if next_position - self.slack < self.keep_all_below:
            return range(0)
        decode = self._between(max(next_position, prompt_len) - self.slack - self.local + 1, page_size, page_size)
        if next_position >= prompt_len:
            return decode
        prefill = self._between(next_position // block * block - self.prefill_local + 1, block, page_size)
        first, end = max(prefill.start, decode.start), min(prefill.stop, decode.stop)
        return range(first, end) if first < end else range(0)

    def most_pages(self, max_len: int, step: int, page_size: int, block: int) -> int:
        """No less than the pages of such a head that a sequence holds at any time, if it grows by ``step`` at most."""
        window = max(self.prefill_local + 2 * block, self.local + self.slack + page_size, self.keep_all_below)
        kept = -(-self.sink // block) * block + window + self.slack + step
        return min(-(-max_len // page_size), -(-kept // page_size) + 2)

    def _between(self, first_kept: int, unit: int, page_size: int) -> range:
        """Pages behind the sinks and before the window that begins at ``first_kept``, in whole units of tokens."""
        first, end = -(-self.sink // unit), max(first_kept, 0) // unit
        return range(first * (unit // page_size), end * (unit // page_size)) if first < end else range(0)
