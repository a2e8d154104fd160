// The tile registers of AMX, where the family has them: eight of up to 16 rows of 64 bytes.
//
// In a product C += A · B, A has a row of pairs of bfloat16 (or quadruples of int8) of 64 bytes for each row of C, and B
// 16 rows of 16 such groups, one for each column: B's row k holds group k of every column. An element of a bfloat16
// product is C + (the chain of its even products + that of its odd ones), whatever rows lie beside it.
#pragma once

#if defined(__AMX_TILE__)
#include <cstdint>

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

// A thread's tiles: 0 to 3 are sums and 4 and 5 are A, of `rows` rows; 6 and 7 are B, of 16. Given back at the end of its
// life, or the system would save 8 KB at every change of context.
class Tiles {
  int rows = 0;

 public:
  Tiles() = default;
  Tiles(const Tiles&) = delete;
  ~Tiles() {
    if (rows) asm volatile("tilerelease" ::: "memory");
  }
  void shape(int count) {  // forgets what is in the tiles
    if (count == rows) return;
    struct alignas(64) {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t height[16] = {};
    } config;
    for (int t = 0; t < 8; ++t) config.row_bytes[t] = 64, config.height[t] = uint8_t(t < 6 ? count : 16);
    asm volatile("ldtilecfg %0" ::"m"(config) : "memory");
    rows = count;
  }
};

}  // namespace folio
#endif
