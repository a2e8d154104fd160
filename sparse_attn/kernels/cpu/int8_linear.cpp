// y = x · wᵀ + bias with x rounded to integers of eight bits, of one scale for 32 columns (llama.cpp's way), and w in panels
// of integers (blocks.h).
//
// What a tile adds is a sum of products of integers, which is exact however it is made: by dot products of bytes, or for
// many rows by the tiles of AMX, whose bfloat16 holds both factors and whose float32 the sums. It is then scaled and added
// to what the tiles before it gave, a row of x by itself, so that its bits do not depend on the rows beside it.
#include "linear_tasks.h"

using namespace folio;

namespace {

constexpr int TOGETHER = 4;   // rows that share what is unpacked
constexpr int HALF = 16;      // columns that have one scale at least

// 32 columns of a row of x: number k is about scale · code[place(k)].
struct Codes {
  int8_t code[TILE_COLUMNS];
  int32_t total[2];  // of the codes of either half
  float scale, sum;  // of all numbers
};

template <int KIND>
constexpr bool bytes_wide = LayoutOf<KIND>::bits == 8;
template <int KIND>
constexpr bool has_minimum = KIND == Q4_1 || KIND == Q4_K || KIND == Q5_K;
template <int KIND>
constexpr int parts = KIND == Q6_K ? 2 : 1;  // times that the scale changes within a tile

// Where a tile's words hold column k: four bytes a lane, of every second column, or of every fourth where numbers are of
// fewer bits and a byte holds two.
constexpr int place(int k, bool wide) {
  const int pair = k / 2, in_word = wide ? 4 : 8, word = pair / in_word, i = pair % in_word;
  return wide ? (word * 2 + k % 2) * 4 + i : ((word * 2 + i % 2) * 2 + k % 2) * 4 + i / 2;
}

void round_columns(const float* x, int count, bool wide, Codes& out) {
  float largest = 0;
  for (int k = 0; k < count; ++k) largest = std::max(largest, std::abs(x[k]));
  const bool any = largest > 1e-30f;
  const float factor = any ? 127.0f / largest : 0.0f;
  int32_t total[2] = {};
  for (int k = 0; k < TILE_COLUMNS; ++k) {
    const float moved = (k < count ? x[k] * factor : 0.0f) + 12582912.0f;  // 1.5 · 2^23: the integer is in the last bits
    int32_t bits;
    std::memcpy(&bits, &moved, sizeof bits);
    const int32_t code = bits - 0x4b400000;
    out.code[place(k, wide)] = int8_t(code);
    total[k / HALF] += code;
  }
  out.total[0] = total[0], out.total[1] = total[1];
  out.scale = any ? largest / 127.0f : 0.0f;
  out.sum = out.scale * float(total[0] + total[1]);
}

// sums[lane] + the four products of bytes of each lane: of w, not negative, and x, whose eight bytes go around.
inline iwide add_products(const iwide& sums, const iwide& w, const int8_t* x) {
  int64_t eight;
  std::memcpy(&eight, x, sizeof eight);
  iwide out;
#pragma GCC unroll 4
  for (int i = 0; i < PARTS; ++i) {
#if defined(__AVX512VNNI__)
    out.part[i] = (ivec)_mm512_dpbusd_epi32((__m512i)sums.part[i], (__m512i)w.part[i], _mm512_set1_epi64(eight));
#elif defined(__AVX2__) && !defined(__AVX512F__)
    // Bytes above 127 in two goes: a pair of their products would not fit 16 bits.
    const __m256i a = (__m256i)w.part[i], b = _mm256_set1_epi64x(eight), ones = _mm256_set1_epi16(1);
    const __m256i top = _mm256_srli_epi16(_mm256_and_si256(a, _mm256_set1_epi8(-128)), 1);
    const __m256i low = _mm256_maddubs_epi16(_mm256_and_si256(a, _mm256_set1_epi8(127)), b);
    const __m256i high = _mm256_maddubs_epi16(top, b);
    const __m256i both = _mm256_add_epi32(_mm256_madd_epi16(low, ones), _mm256_slli_epi32(_mm256_madd_epi16(high, ones), 1));
    out.part[i] = sums.part[i] + (ivec)both;
#else
    out.part[i] = sums.part[i];
    for (int byte = 0; byte < 4; ++byte) {
      ivec factor;
      for (int lane = 0; lane < LANES; ++lane) factor[lane] = x[lane % 2 * 4 + byte];
      out.part[i] += (ivec)((uvec)w.part[i] >> (8 * byte) & 255) * factor;
    }
#endif
  }
  return out;
}

inline iwide masked(const iwide& w, int32_t mask) { return field(w, mask, splat_word(0)); }

// The integers of words q of half h of a tile, eight bits each: of even pairs of columns, then of odd ones.
template <int KIND>
inline void nibbles(const uint8_t* tile, int h, int q, iwide& even, iwide& odd) {
  using L = LayoutOf<KIND>;
  const iwide low = load_words(tile + 64 * (2 * h + q));
  even = masked(low, 0x0f0f0f0f);
  odd = masked(shifted(low, -4), 0x0f0f0f0f);
  if constexpr (L::high > 0) {
    const iwide high = load_words(tile + L::low + (L::bits == 6 ? 64 * h : 0));
    const auto moved = [&](int pair) {  // the bits of every second pair from this one on, from bit 4 of each byte on
      constexpr int more = L::bits - 4, gap = 8 - 2 * more;
      const iwide from = shifted(high, -(L::bits == 6 ? more * (8 * q + pair) : 16 * h + 8 * q + pair));
      constexpr int32_t mask = (1 << more) - 1;
      iwide out = splat_word(0);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) out = field(shifted(from, 4 + gap * i), mask << (4 + 8 * i), out);
      return out;
    };
    const iwide first = moved(0), second = moved(1);
    for (int i = 0; i < PARTS; ++i) even.part[i] |= first.part[i], odd.part[i] |= second.part[i];
  }
}

// One number a row of a tile: the two lanes of each row in both halves, added.
inline iwide by_row(const iwide& first, const iwide& second) {
  ivec flat[2 * PARTS];
  for (int i = 0; i < PARTS; ++i) flat[i] = first.part[i], flat[PARTS + i] = second.part[i];
  ivec even, odd;
  for (int i = 0; i < LANES; ++i) even[i] = 2 * i, odd[i] = 2 * i + 1;
  iwide out;
#pragma GCC unroll 4
  for (int i = 0; i < PARTS; ++i)
    out.part[i] = __builtin_shuffle(flat[2 * i], flat[2 * i + 1], even) +
                  __builtin_shuffle(flat[2 * i], flat[2 * i + 1], odd);
  return out;
}

inline wide converted(const iwide& w) {
  return each([&](int i) { return __builtin_convertvector(w.part[i], vec); });
}

// What a tile adds to a row: integers, scaled by what w and x are scaled by.
template <int KIND>
inline wide scaled(const wide& sums, const wide& integers, const wide& scale, const wide& least, float x_scale,
                   float x_sum, bool last) {
  const wide added = multiply_add(times(scale, x_scale), integers, sums);
  return has_minimum<KIND> && last ? multiply_add(least, splat_wide(x_sum), added) : added;
}

// ROWS rows times a panel, by dot products.
template <int KIND, int ROWS>
void dot(const uint8_t* panel, int64_t steps, const Codes* x, int64_t x_row, float (*y)[WIDTH], int column) {
  using L = LayoutOf<KIND>;
  constexpr int words = bytes_wide<KIND> ? 4 : 2;
  wide sums[ROWS];
  for (int r = 0; r < ROWS; ++r) sums[r] = splat_wide(0.0f);
  for (int64_t step = 0; step < steps; ++step) {
    const uint8_t* head = panel + step / L::span * (L::head + L::span * L::tile);
    const uint8_t* tile = panel + L::offset(step);
    for (int line = 0; line < L::tile + L::head / L::span; line += 64) __builtin_prefetch(tile + AHEAD + line, 0, 3);
    iwide integers[parts<KIND>][ROWS][2];
#pragma GCC unroll 2
    for (int part = 0; part < parts<KIND>; ++part)
      for (int r = 0; r < ROWS; ++r)
        for (int h = 0; h < 2; ++h) integers[part][r][h] = splat_word(0);
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h)
#pragma GCC unroll 4
      for (int q = 0; q < words; ++q) {
        if constexpr (bytes_wide<KIND>) {
          const iwide w = load_words(tile + 64 * (words * h + q));
#pragma GCC unroll 4
          for (int r = 0; r < ROWS; ++r)
            integers[0][r][h] = add_products(integers[0][r][h], w, x[r * x_row + step].code + 8 * q);
        } else {
          iwide even, odd;
          nibbles<KIND>(tile, h, q, even, odd);
#pragma GCC unroll 4
          for (int r = 0; r < ROWS; ++r) {
            iwide& to = integers[parts<KIND> == 2 ? q : 0][r][h];
            to = add_products(to, even, x[r * x_row + step].code + 16 * q);
            to = add_products(to, odd, x[r * x_row + step].code + 16 * q + 8);
          }
        }
      }
#pragma GCC unroll 2
    for (int part = 0; part < parts<KIND>; ++part) {
      wide scale, least;
      scales<KIND>(head, int(step % L::span), part, scale, least);
#pragma GCC unroll 4
      for (int r = 0; r < ROWS; ++r) {
        const Codes& own = x[r * x_row + step];
        iwide all = by_row(integers[part][r][0], integers[part][r][1]);
        if constexpr (L::zero > 0) {
          const int32_t total = parts<KIND> == 2 ? own.total[part] : own.total[0] + own.total[1];
          for (int i = 0; i < PARTS; ++i) all.part[i] -= L::zero * total;
        }
        if constexpr (KIND == INT8_ROWS) scale = splat_wide(1.0f);
        sums[r] = scaled<KIND>(sums[r], converted(all), scale, least, own.scale, own.sum, part + 1 == parts<KIND>);
      }
    }
  }
  for (int r = 0; r < ROWS; ++r) store_wide(y[r] + column, sums[r]);
}

template <int KIND>
void dots(const PackedLinear& c, const Codes* x, int64_t steps, int64_t row0, int64_t rows, int64_t n0) {
  const int64_t size = LayoutOf<KIND>::panel_bytes(steps), last = (c.outer - 1) / TILE_ROWS;
  alignas(64) float y[TOGETHER][WIDTH];
  for (int64_t r = row0; r < row0 + rows; r += TOGETHER) {
    const int count = int(std::min<int64_t>(TOGETHER, row0 + rows - r));
    for (int i = 0; i < 2; ++i) {
      const uint8_t* panel = c.w + std::min(n0 / TILE_ROWS + i, last) * size;
      const Codes* from = x + r * steps;
      switch (count) {
        case 1: dot<KIND, 1>(panel, steps, from, steps, y, i * TILE_ROWS); break;
        case 2: dot<KIND, 2>(panel, steps, from, steps, y, i * TILE_ROWS); break;
        case 3: dot<KIND, 3>(panel, steps, from, steps, y, i * TILE_ROWS); break;
        default: dot<KIND, TOGETHER>(panel, steps, from, steps, y, i * TILE_ROWS);
      }
    }
    deliver(c, r, count, n0, y);
  }
}

}  // namespace

void folio::run_int8(const PackedLinear* calls, int32_t count) {
  const int64_t rows = calls->rows, height = std::min<int64_t>(std::max<int64_t>(rows, 1), TASK_ROWS);
  const int64_t blocks = (rows + height - 1) / height;
  const auto wide = [&](int i) { return calls[i].kind == INT8_ROWS || calls[i].kind == Q8_0; };
  const auto same = [&](int i) {
    return i && calls[i].x == calls[i - 1].x && calls[i].inner == calls[i - 1].inner && wide(i) == wide(i - 1);
  };
  std::vector<int64_t> first(count + 1), steps(count), at(count);
  int64_t products = 0, room = 0;
  for (int i = 0; i < count; ++i) {
    const PackedLinear& c = calls[i];
    first[i + 1] = first[i] + (c.outer + WIDTH - 1) / WIDTH * blocks;
    products += rows * c.outer * c.inner;
    steps[i] = (c.inner + TILE_COLUMNS - 1) / TILE_COLUMNS;
    at[i] = same(i) ? at[i - 1] : room;
    if (!same(i)) room += rows * steps[i];
  }
  static thread_local Kept<Codes> kept;
  Codes* codes = kept.take(room);
  const int threads = int(std::clamp<int64_t>(products / THREAD_PRODUCTS, 1, calls->threads));
  const int64_t share = std::max<int64_t>(1, first[count] / (threads * 8));
  const auto convert = [&] {
    for (int i = 0; i < count; ++i) {
      if (same(i)) continue;
      const PackedLinear& c = calls[i];
#pragma omp for schedule(static)
      for (int64_t row = 0; row < rows; ++row)
        for (int64_t k = 0; k < c.inner; k += TILE_COLUMNS)
          round_columns(c.x + row * c.x_row + k, int(std::min<int64_t>(TILE_COLUMNS, c.inner - k)), wide(i),
                        codes[at[i] + row * steps[i] + k / TILE_COLUMNS]);
    }
  };
  const bool few = rows <= TOGETHER;
  if (few) convert();
#pragma omp parallel num_threads(threads)
  {
    const FlushDenormals flush;
    if (!few) convert();
#pragma omp for schedule(dynamic, share)
    for (int64_t task = 0; task < first[count]; ++task) {
      const int64_t own = std::upper_bound(first.begin(), first.end(), task) - first.begin() - 1;
      const PackedLinear& c = calls[own];
      const int64_t across = (c.outer + WIDTH - 1) / WIDTH, number = task - first[own], row0 = number / across * height;
      for_kind(c.kind, [&](auto known) {
        constexpr int KIND = decltype(known)::value;
        if constexpr (LayoutOf<KIND>::bits > 0)
          dots<KIND>(c, codes + at[own], steps[own], row0, std::min(height, rows - row0), number % across * WIDTH);
      });
    }
#if defined(__x86_64__)
    _mm_sfence();  // results that went past the caches
#endif
  }
}
