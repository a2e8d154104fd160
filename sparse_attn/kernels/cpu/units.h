// Rows of keys and values as products take them: in units of a float's size, one float or a pair of bfloat16 numbers.
#pragma once

#include <type_traits>

#include "calls.h"
#include "simd.h"

namespace folio {

constexpr int MAX_DIM = 1024;

#if defined(__AMX_BF16__)
constexpr bool HAS_TILES = true;
#else
constexpr bool HAS_TILES = false;
#endif

inline int round_up(int n, int step) { return (n + step - 1) / step * step; }

inline vec load_int8(const int8_t* p) {
#if defined(__AVX512F__)
  return (vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif defined(__AVX2__)
  return (vec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#else
  vec x;
  for (int i = 0; i < LANES; ++i) x[i] = float(p[i]);
  return x;
#endif
}

// Rows of numbers as they may lie in memory: `many` are the vector from number d on.
struct Floats {
  const float* at;
  vec many(int d) const { return load(at + d); }
  float one(int d) const { return at[d]; }
};
struct Halves {
  const uint16_t* at;
  vec many(int d) const { return widen_bf16(load_bf16(at + d)); }
  float one(int d) const { return widen_bf16(at[d]); }
};
struct Codes {
  const int8_t* at;
  float scale;
  vec many(int d) const { return load_int8(at + d) * splat(scale); }
  float one(int d) const { return float(at[d]) * scale; }
};

// `count` numbers as units: pairs, or floats, of numbers rounded to bfloat16 where `rounded`.
template <class Unit, class Row>
inline void unit_row(Row row, int count, bool rounded, float* out) {
  auto* narrow = reinterpret_cast<uint16_t*>(out);
  int d = 0;
  for (; d + LANES <= count; d += LANES) {
    const vec x = row.many(d);
    if (Unit::NUMBERS > 1)
      store_bf16(narrow + d, std::is_same_v<Row, Codes> ? round_normal_bf16(x) : round_bf16(x));
    else
      store(out + d, rounded ? widen_bf16(round_bf16(x)) : x);
  }
  for (; d < count; ++d) {
    const float x = row.one(d);
    if (Unit::NUMBERS > 1)
      narrow[d] = round_bf16(x);
    else
      out[d] = rounded ? widen_bf16(round_bf16(x)) : x;
  }
}

// The same for a row at element `at`, of any kind; `scales` are of int8 rows of `count` codes each.
template <class Unit>
inline void unit_row(Kind kind, const void* base, const uint16_t* scales, int64_t at, int count, bool rounded,
                     float* out) {
  if (kind == INT8)
    unit_row<Unit>(Codes{static_cast<const int8_t*>(base) + at, half(scales[at / count])}, count, rounded, out);
  else if (kind == BFLOAT16)
    unit_row<Unit>(Halves{static_cast<const uint16_t*>(base) + at}, count, rounded, out);
  else
    unit_row<Unit>(Floats{static_cast<const float*>(base) + at}, count, rounded, out);
}

// Whether rows of this kind are units as they lie.
template <class Unit>
inline bool are_units(Kind kind, bool rounded) {
  return Unit::NUMBERS > 1 ? kind == BFLOAT16 : kind == FLOAT32 && !rounded;
}

// The numbers of two rows of bfloat16 by turns: `count` pairs, and zeros up to a whole vector.
inline void zip_rows(const float* first, const float* second, int count, float* out) {
  const auto* low = reinterpret_cast<const uint16_t*>(first);
  const auto* high = reinterpret_cast<const uint16_t*>(second);
  int d = 0;
#if defined(__AVX512BW__)
  alignas(64) static constexpr uint16_t ORDER[64] = {
      0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39, 8,  40, 9,  41, 10, 42, 11, 43, 12, 44,
      13, 45, 14, 46, 15, 47, 16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23, 55, 24, 56, 25, 57,
      26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63};
  for (; d + 32 <= count; d += 32) {
    const __m512i a = _mm512_loadu_si512(low + d), b = _mm512_loadu_si512(high + d);
    _mm512_storeu_si512(out + d, _mm512_permutex2var_epi16(a, _mm512_load_si512(ORDER), b));
    _mm512_storeu_si512(out + d + 16, _mm512_permutex2var_epi16(a, _mm512_load_si512(ORDER + 32), b));
  }
#endif
  const auto join = [](hvec a, hvec b) { return (vec)(lower_halves(a) | lower_halves(b) << 16); };
  for (; d + LANES <= count; d += LANES) store(out + d, join(load_bf16(low + d), load_bf16(high + d)));
  if (d == count) return;
  uint16_t rest[2][LANES] = {};
  for (int i = 0; d + i < count; ++i) rest[0][i] = low[d + i], rest[1][i] = high[d + i];
  store(out + d, join(load_bf16(rest[0]), load_bf16(rest[1])));
}

// Address of element `at`; of floats that hold pairs too, of which elements are halves.
template <class Unit>
inline const float* element(const void* base, int64_t at) {
  return reinterpret_cast<const float*>(static_cast<const char*>(base) + at * int64_t(sizeof(float)) / Unit::NUMBERS);
}

}  // namespace folio
