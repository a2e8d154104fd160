// y = x · wᵀ + bias for float32 on a CPU, each row of y the same bits however many rows run together.
//
// Every element is one chain of fused multiply-adds over k. Panels of w are transposed in cache, as K is for attention.
#include <algorithm>
#include <vector>

#include "cpu_simd.h"

using namespace folio;

// Mirrored by `_Linear` in cpu.py. Strides in floats; columns are contiguous.
struct Linear {
  const float *x, *w, *bias;  // x [rows, inner], w [outer, inner], bias [outer] or null
  float* y;                   // [rows, outer], contiguous
  int64_t x_row, w_row, rows, inner, outer;
  int32_t threads;
};

extern "C" void folio_linear(const Linear* call) {
  const Linear& c = *call;
  constexpr int PANEL = MAX_VECTORS * LANES;  // columns of y a panel
  constexpr int DEPTH = 512;                  // of x that is transposed at a time
  constexpr int64_t ROWS = 192;               // of x that go over a panel together
  const int64_t panels = (c.outer + PANEL - 1) / PANEL;
  const int64_t blocks = (c.rows + ROWS - 1) / ROWS;
#pragma omp parallel for num_threads(c.threads) schedule(dynamic, 4)
  for (int64_t task = 0; task < panels * blocks; ++task) {
    const int64_t n0 = task % panels * PANEL, row0 = task / panels * ROWS;
    const int columns = int(std::min<int64_t>(PANEL, c.outer - n0));
    const int rows = int(std::min(ROWS, c.rows - row0));
    static thread_local std::vector<float> memory(DEPTH * PANEL + ROWS * PANEL);
    float *panel = memory.data(), *sums = panel + DEPTH * PANEL;
    const float* sources[PANEL];
    for (int64_t k0 = 0; k0 < c.inner; k0 += DEPTH) {
      const int depth = int(std::min<int64_t>(DEPTH, c.inner - k0));
      for (int j = 0; j < PANEL; ++j) sources[j] = c.w + (n0 + std::min(j, columns - 1)) * c.w_row + k0;
      transpose(sources, PANEL, depth, panel, PANEL);
      const float* x = c.x + row0 * c.x_row + k0;
      auto row = [&](int k) { return panel + k * PANEL; };
      for_row_groups(rows, [&](auto group, int r) {
        constexpr int N = decltype(group)::value;
        float* out = sums + r * PANEL;
        if (k0 == 0)
          multiply<N, MAX_VECTORS, false>(x + r * c.x_row, c.x_row, depth, row, out, PANEL);
        else
          multiply<N, MAX_VECTORS, true>(x + r * c.x_row, c.x_row, depth, row, out, PANEL);
      });
    }
    for (int r = 0; r < rows; ++r)
      for (int j = 0; j < columns; ++j)
        c.y[(row0 + r) * c.outer + n0 + j] = sums[r * PANEL + j] + (c.bias ? c.bias[n0 + j] : 0.0f);
  }
}
