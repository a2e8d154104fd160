// y = x · wᵀ + bias for float32 on a CPU, each row of y the same bits however many rows run together.
//
// An element is LANES chains of fused multiply-adds along k, one a lane, whose ends are added by a fixed tree. A panel
// of LANES rows of w serves all rows of x, so that w is read from memory once and needs no packing.
#include <algorithm>
#include <vector>

#include "calls.h"
#include "simd.h"

using namespace folio;

namespace {

constexpr int DEPTH = 512;  // of k at a time, so that a panel stays in cache
constexpr int BLOCK = 128;   // rows of x that go over a panel together
constexpr int THREAD_PRODUCTS = 1 << 15;  // least work for one more thread
constexpr int PANELS = 4;    // panels a task

// The lanes of LANES vectors added up: element i of the result is the sum of the lanes of a[i].
vec sum_each(const vec* a) {
  vec s[LANES];
  for (int i = 0; i < LANES; ++i) {  // the tree below delivers in bit-reversed order
    int from = 0;
    for (int bit = 1; bit < LANES; bit *= 2) from = 2 * from + ((i & bit) != 0);
    s[i] = a[from];
  }
  for (int left = LANES / 2; left > 0; left /= 2)
    for (int i = 0; i < left; ++i) s[i] = interleave<0>(s[2 * i], s[2 * i + 1]) + interleave<1>(s[2 * i], s[2 * i + 1]);
  return s[0];
}

// sums[r * LANES + j] += lanes of x[r] · w[j] over `depth`, for ROWS rows of x and COLUMNS rows of w.
// The sums begin at 0 where `fresh`. FETCH: bring in what lies `ahead` of w meanwhile.
template <int ROWS, int COLUMNS, bool FETCH>
void dot(const float* x, int64_t x_row, const float* const* w, int64_t ahead, int depth, bool fresh, vec* sums) {
  vec acc[ROWS][COLUMNS];
#pragma GCC unroll 4
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 16
    for (int j = 0; j < COLUMNS; ++j) acc[r][j] = fresh ? vec{} : sums[r * LANES + j];
  auto step = [&](auto get, int k) {
    vec a[ROWS];
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r) a[r] = get(x + r * x_row + k);
#pragma GCC unroll 16
    for (int j = 0; j < COLUMNS; ++j) {
      if (FETCH) prefetch(w[j] + k + ahead);
      const vec b = get(w[j] + k);
#pragma GCC unroll 4
      for (int r = 0; r < ROWS; ++r) acc[r][j] = fma(a[r], b, acc[r][j]);
    }
  };
  int k = 0;
  for (; k + LANES <= depth; k += LANES) step([](const float* p) { return load(p); }, k);
  if (k < depth) step([&](const float* p) { return load_some(p, depth - k); }, k);
#pragma GCC unroll 4
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 16
    for (int j = 0; j < COLUMNS; ++j) sums[r * LANES + j] = acc[r][j];
}

// Columns n0 … n0+LANES-1 of rows row0 … row0+rows-1. The groups of rows share out what they bring in of the next panel,
// if one follows: the first, for which this panel's weights may still be on their way, would wait for it alone.
void panel(const Linear& c, int64_t n0, int64_t row0, int rows, bool more, vec* sums) {
  const int columns = int(std::min<int64_t>(LANES, c.outer - n0)), groups = rows / 4;
  for (int64_t k0 = 0; k0 < c.inner; k0 += DEPTH) {
    const int depth = int(std::min<int64_t>(DEPTH, c.inner - k0));
    const float* w[LANES];
    for (int j = 0; j < LANES; ++j) w[j] = c.w + (n0 + std::min(j, columns - 1)) * c.w_row + k0;
    const float* x = c.x + row0 * c.x_row + k0;
    int r = 0;
    const auto go = [&](auto group) {
      constexpr int N = decltype(group)::value, COLUMNS = N >= 4 ? 4 : LANES / N;
      for (; r + N <= rows; r += N)
        for (int j = 0; j < LANES; j += COLUMNS) {
          const bool fetch = more && N == 4 && j / COLUMNS % groups == r / N % groups;
          const auto run = fetch ? dot<N, COLUMNS, N == 4> : dot<N, COLUMNS, false>;
          run(x + r * c.x_row, c.x_row, w + j, LANES * c.w_row, depth, k0 == 0, sums + r * LANES + j);
        }
    };
    if constexpr (LANES >= 8) go(Rows<4>{});
    go(Rows<2>{});
    go(Rows<1>{});
  }
  for (int r = 0; r < rows; ++r) {
    float y[LANES];
    store(y, sum_each(sums + r * LANES));
    float* out = c.y + (row0 + r) * c.outer + n0;
    for (int j = 0; j < columns; ++j) out[j] = y[j] + (c.bias ? c.bias[n0 + j] : 0.0f);
  }
}

}  // namespace

// Several products share their tasks out together: one meeting of the threads instead of one each.
extern "C" void folio_linear(const Linear* calls, int32_t count) {
  constexpr int64_t WIDTH = PANELS * LANES;
  const int64_t rows = calls->rows, blocks = (rows + BLOCK - 1) / BLOCK;
  std::vector<int64_t> first(count + 1);  // task of each product
  int64_t products = 0;
  for (int i = 0; i < count; ++i) {
    first[i + 1] = first[i] + (calls[i].outer + WIDTH - 1) / WIDTH * blocks;
    products += rows * calls[i].outer * calls[i].inner;
  }
  const int threads = int(std::clamp<int64_t>(products / THREAD_PRODUCTS, 1, calls->threads));
#pragma omp parallel num_threads(threads)
  {
    const FlushDenormals flush;
    std::vector<vec> sums(std::min<int64_t>(rows, BLOCK) * LANES);
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < first[count]; ++task) {
      const int64_t own = std::upper_bound(first.begin(), first.end(), task) - first.begin() - 1;
      const Linear& c = calls[own];
      const int64_t across = (c.outer + WIDTH - 1) / WIDTH, at = task - first[own];
      const int64_t row0 = at / across * BLOCK, column = at % across * WIDTH, end = std::min(column + WIDTH, c.outer);
      const int height = int(std::min<int64_t>(BLOCK, rows - row0));
      for (int64_t n0 = column; n0 < end; n0 += LANES) panel(c, n0, row0, height, n0 + LANES < end, sums.data());
    }
  }
}
