// Weights as they are stored, packed for products: sixteen rows of w and 32 of k at a time.
//
// A *tile* is 16 rows × 32 columns of w. A *panel* holds the tiles of 16 rows, from the first columns to the last; every
// SPAN tiles follow a head with what their numbers are scaled by. Within a tile vector (h, j) is columns 2j and 2j + 1 of
// rows 8h … 8h+7: lane 2i + p is column 2j + p of row 8h + i. So two vectors rounded to bfloat16 are a row of a tile of
// AMX, and a vector in float32 multiplies a pair of x.
//
// Integers of a few bits become floats without a conversion: with the bits of a power of two above them they are that
// power and the integer, and a multiply-add takes the power away and scales. Its constant is rounded to float32, which
// moves a weight by less than 2^-15 of its scale.
#pragma once

#include <cstdint>
#include <cstring>

#include "simd.h"

namespace folio {

constexpr int TILE_ROWS = 16, TILE_COLUMNS = 32, PAIRS = TILE_COLUMNS / 2;
constexpr int PARTS = TILE_ROWS / LANES;

struct wide { vec part[PARTS]; };    // 16 floats
struct iwide { ivec part[PARTS]; };  // 16 words

template <class Op>
inline wide each(Op op) {
  wide out;
#pragma GCC unroll 4
  for (int i = 0; i < PARTS; ++i) out.part[i] = op(i);
  return out;
}
inline wide load_wide(const float* p) { return each([&](int i) { return load(p + i * LANES); }); }
inline void store_wide(float* p, const wide& v) {
  for (int i = 0; i < PARTS; ++i) store(p + i * LANES, v.part[i]);
}
inline wide splat_wide(float x) { return each([&](int) { return splat(x); }); }
inline wide multiply_add(const wide& a, const wide& b, const wide& c) {
  return each([&](int i) { return fma(a.part[i], b.part[i], c.part[i]); });
}
inline wide times(const wide& a, const wide& b) { return each([&](int i) { return a.part[i] * b.part[i]; }); }
inline wide times(const wide& a, float b) { return each([&](int i) { return a.part[i] * splat(b); }); }

inline iwide load_words(const uint8_t* p) {
  iwide w;
#pragma GCC unroll 4
  for (int i = 0; i < PARTS; ++i) std::memcpy(&w.part[i], p + i * sizeof(ivec), sizeof(ivec));
  return w;
}
inline wide as_floats(const iwide& w) {
  return each([&](int i) { return (vec)w.part[i]; });
}

inline iwide shifted(const iwide& w, int left) {  // to the right where negative
  iwide out;
#pragma GCC unroll 4
  for (int i = 0; i < PARTS; ++i)
    out.part[i] = left >= 0 ? w.part[i] << left : (ivec)((uvec)w.part[i] >> -left);
  return out;
}
// (w & mask) | more
inline iwide field(const iwide& w, int32_t mask, const iwide& more) {
  iwide out;
#pragma GCC unroll 4
  for (int i = 0; i < PARTS; ++i) {
#if defined(__AVX512F__)
    const __m512i bits = _mm512_set1_epi32(mask);
    out.part[i] = (ivec)_mm512_ternarylogic_epi32((__m512i)w.part[i], bits, (__m512i)more.part[i], 0xEA);
#else
    out.part[i] = (w.part[i] & mask) | more.part[i];
#endif
  }
  return out;
}
inline iwide splat_word(int32_t x) {
  iwide out;
  for (int i = 0; i < PARTS; ++i) out.part[i] = x - ivec{};
  return out;
}

// Any float16 that is finite. Small ones are made of integers: as floats they would count as 0 (`FlushDenormals`).
inline float from_half(uint16_t bits) {
  const uint32_t exponent = bits >> 10 & 31, mantissa = bits & 1023, wide = (exponent + 112) << 23 | mantissa << 13;
  float x;
  std::memcpy(&x, &wide, sizeof x);
  const float magnitude = exponent ? x : float(mantissa) * 0x1p-24f;
  return bits & 0x8000 ? -magnitude : magnitude;
}
inline float from_bfloat16(uint16_t bits) {
  const uint32_t word = uint32_t(bits) << 16;
  float x;
  std::memcpy(&x, &word, sizeof x);
  return x;
}

// Sixteen numbers of a tile's rows as floats.
inline wide halves(const uint8_t* p) {
#if defined(__AVX512F__)
  return {{(vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))}};
#elif defined(__F16C__) && defined(__AVX2__)
  return {{(vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)),
           (vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 16)))}};
#else
  uint16_t bits[16];
  float x[16];
  std::memcpy(bits, p, sizeof bits);
  for (int i = 0; i < 16; ++i) x[i] = from_half(bits[i]);
  return load_wide(x);
#endif
}
template <class Byte>
inline wide bytes(const uint8_t* p) {
#if defined(__AVX512F__)
  const __m128i b = _mm_loadu_si128((const __m128i*)p);
  return {{(vec)_mm512_cvtepi32_ps(Byte(-1) < 0 ? _mm512_cvtepi8_epi32(b) : _mm512_cvtepu8_epi32(b))}};
#else
  float x[16];
  for (int i = 0; i < 16; ++i) x[i] = Byte(p[i]);
  return load_wide(x);
#endif
}

// One number a row of the tile → the lanes of both halves' vectors.
struct Halved { wide half[2]; };
inline Halved spread(const wide& v) {
  vec pairs[2 * PARTS];
#pragma GCC unroll 8
  for (int i = 0; i < 2 * PARTS; ++i)
    pairs[i] = i % 2 ? interleave<1>(v.part[i / 2], v.part[i / 2]) : interleave<0>(v.part[i / 2], v.part[i / 2]);
  Halved out;
#pragma GCC unroll 2
  for (int h = 0; h < 2; ++h) out.half[h] = each([&](int i) { return pairs[h * PARTS + i]; });
  return out;
}

// How weights are stored, numbered as in packed.py. INT8_ROWS has a scale a row, which a product is multiplied by.
enum Storage : int32_t { BF16, F16, INT8_ROWS, Q8_0, Q4_0, Q4_1, Q4_K, Q5_0, Q5_K, Q6_K, KINDS };

// How a kind is laid out. BITS: of an integer, 0 for floats. ZERO: the stored integer that stands for 0.
template <int BITS, int ZERO, int SPAN, int HEAD>
struct Layout {
  static constexpr int bits = BITS, zero = ZERO, span = SPAN, head = HEAD;
  static constexpr int low = BITS == 0 ? 1024 : BITS == 8 ? 512 : 256;  // bytes of what every number has
  static constexpr int high = BITS > 4 && BITS < 8 ? (BITS - 4) * 64 : 0;
  static constexpr int tile = low + high;
  static int64_t panel_bytes(int64_t steps) { return (steps + SPAN - 1) / SPAN * HEAD + steps * tile; }
  static int64_t offset(int64_t step) { return (step / SPAN + 1) * HEAD + step * tile; }  // of a tile in its panel
};
template <int KIND> struct LayoutOf;
template <> struct LayoutOf<BF16> : Layout<0, 0, 1, 0> {};
template <> struct LayoutOf<F16> : Layout<0, 0, 1, 0> {};
template <> struct LayoutOf<INT8_ROWS> : Layout<8, 128, 1, 0> {};
template <> struct LayoutOf<Q8_0> : Layout<8, 128, 2, 64> {};     // head: scales of the first tile, of the second
template <> struct LayoutOf<Q4_0> : Layout<4, 8, 2, 64> {};
template <> struct LayoutOf<Q5_0> : Layout<5, 16, 2, 64> {};
template <> struct LayoutOf<Q4_1> : Layout<4, 0, 1, 64> {};       // scales, minima
template <> struct LayoutOf<Q4_K> : Layout<4, 0, 8, 320> {};      // two float16s a row; then for each tile …
template <> struct LayoutOf<Q5_K> : Layout<5, 0, 8, 320> {};      // … a byte a row for its scale, one for its minimum
template <> struct LayoutOf<Q6_K> : Layout<6, 32, 8, 320> {};     // a float16 a row; from byte 64 two bytes a row a tile

// What a tile's integers are multiplied by and what is added then, for each row of w; of its columns from 16 · part on.
template <int KIND>
inline void scales(const uint8_t* head, int step, int part, wide& scale, wide& least) {
  constexpr int zero = LayoutOf<KIND>::zero;
  if constexpr (KIND == INT8_ROWS) {
    scale = splat_wide(1.0f);
    least = splat_wide(-zero);
  } else if constexpr (KIND == Q4_1) {
    scale = halves(head);
    least = halves(head + 32);
  } else if constexpr (KIND == Q4_K || KIND == Q5_K) {
    scale = times(halves(head), bytes<uint8_t>(head + 64 + 32 * step));
    least = times(times(halves(head + 32), bytes<uint8_t>(head + 80 + 32 * step)), -1.0f);
  } else if constexpr (KIND == Q6_K) {
    scale = times(halves(head), bytes<int8_t>(head + 64 + 32 * step + 16 * part));
    least = times(scale, -zero);
  } else {
    scale = halves(head + 32 * step);
    least = times(scale, -zero);
  }
}

// The numbers of tile `step` of a span in float32, or its integers alone: emit(j, vector (0, j), vector (1, j)) for every
// pair of columns.
template <int KIND, bool INTEGERS = false, class Emit>
inline void unpack_tile(const uint8_t* head, const uint8_t* tile, int step, Emit emit) {
  using L = LayoutOf<KIND>;
  if constexpr (L::bits == 0) {
    for (int j = 0; j < PAIRS; ++j) {
      wide v[2];
      for (int h = 0; h < 2; ++h) {
        const uint8_t* p = tile + 64 * j + 32 * h;
        if constexpr (KIND == F16) {
          v[h] = halves(p);
        } else {
          uint16_t b[16];
          float x[16];
          std::memcpy(b, p, sizeof b);
          for (int i = 0; i < 16; ++i) x[i] = from_bfloat16(b[i]);
          v[h] = load_wide(x);
        }
      }
      emit(j, v[0], v[1]);
    }
  } else {
    // An integer's lowest bit is moved to bit AT, where it is worth 1 below the bits of POWER.
    constexpr int wide_bits = L::bits == 8 ? 8 : 4, in_word = 32 / wide_bits, words = PAIRS / in_word;
    constexpr int at = L::bits == 8 ? 15 : 16;
    constexpr float power = L::bits == 8 ? 256.0f : 128.0f;
    const iwide above = splat_word(L::bits == 8 ? 0x43800000 : 0x43000000);
    constexpr int scaled = KIND == Q6_K && !INTEGERS ? 2 : 1;  // times that the scale changes within a tile
#pragma GCC unroll 2
    for (int part = 0; part < scaled; ++part) {
      wide scale, least;
      if constexpr (INTEGERS)
        scale = splat_wide(1.0f), least = splat_wide(-L::zero);
      else
        scales<KIND>(head, step, part, scale, least);
      const Halved a = spread(scale), b = spread(multiply_add(scale, splat_wide(-power), least));
      iwide high[2][L::high ? L::bits - 4 : 1];
      if constexpr (L::high > 0)
        for (int h = 0; h < 2; ++h) high[h][0] = load_words(tile + L::low + (L::bits == 6 ? 64 * h : 0));
#pragma GCC unroll 4
      for (int q = part * words / scaled; q < (part + 1) * words / scaled; ++q) {
        const iwide low[2] = {load_words(tile + 64 * q), load_words(tile + 64 * (words + q))};
#pragma GCC unroll 8
        for (int i = 0; i < in_word; ++i) {
          const int j = q * in_word + i;
          wide v[2];
#pragma GCC unroll 2
          for (int h = 0; h < 2; ++h) {
            iwide x = field(shifted(low[h], at - wide_bits * i), ((1 << wide_bits) - 1) << at, above);
            if constexpr (L::bits == 5) x = field(shifted(high[h][0], at + 4 - (16 * h + j)), 16 << at, x);
            if constexpr (L::bits == 6) x = field(shifted(high[h][0], at + 4 - 2 * j), 48 << at, x);
            v[h] = multiply_add(as_floats(x), a.half[h], b.half[h]);
          }
          emit(j, v[0], v[1]);
        }
      }
    }
  }
}

// Calls body(Stored<KIND>) for a kind that is known at run time.
template <int KIND>
struct Stored { static constexpr int value = KIND; };
template <class Body>
inline void for_kind(int32_t kind, Body body) {
  switch (kind) {
    case BF16: return body(Stored<BF16>{});
    case F16: return body(Stored<F16>{});
    case INT8_ROWS: return body(Stored<INT8_ROWS>{});
    case Q8_0: return body(Stored<Q8_0>{});
    case Q4_0: return body(Stored<Q4_0>{});
    case Q4_1: return body(Stored<Q4_1>{});
    case Q4_K: return body(Stored<Q4_K>{});
    case Q5_0: return body(Stored<Q5_0>{});
    case Q5_K: return body(Stored<Q5_K>{});
    case Q6_K: return body(Stored<Q6_K>{});
  }
}

}  // namespace folio
