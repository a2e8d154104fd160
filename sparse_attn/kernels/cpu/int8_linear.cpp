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

// 32 columns of a row of x as dot products take them: number k is about scale · code[place(k)].
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

// Rounds 32 columns of x, of which `count` are there: put(k, code) for each; gives the scale and the codes' totals.
template <class Put>
float round_columns(const float* x, int count, int32_t (&total)[2], Put put) {
  float largest = 0;
  for (int k = 0; k < count; ++k) largest = std::max(largest, std::abs(x[k]));
  const bool any = largest > 1e-30f;
  const float factor = any ? 127.0f / largest : 0.0f;
  total[0] = total[1] = 0;
  for (int k = 0; k < TILE_COLUMNS; ++k) {
    const float moved = (k < count ? x[k] * factor : 0.0f) + 12582912.0f;  // 1.5 · 2^23: the integer is in the last bits
    int32_t bits;
    std::memcpy(&bits, &moved, sizeof bits);
    const int32_t code = bits - 0x4b400000;
    put(k, code);
    total[k / HALF] += code;
  }
  return any ? largest / 127.0f : 0.0f;
}

#if defined(__AVX2__) && !defined(__AVX512VNNI__)
// Four products of bytes a lane; bytes of w above 127 in two goes, for a pair of their products would not fit 16 bits.
#if defined(__AVX512F__)
inline ivec four_products(ivec w, int64_t eight) {
  const __m512i a = (__m512i)w, b = _mm512_set1_epi64(eight), ones = _mm512_set1_epi16(1);
  const __m512i top = _mm512_srli_epi16(_mm512_and_si512(a, _mm512_set1_epi8(-128)), 1);
  const __m512i low = _mm512_maddubs_epi16(_mm512_and_si512(a, _mm512_set1_epi8(127)), b);
  const __m512i high = _mm512_maddubs_epi16(top, b);
  return (ivec)_mm512_madd_epi16(low, ones) + ((ivec)_mm512_madd_epi16(high, ones) << 1);
}
#else
inline ivec four_products(ivec w, int64_t eight) {
  const __m256i a = (__m256i)w, b = _mm256_set1_epi64x(eight), ones = _mm256_set1_epi16(1);
  const __m256i top = _mm256_srli_epi16(_mm256_and_si256(a, _mm256_set1_epi8(-128)), 1);
  const __m256i low = _mm256_maddubs_epi16(_mm256_and_si256(a, _mm256_set1_epi8(127)), b);
  const __m256i high = _mm256_maddubs_epi16(top, b);
  return (ivec)_mm256_madd_epi16(low, ones) + ((ivec)_mm256_madd_epi16(high, ones) << 1);
}
#endif
#endif

// sums[lane] + the four products of bytes of each lane: of w, not negative, and x, whose eight bytes go around.
inline iwide add_products(const iwide& sums, const iwide& w, const int8_t* x) {
  int64_t eight;
  std::memcpy(&eight, x, sizeof eight);
  iwide out;
#pragma GCC unroll 4
  for (int i = 0; i < PARTS; ++i) {
#if defined(__AVX512VNNI__)
    out.part[i] = (ivec)_mm512_dpbusd_epi32((__m512i)sums.part[i], (__m512i)w.part[i], _mm512_set1_epi64(eight));
#elif defined(__AVX2__)
    out.part[i] = sums.part[i] + four_products(w.part[i], eight);
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
        sums[r] = scaled<KIND>(sums[r], converted(all), scale, least, own.scale, own.sum, part + 1 == parts<KIND>);
      }
    }
  }
  for (int r = 0; r < ROWS; ++r) store_wide(y[r] + column, sums[r]);
}

// x for dot products, each row by itself: of a few rows, and of all where there are no tiles.
class ByDots {
  Codes* codes = nullptr;
  int64_t steps = 0;

 public:
  struct Scratch {};

  static bool shares(const PackedLinear& a, const PackedLinear& b) { return wide(a) == wide(b); }
  static bool wide(const PackedLinear& c) { return c.kind == INT8_ROWS || c.kind == Q8_0; }
  static int64_t padded(int64_t rows) { return rows; }
  static int64_t room(int64_t rows, int64_t steps) { return rows * steps * int64_t(sizeof(Codes)); }

  void take(char* memory, int64_t, int64_t count) { codes = reinterpret_cast<Codes*>(memory), steps = count; }

  void convert(const PackedLinear& c, int64_t row) {
    const bool bytes = wide(c);
    for (int64_t k = 0; k < c.inner; k += TILE_COLUMNS) {
      Codes& out = codes[row * steps + k / TILE_COLUMNS];
      out.scale = round_columns(c.x + row * c.x_row + k, std::min<int64_t>(TILE_COLUMNS, c.inner - k), out.total,
                                [&](int i, int32_t code) { out.code[place(i, bytes)] = int8_t(code); });
      out.sum = out.scale * float(out.total[0] + out.total[1]);
    }
  }

  template <int KIND>
  void multiply(const PackedLinear& c, int64_t row0, int64_t rows, int64_t n0, Scratch&) const {
    const int64_t size = LayoutOf<KIND>::panel_bytes(steps), last = (c.outer - 1) / TILE_ROWS;
    alignas(64) float y[TOGETHER][WIDTH];
    for (int64_t r = row0; r < row0 + rows; r += TOGETHER) {
      const int count = int(std::min<int64_t>(TOGETHER, row0 + rows - r));
      for (int i = 0; i < 2; ++i) {
        const uint8_t* panel = c.w + std::min(n0 / TILE_ROWS + i, last) * size;
        const Codes* from = codes + r * steps;
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
};

#if defined(__AMX_BF16__)
// x for AMX: sixteen rows of 32 codes in bfloat16 are a tile, with the scales and sums of its rows beside one another.
class ByTiles {
  uint16_t* codes = nullptr;  // [padded rows / 16, steps, 16, 32]
  float *scale = nullptr, *sum = nullptr;  // [padded rows / 16, steps, 16]
  int64_t steps = 0;
  static constexpr int64_t tile = TILE_ROWS * TILE_COLUMNS;

 public:
  using Scratch = Tiles;

  static bool shares(const PackedLinear&, const PackedLinear&) { return true; }
  static int64_t padded(int64_t rows) { return (rows + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS; }
  static int64_t room(int64_t rows, int64_t steps) {
    return padded(rows) * steps * (TILE_COLUMNS * int64_t(sizeof(uint16_t)) + 2 * int64_t(sizeof(float)));
  }

  void take(char* memory, int64_t rows, int64_t count) {
    steps = count;
    codes = reinterpret_cast<uint16_t*>(memory);
    scale = reinterpret_cast<float*>(codes + padded(rows) * steps * TILE_COLUMNS);
    sum = scale + padded(rows) * steps;
  }

  void convert(const PackedLinear& c, int64_t row) {
    for (int64_t step = 0; step < steps; ++step) {
      const int64_t number = row / TILE_ROWS * steps + step, at = number * TILE_ROWS + row % TILE_ROWS;
      const int64_t k = step * TILE_COLUMNS;
      int32_t total[2];
      const int count = row < c.rows ? int(std::min<int64_t>(TILE_COLUMNS, c.inner - k)) : 0;
      scale[at] = round_columns(count ? c.x + row * c.x_row + k : nullptr, count, total, [&](int i, int32_t code) {
        codes[at * TILE_COLUMNS + i] = round_bf16(float(code));
      });
      sum[at] = scale[at] * float(total[0] + total[1]);
    }
  }

  // Sixteen rows times a panel: `integers` as `unpack_tile` puts them, `factors` a scale and a minimum for each part.
  template <int KIND>
  void block(int64_t number, const uint16_t* integers, const float* factors, float (*y)[WIDTH], int column) const {
    constexpr int PARTS_OF_TILE = parts<KIND>, DEPTH = TILE_COLUMNS / PARTS_OF_TILE;
    alignas(64) float products[2][TILE_ROWS][TILE_ROWS];
    wide sums[TILE_ROWS];
    for (int r = 0; r < TILE_ROWS; ++r) sums[r] = splat_wide(0.0f);
    const uint16_t* a = codes + number * steps * tile;
    const float *x_scale = scale + number * steps * TILE_ROWS, *x_sum = sum + number * steps * TILE_ROWS;
    const auto add = [&](int64_t at) {  // what tile product `at` gave
      const int64_t step = at / PARTS_OF_TILE;
      const bool last = at % PARTS_OF_TILE + 1 == PARTS_OF_TILE;
      const wide own = load_wide(factors + at * 2 * TILE_ROWS), least = load_wide(factors + (at * 2 + 1) * TILE_ROWS);
#pragma GCC unroll 16
      for (int r = 0; r < TILE_ROWS; ++r)
        sums[r] = scaled<KIND>(sums[r], load_wide(products[at % 2][r]), own, least, x_scale[step * TILE_ROWS + r],
                               x_sum[step * TILE_ROWS + r], last);
    };
    for (int64_t at = 0; at < steps * PARTS_OF_TILE; ++at) {  // the tiles are a product ahead
      tile_zero<0>();
      tile_load<4>(a + at / PARTS_OF_TILE * tile + at % PARTS_OF_TILE * DEPTH, 2 * TILE_COLUMNS);
      tile_load<6>(integers + at * tile / PARTS_OF_TILE, 2 * TILE_COLUMNS);
      tile_multiply_bf16<0, 4, 6>();
      tile_store<0>(products[at % 2], sizeof products[0][0]);
      if (at > 0) add(at - 1);
    }
    add(steps * PARTS_OF_TILE - 1);
    for (int r = 0; r < TILE_ROWS; ++r) store_wide(y[r] + column, sums[r]);
  }

  template <int KIND>
  void multiply(const PackedLinear& c, int64_t row0, int64_t rows, int64_t n0, Tiles& tiles) const {
    using L = LayoutOf<KIND>;
    const int64_t size = L::panel_bytes(steps), last = (c.outer - 1) / TILE_ROWS;
    const int64_t factors_of = steps * parts<KIND> * 2 * TILE_ROWS;
    static thread_local Kept<uint16_t> unpacked;
    static thread_local Kept<float> scaling;
    uint16_t* const integers = unpacked.take(2 * steps * tile);
    float* const factors = scaling.take(2 * factors_of);
    for (int i = 0; i < 2; ++i) {
      const uint8_t* panel = c.w + std::min(n0 / TILE_ROWS + i, last) * size;
      uint16_t* out = integers + i * steps * tile;
      float* scale_out = factors + i * factors_of;
      for (int64_t step = 0; step < steps; ++step, out += tile) {
        const uint8_t* head = panel + step / L::span * (L::head + L::span * L::tile);
        unpack_tile<KIND, true>(head, panel + L::offset(step), int(step % L::span),
                                [&](int j, const wide& low, const wide& high) { Bfloat16::put(out, j, low, high); });
        for (int part = 0; part < parts<KIND>; ++part, scale_out += 2 * TILE_ROWS) {
          wide own, least;
          scales<KIND>(head, int(step % L::span), part, own, least);
          store_wide(scale_out, own);
          store_wide(scale_out + TILE_ROWS, least);
        }
      }
    }
    tiles.shape(TILE_ROWS, PAIRS / parts<KIND>);
    alignas(64) float y[TILE_ROWS][WIDTH];
    for (int64_t r = row0; r < row0 + rows; r += TILE_ROWS) {
      for (int i = 0; i < 2; ++i)
        block<KIND>(r / TILE_ROWS, integers + i * steps * tile, factors + i * factors_of, y, i * TILE_ROWS);
      deliver(c, r, int(std::min<int64_t>(TILE_ROWS, row0 + rows - r)), n0, y);
    }
  }
};
#else
using ByTiles = ByDots;
#endif

template <class Way>
void run(const PackedLinear* calls, int32_t count) {
  const int64_t rows = calls->rows, height = std::min<int64_t>(std::max<int64_t>(rows, 1), TASK_ROWS);
  const int64_t blocks = (rows + height - 1) / height;
  const auto same = [&](int i) {
    return i && calls[i].x == calls[i - 1].x && calls[i].inner == calls[i - 1].inner &&
           Way::shares(calls[i], calls[i - 1]);
  };
  std::vector<int64_t> first(count + 1), at(count);
  std::vector<Way> inputs(count);
  int64_t products = 0, room = 0;
  const auto steps = [&](int i) { return (calls[i].inner + TILE_COLUMNS - 1) / TILE_COLUMNS; };
  for (int i = 0; i < count; ++i) {
    const PackedLinear& c = calls[i];
    first[i + 1] = first[i] + (c.outer + WIDTH - 1) / WIDTH * blocks;
    products += rows * c.outer * c.inner;
    at[i] = same(i) ? at[i - 1] : room;
    if (!same(i)) room += (Way::room(rows, steps(i)) + 63) / 64 * 64;
  }
  static thread_local Kept<char> kept;
  char* const memory = kept.take(room);
  for (int i = 0; i < count; ++i) inputs[i].take(memory + at[i], rows, steps(i));
  const int threads = int(std::clamp<int64_t>(products / THREAD_PRODUCTS, 1, calls->threads));
  const int64_t share = std::max<int64_t>(1, first[count] / (threads * 8));
  const auto convert = [&] {
    for (int i = 0; i < count; ++i) {
      if (same(i)) continue;
#pragma omp for schedule(static)
      for (int64_t row = 0; row < Way::padded(rows); ++row) inputs[i].convert(calls[i], row);
    }
  };
  const bool few = rows <= TOGETHER;  // to wait for one another would take the threads longer than that work
  if (few) convert();
#pragma omp parallel num_threads(threads)
  {
    const FlushDenormals flush;
    if (!few) convert();
    typename Way::Scratch scratch;
#pragma omp for schedule(dynamic, share)
    for (int64_t task = 0; task < first[count]; ++task) {
      const int64_t own = std::upper_bound(first.begin(), first.end(), task) - first.begin() - 1;
      const PackedLinear& c = calls[own];
      const int64_t across = (c.outer + WIDTH - 1) / WIDTH, number = task - first[own], row0 = number / across * height;
      for_kind(c.kind, [&](auto known) {
        constexpr int KIND = decltype(known)::value;
        if constexpr (LayoutOf<KIND>::bits > 0)
          inputs[own].template multiply<KIND>(c, row0, std::min(height, rows - row0), number % across * WIDTH, scratch);
      });
    }
#if defined(__x86_64__)
    _mm_sfence();  // results that went past the caches
#endif
  }
}

}  // namespace

void folio::run_int8(const PackedLinear* calls, int32_t count) {
  if (calls->rows > TILE_ROWS)
    run<ByTiles>(calls, count);
  else
    run<ByDots>(calls, count);
}
