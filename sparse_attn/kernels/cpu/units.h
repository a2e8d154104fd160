// Rows of keys and values as products take them: in units of a float's size, each one float or a pair of bfloat16 numbers.
#pragma once

#include "simd.h"

namespace folio {

constexpr int MAX_DIM = 1024;

#if defined(__AMX_BF16__)
constexpr bool HAS_TILES = true;
#else
constexpr bool HAS_TILES = false;
#endif

inline int round_up(int n, int step) { return (n + step - 1) / step * step; }

// `count` floats, an even number, as pairs.
inline void narrow_row(const float* source, int count, float* out) {
  auto* narrow = reinterpret_cast<uint16_t*>(out);
  int d = 0;
  for (; d + LANES <= count; d += LANES) store_bf16(narrow + d, round_bf16(load(source + d)));
  for (; d < count; ++d) narrow[d] = round_bf16(source[d]);
}

// What `count` rows of int8 codes stand for, one behind another.
template <class Unit>
inline void decode_rows(const int8_t* codes, const uint16_t* scales, int count, int dim, float* out) {
  for (; count > 0; --count, codes += dim, ++scales, out += dim / Unit::NUMBERS) {
    float wide[MAX_DIM];
    float* row = Unit::NUMBERS > 1 ? wide : out;
    const float scale = half(*scales);
    for (int d = 0; d < dim; ++d) row[d] = float(codes[d]) * scale;
    if (Unit::NUMBERS > 1) narrow_row(wide, dim, out);
  }
}

// Address of element `at`; of floats that hold pairs too, of which elements are halves.
template <class Unit>
inline const float* element(const void* base, int64_t at) {
  return reinterpret_cast<const float*>(static_cast<const char*>(base) + at * int64_t(sizeof(float)) / Unit::NUMBERS);
}

}  // namespace folio
