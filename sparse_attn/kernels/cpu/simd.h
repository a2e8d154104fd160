// Vectors of floats for AVX-512, AVX2, NEON and anything else GCC 12+ or Clang knows, by vector extensions, and products
// of floats or of pairs of bfloat16 numbers, which fill a float's place.
//
// Built with -ffp-contract=off: every fused multiply-add is written out, so that a row's arithmetic is the same in
// every instantiation of a template and its bits do not depend on how many rows run beside it.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace folio {

#if defined(__AVX512F__)
constexpr int LANES = 16, MAX_ROWS = 6, MAX_VECTORS = 4;
#elif defined(__AVX2__) && defined(__FMA__)
constexpr int LANES = 8, MAX_ROWS = 6, MAX_VECTORS = 2;
#else
constexpr int LANES = 4, MAX_ROWS = 4, MAX_VECTORS = 4;
#endif

// While it lives, its thread takes and gives 0 for numbers below the smallest normal one: each costs an assist of a
// hundred cycles, and the weights of dead dimensions are full of them.
class FlushDenormals {
#if defined(__x86_64__)
  const unsigned before = _mm_getcsr();

 public:
  FlushDenormals() { _mm_setcsr(before | 0x8040); }  // flush to zero, denormals are zero
  ~FlushDenormals() { _mm_setcsr(before); }
#else
 public:
  FlushDenormals() {}
#endif
  FlushDenormals(const FlushDenormals&) = delete;
};

typedef float vec __attribute__((vector_size(LANES * 4)));
typedef int32_t ivec __attribute__((vector_size(LANES * 4)));
typedef uint32_t uvec __attribute__((vector_size(LANES * 4)));
typedef uint16_t hvec __attribute__((vector_size(LANES * 2)));  // as many bfloat16 numbers as a vec has floats

inline vec load(const float* p) { vec v; std::memcpy(&v, p, sizeof v); return v; }
inline void store(float* p, vec v) { std::memcpy(p, &v, sizeof v); }
inline vec load_some(const float* p, int64_t count) {  // the lanes beyond `count` are 0
  float lanes[LANES] = {};
  std::memcpy(lanes, p, count * sizeof(float));
  return load(lanes);
}
inline vec splat(float x) { return x - vec{}; }

inline vec fma(vec a, vec b, vec c) {
#if defined(__AVX512F__)
  return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__) && defined(__FMA__)
  return (vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_NEON)
  return (vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

inline vec max(vec a, vec b) { return a > b ? a : b; }

// A float16 that is not negative, nor infinite.
inline float half(uint16_t bits) {
  const uint32_t wide = uint32_t(bits) << 13;  // its exponent is 112 too small
  float x;
  std::memcpy(&x, &wide, sizeof x);
  return x * 0x1p112f;
}

// bfloat16: the upper half of a float, rounded to the nearest, ties to even. (A NaN stays one.)
inline hvec upper_halves(uvec x) {
#if defined(__AVX512F__)
  return (hvec)_mm512_cvtepi32_epi16((__m512i)(x >> 16));
#else
  return __builtin_convertvector(x >> 16, hvec);
#endif
}
inline hvec round_bf16(vec x) {
  const uvec bits = (uvec)x, rounded = bits + 0x7fff + ((bits >> 16) & 1);
  return upper_halves((uvec)(x == x ? (ivec)rounded : (ivec)(bits | 0x400000)));
}
// The same for numbers that are normal or 0.
inline hvec round_normal_bf16(vec x) {
#if defined(__AVX512BF16__)
  return (hvec)_mm512_cvtneps_pbh((__m512)x);
#else
  const uvec bits = (uvec)x;
  return upper_halves(bits + 0x7fff + ((bits >> 16) & 1));
#endif
}
inline uvec lower_halves(hvec x) {
#if defined(__AVX512F__)
  return (uvec)_mm512_cvtepu16_epi32((__m256i)x);
#elif defined(__AVX2__)
  return (uvec)_mm256_cvtepu16_epi32((__m128i)x);
#else
  return __builtin_convertvector(x, uvec);
#endif
}
inline vec widen_bf16(hvec x) { return (vec)(lower_halves(x) << 16); }
inline uint16_t round_bf16(float x) { return round_bf16(splat(x))[0]; }
inline float widen_bf16(uint16_t x) {
  const uint32_t bits = uint32_t(x) << 16;
  float y;
  std::memcpy(&y, &bits, sizeof y);
  return y;
}
inline hvec load_bf16(const uint16_t* p) { hvec v; std::memcpy(&v, p, sizeof v); return v; }
inline void store_bf16(uint16_t* p, hvec v) { std::memcpy(p, &v, sizeof v); }

inline void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }  // into the second-level cache

// Interleave the low or the high halves of two vectors.
template <int HIGH>
inline vec interleave(vec a, vec b) {
  constexpr int H = HIGH * LANES / 2, L = LANES;
#if defined(__AVX512F__)
  return __builtin_shufflevector(a, b, H, L + H, H + 1, L + H + 1, H + 2, L + H + 2, H + 3, L + H + 3, H + 4,
                                 L + H + 4, H + 5, L + H + 5, H + 6, L + H + 6, H + 7, L + H + 7);
#elif defined(__AVX2__) && defined(__FMA__)
  return __builtin_shufflevector(a, b, H, L + H, H + 1, L + H + 1, H + 2, L + H + 2, H + 3, L + H + 3);
#else
  return __builtin_shufflevector(a, b, H, L + H, H + 1, L + H + 1);
#endif
}

// The LANES × LANES square that begins at rows[i] + offset, transposed: column[i] is its column i.
inline void transpose_square(const float* const* rows, int offset, vec* column) {
#if defined(__AVX512F__)
  // Quarters of four rows are gathered while loading, which spares the one shuffle port half of the work.
#pragma GCC unroll 4
  for (int q = 0; q < 4; ++q) {
    __m512 a[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      a[i] = _mm512_castps128_ps512(_mm_loadu_ps(rows[i] + offset + 4 * q));
      a[i] = _mm512_insertf32x4(a[i], _mm_loadu_ps(rows[i + 4] + offset + 4 * q), 1);
      a[i] = _mm512_insertf32x4(a[i], _mm_loadu_ps(rows[i + 8] + offset + 4 * q), 2);
      a[i] = _mm512_insertf32x4(a[i], _mm_loadu_ps(rows[i + 12] + offset + 4 * q), 3);
    }
    const __m512d low = (__m512d)_mm512_unpacklo_ps(a[0], a[1]), low2 = (__m512d)_mm512_unpacklo_ps(a[2], a[3]);
    const __m512d high = (__m512d)_mm512_unpackhi_ps(a[0], a[1]), high2 = (__m512d)_mm512_unpackhi_ps(a[2], a[3]);
    column[4 * q] = (vec)_mm512_unpacklo_pd(low, low2);
    column[4 * q + 1] = (vec)_mm512_unpackhi_pd(low, low2);
    column[4 * q + 2] = (vec)_mm512_unpacklo_pd(high, high2);
    column[4 * q + 3] = (vec)_mm512_unpackhi_pd(high, high2);
  }
#else
  vec next[LANES];
#pragma GCC unroll 8
  for (int i = 0; i < LANES; ++i) column[i] = load(rows[i] + offset);
#pragma GCC unroll 3
  for (int round = 1; round < LANES; round *= 2) {  // a perfect shuffle of rows, LOG2(LANES) times
#pragma GCC unroll 8
    for (int i = 0; i < LANES / 2; ++i) {
      next[2 * i] = interleave<0>(column[i], column[i + LANES / 2]);
      next[2 * i + 1] = interleave<1>(column[i], column[i + LANES / 2]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < LANES; ++i) column[i] = next[i];
  }
#endif
}

// Largest lane, and sum of lanes, always in the same order.
template <class Join>
inline float reduce(vec v, Join join) {
  float lanes[LANES];
  store(lanes, v);
  for (int half = LANES / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] = join(lanes[i], lanes[i + half]);
  return lanes[0];
}
inline float max_lane(vec v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)v);
#else
  return reduce(v, [](float a, float b) { return a > b ? a : b; });
#endif
}
inline float sum_lanes(vec v) { return reduce(v, [](float a, float b) { return a + b; }); }

// exp, within 2e-7 relative; exactly 0 below the smallest normal number and for -inf. For x < 80.
inline vec exp(vec x) {
  const vec rounder = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const vec shifted = fma(x, splat(1.44269504f), rounder);
  const vec n = shifted - rounder;
  const vec r = fma(n, splat(-0.693147182f), x);
  vec p = fma(r, splat(8.3125014894e-3f), splat(4.1890332335e-2f));  // least largest relative error, fitted
  p = fma(p, r, splat(1.6667115389e-1f));
  p = fma(p, r, splat(4.9999230304e-1f));
  p = fma(p, r, splat(1.0f));
  p = fma(p, r, splat(1.0f));
#if defined(__AVX512F__)
  return (vec)_mm512_maskz_scalef_ps(_mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(-87.336f), _CMP_GE_OQ), (__m512)p,
                                     (__m512)n);
#else
  ivec bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  const ivec scale = (bits + 127) << 23;
  vec power;
  std::memcpy(&power, &scale, sizeof power);
  return x < splat(-87.336f) ? vec{} : p * power;
#endif
}

// 2^x, within 3e-6 relative, enough for what is rounded to bfloat16; 0 for -inf. For x < 115.
inline vec exp2_rough(vec x) {
#if defined(__AVX512DQ__)
  const vec r = (vec)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);  // what is above the floor
  vec p = fma(r, splat(1.3534167242e-2f), splat(5.2011461906e-2f));  // least largest relative error, fitted
  p = fma(p, r, splat(2.4144275613e-1f));
  p = fma(p, r, splat(6.9300383461e-1f));
  p = fma(p, r, splat(1.0000025934f));
  return (vec)_mm512_scalef_ps((__m512)p, (__m512)x);
#else
  return exp(x * splat(0.693147182f));
#endif
}

// The largest lane of each of LANES vectors.
inline vec max_each(const vec* a) {
  vec s[LANES];
  for (int i = 0; i < LANES; ++i) {  // the tree below delivers in bit-reversed order
    int from = 0;
    for (int bit = 1; bit < LANES; bit *= 2) from = 2 * from + ((i & bit) != 0);
    s[i] = a[from];
  }
#pragma GCC unroll 4
  for (int left = LANES / 2; left > 0; left /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < left; ++i)
      s[i] = max(interleave<0>(s[2 * i], s[2 * i + 1]), interleave<1>(s[2 * i], s[2 * i + 1]));
  return s[0];
}

// Rows [r][0:depth] of row pointers, whole vectors of LANES of them → columns: out[d * stride + r]. `ride` is called
// before every square.
template <class Ride>
inline void transpose(const float* const* rows, int count, int depth, float* out, int stride, Ride ride) {
  for (int r0 = 0; r0 < count; r0 += LANES) {
    int d = 0;
    for (; d + LANES <= depth; d += LANES) {
      vec column[LANES];
      ride();
      transpose_square(rows + r0, d, column);
#pragma GCC unroll 16
      for (int i = 0; i < LANES; ++i) store(out + (d + i) * stride + r0, column[i]);
    }
    for (; d < depth; ++d)
      for (int i = 0; i < LANES; ++i) out[d * stride + r0 + i] = rows[r0 + i][d];
  }
}

// What lies in the place of a float of a matrix, and how it is multiplied: one float,
struct Single {
  static constexpr int NUMBERS = 1;
  static vec spread(const float* a) { return splat(*a); }
  static vec add_product(vec a, vec b, vec sum) { return fma(a, b, sum); }
};
// or, where there are instructions for it, two bfloat16 numbers, neighbours along the sum.
#if defined(__AVX512BF16__)
struct Pair {
  static constexpr int NUMBERS = 2;
  static vec spread(const float* a) {
    int32_t bits;
    std::memcpy(&bits, a, sizeof bits);
    return (vec)(bits - ivec{});
  }
  static vec add_product(vec a, vec b, vec sum) {
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
  }
};
using Narrow = Pair;  // what products of bfloat16 are made of
#else
using Narrow = Single;
#endif

// out[ROWS][VECTORS * LANES] = sum over k of a[row][k] * b[k][:], each element one chain of `Unit::add_product` in the
// order of k, begun at `out` where ACCUMULATE, else at 0. `row(k)` gives b's row k.
template <class Unit, int ROWS, int VECTORS, bool ACCUMULATE, class Row>
inline void multiply(const float* a, int64_t a_stride, int depth, Row row, float* out, int64_t out_stride) {
  vec acc[ROWS][VECTORS];
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v)
      acc[r][v] = ACCUMULATE ? load(out + r * out_stride + v * LANES) : vec{};
  for (int k = 0; k < depth; ++k) {
    const float* values = row(k);
    vec b[VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) b[v] = load(values + v * LANES);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
      const vec x = Unit::spread(a + r * a_stride + k);
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) acc[r][v] = Unit::add_product(x, b[v], acc[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) store(out + r * out_stride + v * LANES, acc[r][v]);
}

// The same over `vectors` vectors of columns, by panels of MAX_VECTORS.
template <class Unit, int ROWS, bool ACCUMULATE, class Row>
inline void multiply_wide(const float* a, int64_t a_stride, int depth, Row row, float* out, int64_t out_stride,
                          int vectors) {
  for (int v = 0; v < vectors; v += MAX_VECTORS) {
    const int offset = v * LANES;
    auto panel = [&](int k) { return row(k) + offset; };
    const int width = vectors - v;
    if (width >= MAX_VECTORS)
      multiply<Unit, ROWS, MAX_VECTORS, ACCUMULATE>(a, a_stride, depth, panel, out + offset, out_stride);
    else if (width == 1)
      multiply<Unit, ROWS, 1, ACCUMULATE>(a, a_stride, depth, panel, out + offset, out_stride);
    else if (width == 2)
      multiply<Unit, ROWS, 2, ACCUMULATE>(a, a_stride, depth, panel, out + offset, out_stride);
    else
      multiply<Unit, ROWS, 3, ACCUMULATE>(a, a_stride, depth, panel, out + offset, out_stride);
  }
}

// Calls body(std::integral_constant<int, ROWS>, first_row) over rows in groups of at most MAX_ROWS.
template <int N>
struct Rows { static constexpr int value = N; };

template <class Body>
inline void for_row_groups(int rows, Body body) {
  int r = 0;
  for (; r + MAX_ROWS <= rows; r += MAX_ROWS) body(Rows<MAX_ROWS>{}, r);
  switch (rows - r) {
    case 1: body(Rows<1>{}, r); break;
    case 2: body(Rows<2>{}, r); break;
    case 3: body(Rows<3>{}, r); break;
#if defined(__AVX2__) || defined(__AVX512F__)
    case 4: body(Rows<4>{}, r); break;
    case 5: body(Rows<5>{}, r); break;
#endif
    default: break;
  }
}

}  // namespace folio
