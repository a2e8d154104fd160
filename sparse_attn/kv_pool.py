"""The pages in which keys and values of every sequence live."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sparse_attn.pages import PageStats


@dataclass(frozen=True)
class KVShape:
    """The shape of a model's KV: one entry of ``num_kv_heads`` and ``head_dim`` per attention layer."""

    num_layers: int
    num_kv_heads: int
    head_dim: int

    def bytes_per_token(self, dtype: torch.dtype) -> int:
        """Bytes that the keys and values of one token take over all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * dtype.itemsize


class KVPool:
    """Fixed pages of keys and values, one pair of tensors a layer.

    ``keys[layer]`` and ``values[layer]`` are [num_pages, num_kv_heads, page_size, head_dim]: a page of one head is
    one contiguous tile, which is what every kernel reads. The pool knows no sequences; who owns which page is the
    block manager's business. One page more than ``num_pages`` lies at the end: what is written to slot -1 goes there
    and is never read, so padded rows of a fixed-size batch need no branch.

    Raises:
        MemoryError: the pages do not fit; the message says how many bytes were asked for.
    """

    def __init__(
        self,
        shape: KVShape,
        num_pages: int,
        page_size: int = 64,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.shape = shape
        self.num_pages = num_pages
        self.page_size = page_size
        self.dtype = dtype
        self.stats: PageStats | None = None
        tile = (num_pages + 1, shape.num_kv_heads, page_size, shape.head_dim)
        try:
            self.keys = [torch.zeros(tile, dtype=dtype, device=device) for _ in range(shape.num_layers)]
            self.values = [torch.zeros(tile, dtype=dtype, device=device) for _ in range(shape.num_layers)]
        except (RuntimeError, torch.OutOfMemoryError) as error:
            wanted = num_pages * page_size * shape.bytes_per_token(dtype)
            raise MemoryError(
                f"a KV pool of {num_pages} pages needs {wanted / 2**30:.1f} GiB, which the device does not have; "
                "lower kv_memory or max_model_len"
            ) from error

    def keep_stats(self) -> None:
        """Keep the bounds of every page's keys from now on, for policies that rank pages; idempotent."""
        if self.stats is not None:
            return
        shape = self.shape
        self.stats = PageStats(
            shape.num_layers, self.num_pages + 1, shape.num_kv_heads, self.page_size, shape.head_dim, device=self.device
        )
        for layer, keys in enumerate(self.keys):
            self.stats.rebuild(layer, keys)

    @property
    def device(self) -> torch.device:
        return self.keys[0].device

    def write(self, layer: int, slots: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        """Put k, v [T, num_kv_heads, head_dim] into int64 slots [T]; -1 writes where nobody reads."""
        pages, offsets = slots // self.page_size, slots % self.page_size
        self.keys[layer][pages, :, offsets] = k
        self.values[layer][pages, :, offsets] = v
        if self.stats is not None:
            self.stats.update(layer, self.keys[layer], slots)

    def read(self, layer: int, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V [T, num_kv_heads, head_dim] of int64 slots [T]."""
        pages, offsets = slots // self.page_size, slots % self.page_size
        return self.keys[layer][pages, :, offsets], self.values[layer][pages, :, offsets]

    def get_page(self, page: int) -> torch.Tensor:
        """A copy of one page: [2, num_layers, num_kv_heads, page_size, head_dim], keys first."""
        return torch.stack([torch.stack([tensor[page] for tensor in side]) for side in (self.keys, self.values)])

    def put_page(self, page: int, content: torch.Tensor) -> None:
        """Fill a page with what ``get_page`` gave."""
        for side, tensors in zip(content, (self.keys, self.values), strict=True):
            for layer, tensor in zip(side, tensors, strict=True):
                tensor[page] = layer
        if self.stats is not None:
            slots = torch.arange(page * self.page_size, (page + 1) * self.page_size, device=self.device)
            for number, keys in enumerate(self.keys):
                self.stats.update(number, keys, slots)

    def copy_slots(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Move tokens between slots (int64 [n] each) in every layer; sources are read before targets are written."""
        source_page, source_offset = source // self.page_size, source % self.page_size
        target_page, target_offset = target // self.page_size, target % self.page_size
        for tensor in (*self.keys, *self.values):
            tensor[target_page, :, target_offset] = tensor[source_page, :, source_offset]
        if self.stats is not None:
            for layer, keys in enumerate(self.keys):
                self.stats.update(layer, keys, target)
