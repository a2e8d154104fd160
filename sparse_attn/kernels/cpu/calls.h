// The calls of the CPU kernels: what Python fills in, and what the kernels give one another.
#pragma once

#include <cstdint>

enum Kind : int32_t { FLOAT32, BFLOAT16, INT8 };  // of numbers in memory; mirrored by `KINDS` in attention.py
constexpr int KIND_BYTES[] = {4, 2, 1};

// Mirrored by `AttentionCall` in attention.py. Strides are in elements.
struct Attention {
  const void *q, *k_new, *v_new;      // of q_kind and new_kind
  const void *k_cache, *v_cache;      // of page_kind
  const uint16_t *k_scale, *v_scale;  // float16 [pages, kv_heads, page_size] of int8 pages; else null
  const int32_t *block_tables, *context_lens, *cu_rows;
  const int64_t* positions;            // only where there are no new keys: for the window; or null
  const uint8_t* const* tree_masks;    // [S], each bool [n, n] or null; or null
  const int32_t *index_counts, *index_ids, *index_cu_rows;  // of a BlockIndex; or counts null
  const int32_t *index_first, *index_k_offset;              // [S + 1] first query block of a sequence, [S]
  int64_t* skip_counts;  // [2] of Skip in operands.py, or null for nothing to skip
  void* out;   // of out_kind
  float* lse;
  int64_t q_row, q_head, k_row, k_head, v_row, v_head, page_stride, table_stride;
  int64_t index_blocks, index_width;
  int32_t sequences, q_heads, kv_heads, dim, page_size, window, index_heads, index_block_k, threads;
  // Products of float32 are of new rows in float32 and pages in float32 or int8; those of bfloat16 of new rows in either
  // and pages in bfloat16 or int8. Queries and results may be of either in both.
  Kind q_kind, new_kind, page_kind, out_kind, products;
  float scale, softcap, skip_share, skip_most;
  int32_t skip_gate;
};

// Mirrored by `_Linear` in attention.py. Strides in floats; columns are contiguous.
struct Linear {
  const float *x, *w, *bias;  // x [rows, inner], w [outer, inner], bias [outer] or null
  float* y;                   // [rows, outer], contiguous
  int64_t x_row, w_row, rows, inner, outer;
  int32_t threads;
};

// Mirrored by `_Norm` in rows.py.
struct Norm {
  const float *x, *weight;  // x [rows, dim], rows x_row floats apart; weight [dim]
  float* y;                 // [rows, dim], contiguous; may be x
  int64_t x_row, rows, dim;
  float eps;
  int32_t threads;
};

enum Activation : int32_t { SILU, GELU_TANH };  // mirrored by `ACTIVATIONS` in rows.py

// Mirrored by `_Write` in rows.py. Strides in bytes.
struct Write {
  const char* source;    // [rows, heads, row_bytes]
  char* pages;           // [num_pages, heads, page_size, row_bytes], each page contiguous
  const int64_t* slots;  // [rows]; -1 is the last slot of the last page
  int64_t source_row, source_head, page_stride, num_pages, rows, heads, page_size, row_bytes;
};

extern "C" {
void folio_attention(const Attention* call);
void folio_linear(const Linear* calls, int32_t count);  // of as many rows each
void folio_rms_norm(const Norm* call);
void folio_write(const Write* call);
void folio_gate(Activation activation, const float* gate, float* up, int64_t count, int32_t threads);
}
