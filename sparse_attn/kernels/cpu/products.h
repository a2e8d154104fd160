// Up to BLOCK rows of x times two panels of w, unpacked: by float32, by vectors of bfloat16, or by the tiles of AMX.
//
// Each class computes an element as one chain along k (float32: two, of even and of odd columns) that no other row and
// no other column enters, so that a row's bits do not depend on how many rows there are. `begin` sets the sums to 0,
// `add` goes on along k, `end` delivers.
#pragma once

#include "amx.h"
#include "blocks.h"

namespace folio {

constexpr int BLOCK = 32, WIDTH = 2 * TILE_ROWS;

// x[0] and x[1] in turns.
inline vec pair_of(const float* x) {
  typedef int64_t lvec __attribute__((vector_size(LANES * 4)));
  int64_t both;
  std::memcpy(&both, x, sizeof both);
  return (vec)(both - lvec{});
}

class Float32 {
  alignas(64) float sums[BLOCK][4][TILE_ROWS];  // of panel 0's halves, of panel 1's
  int rows = 0;

  // WIDES of the four sums of ROWS rows, from number `first` on.
  template <int ROWS, int WIDES>
  void dot(int row, int first, const float* x, int64_t x_row, const float* const* w, int steps) {
    wide acc[ROWS][WIDES];
    for (int r = 0; r < ROWS; ++r)
      for (int i = 0; i < WIDES; ++i) acc[r][i] = load_wide(sums[row + r][first + i]);
    for (int pair = 0; pair < steps * PAIRS; ++pair) {
      wide b[WIDES];
#pragma GCC unroll 4
      for (int i = 0; i < WIDES; ++i) b[i] = load_wide(w[(first + i) / 2] + (2 * pair + (first + i) % 2) * TILE_ROWS);
#pragma GCC unroll 4
      for (int r = 0; r < ROWS; ++r) {
        const vec a = pair_of(x + r * x_row + 2 * pair);
#pragma GCC unroll 4
        for (int i = 0; i < WIDES; ++i)
#pragma GCC unroll 4
          for (int p = 0; p < PARTS; ++p) acc[r][i].part[p] = fma(a, b[i].part[p], acc[r][i].part[p]);
      }
    }
    for (int r = 0; r < ROWS; ++r)
      for (int i = 0; i < WIDES; ++i) store_wide(sums[row + r][first + i], acc[r][i]);
  }

 public:
  using Value = float;
  static constexpr int values = TILE_ROWS * TILE_COLUMNS;  // of a tile
  static constexpr int64_t run = INT64_MAX;                // most tiles along k between `begin` and `end`
  static constexpr bool reads_bfloat16 = false;
  static constexpr int64_t step = TILE_COLUMNS;  // from 32 columns of x to the next

  static int64_t place(int64_t row, int64_t k, int64_t width) { return row * width + k; }  // of a number of x

  static void put(float* tile, int j, const wide& low, const wide& high) {
    store_wide(tile + 2 * j * TILE_ROWS, low);
    store_wide(tile + (2 * j + 1) * TILE_ROWS, high);
  }
  static void convert(const float* x, int count, float* out) {  // the lanes beyond are 0
    std::memcpy(out, x, count * sizeof(float));
    std::memset(out + count, 0, (TILE_COLUMNS - count) * sizeof(float));
  }
  void begin(int count) {
    rows = count;
    std::memset(sums, 0, sizeof sums[0] * count);
  }
  void add(const float* x, int64_t x_row, const float* w0, const float* w1, int steps) {
    const float* const w[] = {w0, w1};
    constexpr int ROWS = LANES == 16 ? 4 : 2, WIDES = LANES == 16 ? 4 : 1;
    int r = 0;
    for (; r + ROWS <= rows; r += ROWS)
      for (int i = 0; i < 4; i += WIDES) dot<ROWS, WIDES>(r, i, x + r * x_row, x_row, w, steps);
    for (; r < rows; ++r) dot<1, 4>(r, 0, x + r * x_row, x_row, w, steps);
  }
  void end(float (*y)[WIDTH]) {
    for (int r = 0; r < rows; ++r)
      for (int n = 0; n < WIDTH; ++n) {
        const float* both = sums[r][n / 8] + n % 8 * 2;
        y[r][n] = both[0] + both[1];
      }
  }
};

#if defined(__AVX512BF16__)
// What both classes of bfloat16 have: a tile is 16 rows of 16 pairs of numbers, one a row of w.
struct Bfloat16 {
  using Value = uint16_t;
  static constexpr int values = TILE_ROWS * TILE_COLUMNS;
  static constexpr int64_t run = INT64_MAX;
  static constexpr bool reads_bfloat16 = true;
  static constexpr int64_t step = TILE_COLUMNS;

  static int64_t place(int64_t row, int64_t k, int64_t width) { return row * width + k; }

  static void put(uint16_t* tile, int j, const wide& low, const wide& high) {
    const __m512bh both = _mm512_cvtne2ps_pbh((__m512)high.part[0], (__m512)low.part[0]);
    std::memcpy(tile + j * TILE_COLUMNS, &both, sizeof both);
  }
  static void convert(const float* x, int count, uint16_t* out) {
    const uint32_t there = count >= TILE_COLUMNS ? ~0u : (1u << count) - 1;
    const __m512 low = _mm512_maskz_loadu_ps(__mmask16(there), x);
    const __m512 high = _mm512_maskz_loadu_ps(__mmask16(there >> 16), x + 16);
    const __m512bh both = _mm512_cvtne2ps_pbh(high, low);
    std::memcpy(out, &both, sizeof both);
  }
};
#endif

#if defined(__AMX_BF16__)
class Rounded : public Bfloat16 {
  Tiles tiles;
  int rows = 0;

 public:
  static constexpr int64_t step = values;  // x lies in tiles too, each in one piece
  static constexpr int64_t run = 10;       // so many tiles of both panels and of 32 rows of x fit in the first cache

  static int64_t place(int64_t row, int64_t k, int64_t width) {
    const int64_t tile = row / TILE_ROWS * TILE_ROWS * width + k / TILE_COLUMNS * step;
    return tile + row % TILE_ROWS * TILE_COLUMNS + k % TILE_COLUMNS;
  }
  void begin(int count) {
    rows = count;
    tiles.shape(count < TILE_ROWS ? count : TILE_ROWS);
    tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
  }
  void resume(int count, const float (*y)[WIDTH]) {  // from what `end` delivered
    rows = count;
    tiles.shape(count < TILE_ROWS ? count : TILE_ROWS);
    constexpr int64_t stride = sizeof *y;
    tile_load<0>(y[0], stride);
    tile_load<1>(y[0] + TILE_ROWS, stride);
    if (rows > TILE_ROWS) {
      tile_load<2>(y[TILE_ROWS], stride);
      tile_load<3>(y[TILE_ROWS] + TILE_ROWS, stride);
    }
  }
  void add(const uint16_t* x, int64_t width, const uint16_t* w0, const uint16_t* w1, int steps) {
    if (rows <= TILE_ROWS) {
      for (int s = 0; s < steps; ++s, x += step, w0 += values, w1 += values) {
        tile_load<4>(x, 64);
        tile_load<6>(w0, 64);
        tile_multiply_bf16<0, 4, 6>();
        tile_load<7>(w1, 64);
        tile_multiply_bf16<1, 4, 7>();
      }
      return;
    }
    const uint16_t* below = x + TILE_ROWS * width;  // rows beyond are there, as zeros
    for (int s = 0; s < steps; ++s, x += step, below += step, w0 += values, w1 += values) {
      tile_load<6>(w0, 64);
      tile_load<4>(x, 64);
      tile_multiply_bf16<0, 4, 6>();
      tile_load<5>(below, 64);
      tile_multiply_bf16<2, 5, 6>();
      tile_load<7>(w1, 64);
      tile_multiply_bf16<1, 4, 7>();
      tile_multiply_bf16<3, 5, 7>();
    }
  }
  void end(float (*y)[WIDTH]) {
    constexpr int64_t stride = sizeof *y;
    tile_store<0>(y[0], stride);
    tile_store<1>(y[0] + TILE_ROWS, stride);
    if (rows > TILE_ROWS) {
      tile_store<2>(y[TILE_ROWS], stride);
      tile_store<3>(y[TILE_ROWS] + TILE_ROWS, stride);
    }
  }
};
#elif defined(__AVX512BF16__)
class Rounded : public Bfloat16 {
  alignas(64) float sums[BLOCK][2][TILE_ROWS];
  int rows = 0;

  template <int ROWS>
  void dot(int row, const uint16_t* x, int64_t x_row, const uint16_t* w0, const uint16_t* w1, int steps) {
    __m512 acc[ROWS][2];
    for (int r = 0; r < ROWS; ++r)
      for (int i = 0; i < 2; ++i) acc[r][i] = _mm512_load_ps(sums[row + r][i]);
    for (int pair = 0; pair < steps * PAIRS; ++pair) {
      const __m512bh b0 = (__m512bh)_mm512_loadu_si512(w0 + pair * TILE_COLUMNS);
      const __m512bh b1 = (__m512bh)_mm512_loadu_si512(w1 + pair * TILE_COLUMNS);
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; ++r) {
        int32_t both;
        std::memcpy(&both, x + r * x_row + 2 * pair, sizeof both);
        const __m512bh a = (__m512bh)_mm512_set1_epi32(both);
        acc[r][0] = _mm512_dpbf16_ps(acc[r][0], a, b0);
        acc[r][1] = _mm512_dpbf16_ps(acc[r][1], a, b1);
      }
    }
    for (int r = 0; r < ROWS; ++r)
      for (int i = 0; i < 2; ++i) _mm512_store_ps(sums[row + r][i], acc[r][i]);
  }

 public:
  void begin(int count) {
    rows = count;
    std::memset(sums, 0, sizeof sums[0] * count);
  }
  void add(const uint16_t* x, int64_t x_row, const uint16_t* w0, const uint16_t* w1, int steps) {
    int r = 0;
    for (; r + 8 <= rows; r += 8) dot<8>(r, x + r * x_row, x_row, w0, w1, steps);
    for (; r + 2 <= rows; r += 2) dot<2>(r, x + r * x_row, x_row, w0, w1, steps);
    for (; r < rows; ++r) dot<1>(r, x + r * x_row, x_row, w0, w1, steps);
  }
  void end(float (*y)[WIDTH]) { std::memcpy(y, sums, sizeof sums[0] * rows); }
};
#else
using Rounded = Float32;  // there is no gain in rounding
#endif

}  // namespace folio
