"""The pages in which keys and values of every sequence live."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from sparse_attn.kernels import select_kernels
from sparse_attn.kernels.cpu.pages import copy_tokens, token_bytes
from sparse_attn.kernels.operands import Pages
from sparse_attn.kv import huge_pages
from sparse_attn.kv.head_layout import HeadLayout, Heads
from sparse_attn.kv.page_stats import LOGICAL_PAGE, PageStats
from sparse_attn.kv.quant import SCALE, dequantize, quantize

PageContent = dict[str, Tensor]


@dataclass(frozen=True)
class KVShape:
    """The shape of a model's KV: one entry of ``num_kv_heads`` and ``head_dim`` per attention layer."""

    num_layers: int
    num_kv_heads: int
    head_dim: int

    def bytes_per_token(self, dtype: torch.dtype) -> int:
        """Bytes that the keys and values of one token take over all layers, with their scales where they are int8."""
        return 2 * self.num_layers * self.num_kv_heads * head_bytes(self.head_dim, dtype)


def head_bytes(head_dim: int, dtype: torch.dtype) -> int:
    """Bytes of one key or value in a pool of this dtype, a scale included."""
    return head_dim * dtype.itemsize + (SCALE.itemsize if dtype == torch.int8 else 0)


@dataclass(frozen=True)
class EncodedKV:
    """K and V [T, Hkv, D] of new tokens as attention reads them, now and later, and as pages hold them.

    k and v are in the dtype of the pages, or what int8 codes stand for: a row sees the same numbers whether a key is
    new or in a page, so neither chunks of a prompt nor draft trees nor the prefix cache change a result. Attention
    multiplies in their dtype.

    Attributes:
        codes: K and V in int8 with their scales float16 [T, Hkv], or None where pages hold k and v themselves.
    """

    k: Tensor
    v: Tensor
    codes: tuple[Tensor, Tensor, Tensor, Tensor] | None = None


@dataclass
class GroupPages:
    """The pages of the pool as one head group sees them, layer by layer.

    Attributes:
        heads: the group's KV heads in each layer.
        keys, values: [num_pages + 1, heads, page_size, D] a layer; views, each page's part contiguous.
        all_key_scales, all_value_scales: float16 [num_pages + 1, heads, page_size] a layer; None without int8.
        stats: bounds of every page's keys, where a policy ranks them.
    """

    heads: tuple[Heads, ...]
    keys: list[Tensor]
    values: list[Tensor]
    all_key_scales: list[Tensor] | None
    all_value_scales: list[Tensor] | None
    stats: PageStats | None = None

    def key_scales(self, layer: int) -> Tensor | None:
        return self.all_key_scales[layer] if self.all_key_scales is not None else None

    def value_scales(self, layer: int) -> Tensor | None:
        return self.all_value_scales[layer] if self.all_value_scales is not None else None

    def pages(self, layer: int, block_tables: Tensor) -> Pages:
        """Where the contexts of these tables int32 [S, P] lie."""
        scales = self.key_scales(layer), self.value_scales(layer)
        return Pages(self.keys[layer], self.values[layer], block_tables, *scales)

    def write(self, layer: int, slots: Tensor, new: EncodedKV) -> None:
        """Put the group's heads of new rows into int64 slots [T]; -1 writes where nobody reads."""
        page_size, own = self.keys[layer].shape[2], list(self.heads[layer])
        if not own:
            return
        k, v, *new_scales = (new.k, new.v) if new.codes is None else new.codes
        held_scales = [t for t in (self.key_scales(layer), self.value_scales(layer)) if t is not None]
        targets, sources = [self.keys[layer], self.values[layer], *held_scales], [k, v, *new_scales]
        every = len(own) == k.shape[1]
        if k.is_cuda and every:
            from sparse_attn.kernels.triton.write import write_rows

            write_rows(k, v, targets[0], targets[1], slots, [*new_scales, *held_scales])
        elif put := select_kernels(k.device, new.k.dtype).write_rows:
            for target, source in zip(targets, sources, strict=True):
                put(source if every else source[:, own], target, slots)
        else:
            at = (slots // page_size, slice(None), slots % page_size)
            for target, source in zip(targets, sources, strict=True):
                target[at] = source if every else source[:, own]
        if self.stats is not None:
            self.stats.update(layer, self.keys[layer], slots, self.key_scales(layer))

    def read(self, layer: int, slots: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """K and V [T, heads, D] of int64 slots [T], as attention reads them."""
        page_size = self.keys[layer].shape[2]
        at = (slots // page_size, slice(None), slots % page_size)
        k, v = self.keys[layer][at], self.values[layer][at]
        k_scale, v_scale = self.key_scales(layer), self.value_scales(layer)
        if k_scale is not None and v_scale is not None:
            return dequantize(k, k_scale[at], dtype), dequantize(v, v_scale[at], dtype)
        return k, v


class KVPool:
    """Fixed pages of keys and values.

    A page is ``page_size`` tokens of one head group of ``layout``, in all layers; by default all heads are one group.
    Its memory is [layout.tiles, page_size, head_dim] for the keys and the same for the values: a page of one head of
    one layer is one contiguous tile, which is what every kernel reads, and a whole page can be moved at once. The
    pool knows no sequences; who owns which page is the block manager's business. One page more than ``num_pages`` lies
    at the end: what is written to slot -1 goes there and is never read, so padded rows of a fixed-size batch need no
    branch.

    ``dtype`` torch.int8 holds int8 codes with a float16 scale a token and head (`sparse_attn.kv.quant`); attention
    multiplies what they stand for in ``products``, by default in the dtype of the new keys.

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
        layout: HeadLayout | None = None,
        *,
        products: torch.dtype | None = None,
    ) -> None:
        self.shape = shape
        self.num_pages = num_pages
        self.page_size = page_size
        self.dtype = dtype
        self.products = products
        self.layout = layout or HeadLayout.whole(shape.num_layers, shape.num_kv_heads)
        tiles = (num_pages + 1, self.layout.tiles, page_size)
        parts: dict[str, Tensor] = {}
        try:
            for side in ("keys", "values"):
                parts[side] = huge_pages.zeros((*tiles, shape.head_dim), dtype, device)
                if dtype == torch.int8:
                    parts[f"{side[:-1]}_scales"] = torch.zeros(tiles, dtype=SCALE, device=device)
        except (RuntimeError, torch.OutOfMemoryError) as error:
            raise MemoryError(
                f"a KV pool of {num_pages} pages needs {num_pages * self.page_bytes / 2**30:.1f} GiB, which the device "
                "does not have; lower kv_memory or max_model_len"
            ) from error
        self._parts = parts
        self.groups = [self._group(g) for g in range(self.layout.num_groups)]

    @property
    def keeps_stats(self) -> bool:
        """Whether it keeps the bounds of every page's keys (`keep_stats`)."""
        return "kmin" in self._parts

    @property
    def device(self) -> torch.device:
        return self._parts["keys"].device

    @property
    def page_bytes(self) -> int:
        """Bytes of a page's keys and values, scales included."""
        return bytes_per_page(self.shape, self.page_size, self.dtype, self.layout)

    @property
    def stats_bytes(self) -> int:
        """Bytes of a page's bounds; 0 while no policy ranks pages."""
        return sum(_bytes(self._parts[name][0]) for name in ("kmin", "kmax") if name in self._parts)

    def keep_stats(self) -> None:
        """Keep the bounds of every page's keys from now on, for policies that rank pages; idempotent."""
        if self.keeps_stats:
            return
        logical = min(LOGICAL_PAGE, self.page_size)
        bounds = (self.num_pages + 1, self.layout.tiles, self.page_size // logical, self.shape.head_dim)
        low, high = (torch.zeros(bounds, device=self.device) for _ in range(2))
        self._parts |= {"kmin": low, "kmax": high}
        for g, group in enumerate(self.groups):
            low_views, high_views = (self._views(part, g) for part in (low, high))
            group.stats = PageStats.over(low_views, high_views, self.page_size)
            for layer, keys in enumerate(group.keys):
                group.stats.rebuild(layer, keys, group.key_scales(layer))

    def encode(self, k: Tensor, v: Tensor) -> EncodedKV:
        """New K and V [T, Hkv, D] as this pool will give them back."""
        if self.dtype != torch.int8:
            return EncodedKV(k.to(self.dtype), v.to(self.dtype))
        (k_codes, k_scale), (v_codes, v_scale) = quantize(k), quantize(v)
        codes = (k_codes, v_codes, k_scale, v_scale)
        products = self.products or k.dtype
        return EncodedKV(dequantize(k_codes, k_scale, products), dequantize(v_codes, v_scale, products), codes)

    def get_page(self, page: int) -> PageContent:
        """A copy of all that one page holds, by the names of its parts: [layout.tiles, …] each."""
        return {name: part[page].clone() for name, part in self._parts.items()}

    def put_page(self, page: int, content: PageContent) -> None:
        """Fill a page with what ``get_page`` gave; bounds that it lacks are recomputed.

        Raises:
            RuntimeError: the content is of a pool of another shape.
        """
        for name, part in self._parts.items():
            if name in content:
                if content[name].shape != part.shape[1:] or content[name].dtype != part.dtype:
                    raise RuntimeError(f"a page with {name} of {list(content[name].shape)} is not of this pool")
                part[page] = content[name]
            elif name not in ("kmin", "kmax"):
                raise RuntimeError(f"a page without {name} is not of this pool")
        if "kmin" in content:
            return
        slots = torch.arange(page * self.page_size, (page + 1) * self.page_size, device=self.device)
        self._update_stats(slots)

    def get_tokens(self, slots: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """A copy of K and V [L, T, Hkv, D] of tokens in all layers, as attention reads them.

        slots: int64 [T], where each head group has them.
        """
        dtype = self.dtype if self.dtype != torch.int8 else self.products or torch.float32
        kv_shape = (self.shape.num_layers, len(slots[0]), self.shape.num_kv_heads, self.shape.head_dim)
        k, v = (torch.empty(kv_shape, dtype=dtype, device=self.device) for _ in range(2))
        for group, own in zip(self.groups, slots, strict=True):
            for layer, heads in enumerate(group.heads):
                if heads:
                    k[layer][:, list(heads)], v[layer][:, list(heads)] = group.read(layer, own, dtype)
        return k, v

    def put_tokens(self, slots: Sequence[Tensor], k: Tensor, v: Tensor) -> None:
        """Write K and V [L, T, Hkv, D] of tokens of all layers to int64 slots [T] of each head group."""
        for layer in range(self.shape.num_layers):
            new = self.encode(k[layer], v[layer])
            for group, own in zip(self.groups, slots, strict=True):
                group.write(layer, own, new)

    def copy_slots(self, source: Tensor, target: Tensor) -> None:
        """Move tokens between slots (int64 [n] each) in every layer; sources are read before targets are written."""
        if self.device.type == "cpu":
            for tokens in self._token_bytes:
                copy_tokens(tokens, source.numpy(), target.numpy())
        else:
            source_page, source_offset = source // self.page_size, source % self.page_size
            target_page, target_offset = target // self.page_size, target % self.page_size
            for part in self._of_tokens():
                part[target_page, :, target_offset] = part[source_page, :, source_offset]
        self._update_stats(target)

    def _of_tokens(self) -> list[Tensor]:
        """The parts [num_pages, tiles, page_size, …] that hold something of every token."""
        return [part for name, part in self._parts.items() if name not in ("kmin", "kmax")]

    @cached_property
    def _token_bytes(self) -> list[np.ndarray]:
        return [token_bytes(part) for part in self._of_tokens()]

    def _update_stats(self, slots: Tensor) -> None:
        for group in self.groups:
            if group.stats is not None:
                for layer, keys in enumerate(group.keys):
                    group.stats.update(layer, keys, slots, group.key_scales(layer))

    def _group(self, g: int) -> GroupPages:
        views = {name: self._views(part, g) for name, part in self._parts.items()}
        return GroupPages(
            self.layout.groups[g], views["keys"], views["values"], views.get("key_scales"), views.get("value_scales")
        )

    def _views(self, part: Tensor, g: int) -> list[Tensor]:
        """What one group sees of a part [pages, tiles, …], by layer."""
        first = [self.layout.first_tile(g, layer) for layer in range(self.shape.num_layers)]
        return [part[:, at : at + len(heads)] for at, heads in zip(first, self.layout.groups[g], strict=True)]


def bytes_per_page(shape: KVShape, page_size: int, dtype: torch.dtype, layout: HeadLayout | None = None) -> int:
    """Bytes that the keys and values of a page take, scales included."""
    tiles = layout.tiles if layout is not None else shape.num_layers * shape.num_kv_heads
    return 2 * tiles * page_size * head_bytes(shape.head_dim, dtype)


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()
