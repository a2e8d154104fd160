// The calls of packed weights (blocks.h): what Python fills in, and what the kernels give one another.
#pragma once

#include <cstdint>

#include "calls.h"

// Mirrored by `_Pack` in packed.py.
struct Pack {
  const uint8_t* rows;   // [outer, row_bytes]: as the kind is stored: ggml's blocks, two bytes or one a number
  const int64_t* order;  // [outer]: which of them is row n; or null
  uint8_t* packed;       // folio_packed_bytes of them
  int64_t row_bytes, outer, inner;
  int32_t kind, threads;
};

// Mirrored by `_Unpack` in packed.py.
struct Unpack {
  const uint8_t* packed;
  const float* scale;  // [outer] or null
  const int64_t* ids;  // [count]: rows of w
  float* y;            // [count, inner]
  int64_t count, inner;
  int32_t kind, threads;
};

// What x and w are rounded to as they enter a product; mirrored by `PRODUCTS` in packed.py. bfloat16 is for families that
// have it, int8 (of x alone) for kinds of integers.
enum class Products : int32_t { FLOAT32, BFLOAT16, INT8 };

// Mirrored by `_PackedLinear` in packed.py. y = x · wᵀ + bias.
struct PackedLinear {
  const float* x;       // [rows, inner], rows x_row floats apart
  const uint8_t* w;     // [outer, inner], packed
  const float* scale;   // [outer], of rows of w, or null
  const float* bias;    // [outer] or null
  float* y;             // [rows, outer], contiguous
  int64_t x_row, rows, inner, outer;
  int32_t kind, threads;
  Products products;
};

extern "C" {
int64_t folio_packed_bytes(int32_t kind, int64_t outer, int64_t inner);
void folio_pack(const Pack* call);
void folio_unpack_rows(const Unpack* call);
void folio_packed_linear(const PackedLinear* calls, int32_t count);  // of as many rows each
// activation(y of the first) · y of the second, in the second's place; false where that is to be done in three steps.
bool folio_packed_gated(const PackedLinear* both, Activation activation);
}
