// What a forward does row by row on a CPU besides products: RMS norms, gated activations, and K and V into pages. Each row
// by itself.
#include <algorithm>

#include "calls.h"
#include "gate.h"

using namespace folio;

namespace {

constexpr int64_t THREAD_FLOATS = 1 << 16;  // least work for one more thread

void norm_row(const Norm& c, int64_t row) {
  const float* x = c.x + row * c.x_row;
  float* y = c.y + row * c.dim;
  vec squares{};
  int64_t d = 0;
  for (; d + LANES <= c.dim; d += LANES) squares = fma(load(x + d), load(x + d), squares);
  if (d < c.dim) {
    const vec rest = load_some(x + d, c.dim - d);
    squares = fma(rest, rest, squares);
  }
  const float scale = 1.0f / std::sqrt(sum_lanes(squares) / float(c.dim) + c.eps);
  for (d = 0; d < c.dim; ++d) y[d] = c.weight[d] * (x[d] * scale);
}

}  // namespace

extern "C" void folio_rms_norm(const Norm* call) {
  const Norm& c = *call;
  const int threads = int(std::clamp<int64_t>(c.rows * c.dim / THREAD_FLOATS, 1, c.threads));
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int64_t row = 0; row < c.rows; ++row) norm_row(c, row);
}

extern "C" void folio_write(const Write* call) {
  const Write& c = *call;
  for (int64_t row = 0; row < c.rows; ++row) {
    const int64_t slot = c.slots[row] >= 0 ? c.slots[row] : c.num_pages * c.page_size - 1;
    char* at = c.pages + slot / c.page_size * c.page_stride + slot % c.page_size * c.row_bytes;
    for (int64_t head = 0; head < c.heads; ++head)
      std::memcpy(at + head * c.page_size * c.row_bytes, c.source + row * c.source_row + head * c.source_head,
                  c.row_bytes);
  }
}

// up[i] *= activation(gate[i]).
extern "C" void folio_gate(Activation activation, const float* gate, float* up, int64_t count, int32_t most) {
  const int threads = int(std::clamp<int64_t>(count / THREAD_FLOATS, 1, most));
  const int64_t step = (count / threads / LANES + 1) * LANES;  // so that a value is always in the same kind of vector
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int64_t first = 0; first < count; first += step) {
    const FlushDenormals flush;
    const int64_t end = std::min(first + step, count);
    for (int64_t i = first; i < end; i += LANES) {
      const int64_t width = std::min<int64_t>(LANES, end - i);
      const vec g = width == LANES ? load(gate + i) : load_some(gate + i, width);
      const vec u = width == LANES ? load(up + i) : load_some(up + i, width);
      float lanes[LANES];
      store(lanes, gated(activation, g, u));
      std::memcpy(up + i, lanes, width * sizeof(float));
    }
  }
}
