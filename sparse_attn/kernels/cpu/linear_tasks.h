// What the products of packed weights share: memory that is kept, and how results are delivered.
#pragma once

#include <algorithm>
#include <vector>

#include "packed.h"
#include "products.h"

namespace folio {

constexpr int AHEAD = 2048;               // bytes
constexpr int64_t CACHED = 1 << 20;       // floats of results that whoever comes next may find in a cache
constexpr int64_t TASK_ROWS = 512;        // rows that share an unpacked panel, where there are many
constexpr int64_t SPAN = 64;              // tiles of that many rows along k whose numbers the second cache holds
constexpr int THREAD_PRODUCTS = 1 << 17;  // least work for one more thread

// Memory that begins at a cache line and is kept from call to call.
template <class T>
class Kept {
  std::vector<T> memory;

 public:
  T* take(int64_t count) {
    constexpr int64_t line = 64 / sizeof(T);
    if (int64_t(memory.size()) < count + line) memory.resize(count + line);
    return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) & ~uintptr_t(63));
  }
};

// A row of a task's results to memory, not by way of the caches: they would first read what is overwritten, and hold less.
inline bool store_past_caches(float* y, const float* row) {
#if defined(__AVX512F__)
  if (reinterpret_cast<uintptr_t>(y) % 64) return false;
  for (int n = 0; n < WIDTH; n += LANES) _mm512_stream_ps(y + n, _mm512_load_ps(row + n));
  return true;
#else
  return false;
#endif
}

// Sums of columns n0 … n0 + columns - 1 of a row as results: scaled, and with their biases.
inline void finish(const PackedLinear& c, int64_t n0, int columns, float* sums) {
  if (!c.scale && !c.bias) return;
  for (int n = 0; n < columns; ++n) {
    const float scaled = c.scale ? sums[n] * c.scale[n0 + n] : sums[n];
    sums[n] = scaled + (c.bias ? c.bias[n0 + n] : 0.0f);
  }
}

inline void deliver(const PackedLinear& c, int64_t row0, int rows, int64_t n0, float (*sums)[WIDTH]) {
  const int columns = int(std::min<int64_t>(WIDTH, c.outer - n0));
  const bool past = columns == WIDTH && c.rows * c.outer > CACHED;
  for (int r = 0; r < rows; ++r) {
    float* y = c.y + (row0 + r) * c.outer + n0;
    finish(c, n0, columns, sums[r]);
    if (!past || !store_past_caches(y, sums[r])) std::memcpy(y, sums[r], columns * sizeof(float));
  }
}

// The products of calls with x in int8 (int8_linear.cpp).
void run_int8(const PackedLinear* calls, int32_t count);

}  // namespace folio
