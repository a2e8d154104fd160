// Vectors of floats for AVX-512, AVX2, NEON and anything else GCC 12+ or Clang knows, by vector extensions.
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

typedef float vec __attribute__((vector_size(LANES * 4)));
typedef int32_t ivec __attribute__((vector_size(LANES * 4)));

inline vec load(const float* p) { vec v; std::memcpy(&v, p, sizeof v); return v; }
inline void store(float* p, vec v) { std::memcpy(p, &v, sizeof v); }
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

// Interleave the low or the high halves of two vectors: LOG2(LANES) rounds of it over LANES rows transpose them.
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

// exp, within 2 ulp; exactly 0 below the smallest normal number, so that -inf gives 0.
inline vec exp(vec x) {
  const vec low = splat(-87.336f);
  const vec rounder = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  vec clamped = max(x, low);
  vec shifted = fma(clamped, splat(1.44269504f), rounder);
  vec n = shifted - rounder;
  vec r = fma(n, splat(-0.693145752f), clamped);
  r = fma(n, splat(-1.42860677e-6f), r);
  vec p = splat(1.9875691500e-4f);  // Cephes' expf
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  p = fma(p, r * r, r) + splat(1.0f);
  ivec bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  ivec scale = (bits + 127) << 23;
  vec power;
  std::memcpy(&power, &scale, sizeof power);
  return x < low ? vec{} : p * power;
}

// Rows [r][0:depth] of `count` row pointers → columns: out[d * stride + r], rows beyond count being 0.
// count is rounded up to whole vectors of LANES columns.
inline void transpose(const float* const* rows, int count, int depth, float* out, int stride) {
  for (int r0 = 0; r0 < count; r0 += LANES) {
    const int used = count - r0 < LANES ? count - r0 : LANES;
    int d = 0;
    for (; d + LANES <= depth; d += LANES) {
      vec a[LANES], b[LANES];
#pragma GCC unroll 16
      for (int i = 0; i < LANES; ++i) a[i] = i < used ? load(rows[r0 + i] + d) : vec{};
#pragma GCC unroll 4
      for (int round = 1; round < LANES; round *= 2) {
#pragma GCC unroll 16
        for (int i = 0; i < LANES / 2; ++i) {
          b[2 * i] = interleave<0>(a[i], a[i + LANES / 2]);
          b[2 * i + 1] = interleave<1>(a[i], a[i + LANES / 2]);
        }
#pragma GCC unroll 16
        for (int i = 0; i < LANES; ++i) a[i] = b[i];
      }
#pragma GCC unroll 16
      for (int i = 0; i < LANES; ++i) store(out + (d + i) * stride + r0, a[i]);
    }
    for (; d < depth; ++d)
      for (int i = 0; i < LANES; ++i) out[d * stride + r0 + i] = i < used ? rows[r0 + i][d] : 0.0f;
  }
}

// out[ROWS][VECTORS * LANES] = sum over k of a[row][k] * b[k][:], each element one chain of fused multiply-adds in
// the order of k, begun at `out` where ACCUMULATE, else at 0. `row(k)` gives b's row k.
template <int ROWS, int VECTORS, bool ACCUMULATE, class Row>
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
      const vec x = splat(a[r * a_stride + k]);
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) acc[r][v] = fma(x, b[v], acc[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) store(out + r * out_stride + v * LANES, acc[r][v]);
}

// The same over `vectors` vectors of columns, by panels of MAX_VECTORS.
template <int ROWS, bool ACCUMULATE, class Row>
inline void multiply_wide(const float* a, int64_t a_stride, int depth, Row row, float* out, int64_t out_stride,
                          int vectors) {
  for (int v = 0; v < vectors; v += MAX_VECTORS) {
    const int offset = v * LANES;
    auto panel = [&](int k) { return row(k) + offset; };
    const int width = vectors - v;
    if (width >= MAX_VECTORS)
      multiply<ROWS, MAX_VECTORS, ACCUMULATE>(a, a_stride, depth, panel, out + offset, out_stride);
    else if (width == 1)
      multiply<ROWS, 1, ACCUMULATE>(a, a_stride, depth, panel, out + offset, out_stride);
    else if (width == 2)
      multiply<ROWS, 2, ACCUMULATE>(a, a_stride, depth, panel, out + offset, out_stride);
    else
      multiply<ROWS, 3, ACCUMULATE>(a, a_stride, depth, panel, out + offset, out_stride);
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
