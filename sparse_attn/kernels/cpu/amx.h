// The tile registers of AMX, where the family has them: eight of up to 16 rows of 64 bytes.
//
// In a product C += A · B, A has a row of pairs of bfloat16 (or quadruples of int8) of 64 bytes for each row of C, and
// B 16 rows of 16 such groups, one for each column: B's row k holds group k of every column. An element of a bfloat16
// product is C + (the chain of its even products + that of its odd ones), whatever rows lie beside it.
#pragma once

#if defined(__AMX_BF16__)
#include <algorithm>
#include <cstdint>
#include <type_traits>

namespace folio {

// GCC's own intrinsics do not tell the compiler that tiles are read from and written to memory; these do.
template <int T>
inline void tile_load(const void* at, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(at), "r"(stride), "i"(T) : "memory");
}
template <int T>
inline void tile_store(void* at, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(at), "r"(stride), "i"(T) : "memory");
}
template <int T>
inline void tile_zero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(T));
}
template <int C, int A, int B>  // products of bfloat16, sums in float32
inline void tile_multiply_bf16() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}

// A thread's tiles: 0 to 3 are sums and 4 and 5 are A, of `rows` rows; 6 and 7 are B, of `deep`. Given back at the end of
// its life, or the system would save 8 KB at every change of context.
class Tiles {
  int rows = 0, deep = 0;

 public:
  Tiles() = default;
  Tiles(const Tiles&) = delete;
  ~Tiles() {
    if (rows) asm volatile("tilerelease" ::: "memory");
  }
  void shape(int count, int depth = 16) {  // of rows, and of groups along k; forgets what is in the tiles
    if (count == rows && depth == deep) return;
    struct alignas(64) {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t height[16] = {};
    } config;
    for (int t = 0; t < 8; ++t) {
      config.row_bytes[t] = uint16_t(t == 4 || t == 5 ? 4 * depth : 64);
      config.height[t] = uint8_t(t < 6 ? count : depth);
    }
    asm volatile("ldtilecfg %0" ::"m"(config) : "memory");
    rows = count, deep = depth;
  }
};

// body(0), …, body(COUNT - 1), at most 4, as constants: the number of a tile is part of an instruction.
template <int COUNT, class Body>
inline void each_tile(Body body) {
  body(std::integral_constant<int, 0>{});
  if constexpr (COUNT > 1) body(std::integral_constant<int, 1>{});
  if constexpr (COUNT > 2) body(std::integral_constant<int, 2>{});
  if constexpr (COUNT > 3) body(std::integral_constant<int, 3>{});
}

// out [rows of the tiles][columns] = a · b over `depth` pairs (a multiple of 16), or out + a · b where ACCUMULATE;
// columns are a multiple of 16. Strides in units of 4 bytes: a row of a and of out, and a pair's row of b. `ride` is
// called after every product of tiles.
template <bool ACCUMULATE, int COLUMNS, class Ride>
inline void tile_panel(const float* a, int64_t a_row, int depth, const float* b, int64_t b_row, float* out,
                       int64_t out_row, Ride ride) {
  each_tile<COLUMNS>([&](auto n) {
    constexpr int N = decltype(n)::value;
    if constexpr (ACCUMULATE)
      tile_load<N>(out + 16 * N, 4 * out_row);
    else
      tile_zero<N>();
  });
  for (int k = 0; k < depth; k += 16) {
    tile_load<4>(a + k, 4 * a_row);
    each_tile<COLUMNS>([&](auto n) {
      constexpr int N = decltype(n)::value, B = 6 + N % 2;
      tile_load<B>(b + k * b_row + 16 * N, 4 * b_row);
      tile_multiply_bf16<N, 4, B>();
      ride();
    });
  }
  each_tile<COLUMNS>([&](auto n) { tile_store<decltype(n)::value>(out + 16 * decltype(n)::value, 4 * out_row); });
}

// out [16 * GROUPS][16] = a · b, where a's rows lie in groups of 16 and b [depth][16]; tiles are of 16 rows.
template <int GROUPS, class Ride>
inline void tile_tall_product(const float* const* a, int64_t a_row, int depth, const float* b, float* out, Ride ride) {
  each_tile<GROUPS>([](auto n) { tile_zero<decltype(n)::value>(); });
  for (int k = 0; k < depth; k += 16) {
    tile_load<6>(b + 16 * k, 64);
    each_tile<GROUPS>([&](auto n) {
      constexpr int N = decltype(n)::value, A = 4 + N % 2;
      tile_load<A>(a[N] + k, 4 * a_row);
      tile_multiply_bf16<N, A, 6>();
      ride();
    });
  }
  each_tile<GROUPS>([&](auto n) { tile_store<decltype(n)::value>(out + 256 * decltype(n)::value, 64); });
}
template <bool ACCUMULATE, class Ride>
inline void tile_product(const float* a, int64_t a_row, int depth, const float* b, int64_t b_row, float* out,
                         int64_t out_row, int columns, Ride ride) {
  for (int n = 0; n < columns; n += 64) {
    const auto panel = [&](auto tiles) {
      tile_panel<ACCUMULATE, decltype(tiles)::value>(a, a_row, depth, b + n, b_row, out + n, out_row, ride);
    };
    switch (std::min(columns - n, 64) / 16) {
      case 1: panel(std::integral_constant<int, 1>{}); break;
      case 2: panel(std::integral_constant<int, 2>{}); break;
      case 3: panel(std::integral_constant<int, 3>{}); break;
      default: panel(std::integral_constant<int, 4>{});
    }
  }
}

}  // namespace folio
#endif
