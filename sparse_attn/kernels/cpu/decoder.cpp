// The decoder layers of a model of Llama's kind over one ragged batch, in one call.
//
// A small model's step is spent between its operations: each is a dozen calls through Python and torch, whose code the
// KV has meanwhile driven out of the caches. Here an operation follows the other. They are those of the modules, over
// the same kernels and rounded alike, so that a forward has the same bits either way.
#include <algorithm>
#include <vector>

#include "calls.h"
#include "simd.h"

using namespace folio;

// Mirrored by `_Layer` in decoder.py. Weights [outer, inner] are contiguous; biases [outer] may be null, and
// q_norm and k_norm [dim] too.
struct Layer {
  const float *input_norm, *post_norm, *q_norm, *k_norm;
  const float *q, *k, *v, *o, *gate, *up, *down;
  const float *q_bias, *k_bias, *v_bias, *o_bias, *gate_bias, *up_bias, *down_bias;
  float *k_pages, *v_pages;
  float input_eps, post_eps, q_eps, k_eps, scale;
  int32_t window, rotary;
};

// Mirrored by `_Decoder` in decoder.py.
struct Decoder {
  const Layer* layers;
  const int32_t* chosen;       // [count]: the layers to run, in order
  const Attention* attention;  // the batch; what a layer has of its own is filled in here
  float* x;                    // [rows, hidden], in place
  const float *cos, *sin;      // [rows, dim], or null where no layer rotates
  const int64_t* slots;        // [rows]
  int64_t count, rows, hidden, inner, num_pages;
};

namespace {

constexpr int64_t ALIGN = 64;  // bytes: a vector across two cache lines costs two accesses

// The buffers of a forward, kept from one to the next.
class Scratch {
  std::vector<char> memory;
  int64_t used = 0;

 public:
  void clear(int64_t floats, int buffers) {
    const size_t bytes = floats * sizeof(float) + (buffers + 1) * ALIGN;
    if (memory.size() < bytes) memory.resize(bytes);
    used = -reinterpret_cast<int64_t>(memory.data()) & (ALIGN - 1);
  }
  float* take(int64_t floats) {
    float* at = reinterpret_cast<float*>(memory.data() + used);
    used = (used + floats * int64_t(sizeof(float)) + ALIGN - 1) & -ALIGN;
    return at;
  }
};

// Rotary position embedding by halves (RoFormer, arXiv 2104.09864), as transformers rounds it; x [rows, heads, dim].
void rotate(float* x, int64_t rows, int heads, int dim, const float* cos, const float* sin) {
  const int half = dim / 2;
  for (int64_t row = 0; row < rows; ++row, cos += dim, sin += dim)
    for (int head = 0; head < heads; ++head, x += dim)
      for (int d = 0; d < half; ++d) {
        const float low = x[d], high = x[d + half];
        x[d] = low * cos[d] + -high * sin[d];
        x[d + half] = high * cos[d + half] + low * sin[d + half];
      }
}

void add(float* x, const float* y, int64_t count) {
  for (int64_t i = 0; i < count; ++i) x[i] += y[i];
}

}  // namespace

extern "C" void folio_decoder(const Decoder* call) {
  const Decoder& c = *call;
  Attention attention = *c.attention;
  const int dim = attention.dim, threads = attention.threads;
  const int64_t rows = c.rows, hidden = c.hidden;
  const int64_t q_width = int64_t(attention.q_heads) * dim, kv_width = int64_t(attention.kv_heads) * dim;

  static thread_local Scratch scratch;
  scratch.clear(rows * (2 * hidden + 2 * q_width + 2 * kv_width + 2 * c.inner + attention.q_heads), 9);
  float* const normed = scratch.take(rows * hidden);
  float* const added = scratch.take(rows * hidden);
  float* const q = scratch.take(rows * q_width);
  float* const k = scratch.take(rows * kv_width);
  float* const v = scratch.take(rows * kv_width);
  float* const gate = scratch.take(rows * c.inner);
  float* const up = scratch.take(rows * c.inner);
  attention.q = q;
  attention.k_new = k;
  attention.v_new = v;
  float* const attended = scratch.take(rows * q_width);
  attention.out = attended;
  attention.lse = scratch.take(rows * attention.q_heads);
  attention.q_row = q_width;
  attention.k_row = attention.v_row = kv_width;
  attention.q_head = attention.k_head = attention.v_head = dim;

  const auto norm = [&](const float* x, const float* weight, float eps, float* y, int64_t count, int64_t width) {
    const Norm one{x, weight, y, width, count, width, eps, threads};
    folio_rms_norm(&one);
  };
  const auto product = [&](const float* x, const float* w, const float* bias, float* y, int64_t inner, int64_t outer) {
    return Linear{x, w, bias, y, inner, inner, rows, inner, outer, threads};
  };
  const auto write = [&](const float* rows_of, float* pages) {
    const int64_t head = int64_t(dim) * sizeof(float);
    const Write one{reinterpret_cast<const char*>(rows_of), reinterpret_cast<char*>(pages), c.slots,
                    kv_width * int64_t(sizeof(float)), head, attention.page_stride * int64_t(sizeof(float)),
                    c.num_pages, rows, attention.kv_heads, attention.page_size, head};
    folio_write(&one);
  };

  for (int64_t i = 0; i < c.count; ++i) {
    const Layer& layer = c.layers[c.chosen[i]];
    norm(c.x, layer.input_norm, layer.input_eps, normed, rows, hidden);
    const Linear heads[] = {product(normed, layer.q, layer.q_bias, q, hidden, q_width),
                            product(normed, layer.k, layer.k_bias, k, hidden, kv_width),
                            product(normed, layer.v, layer.v_bias, v, hidden, kv_width)};
    folio_linear(heads, 3);
    if (layer.q_norm) norm(q, layer.q_norm, layer.q_eps, q, rows * attention.q_heads, dim);
    if (layer.k_norm) norm(k, layer.k_norm, layer.k_eps, k, rows * attention.kv_heads, dim);
    if (layer.rotary) {
      rotate(q, rows, attention.q_heads, dim, c.cos, c.sin);
      rotate(k, rows, attention.kv_heads, dim, c.cos, c.sin);
    }
    attention.k_cache = layer.k_pages;
    attention.v_cache = layer.v_pages;
    attention.scale = layer.scale;
    attention.window = layer.window;
    folio_attention(&attention);
    write(k, layer.k_pages);
    write(v, layer.v_pages);
    const Linear joined = product(attended, layer.o, layer.o_bias, added, q_width, hidden);
    folio_linear(&joined, 1);
    add(c.x, added, rows * hidden);

    norm(c.x, layer.post_norm, layer.post_eps, normed, rows, hidden);
    const Linear gated[] = {product(normed, layer.gate, layer.gate_bias, gate, hidden, c.inner),
                            product(normed, layer.up, layer.up_bias, up, hidden, c.inner)};
    folio_linear(gated, 2);
    folio_silu_mul(gate, up, rows * c.inner, threads);
    const Linear down = product(up, layer.down, layer.down_bias, added, c.inner, hidden);
    folio_linear(&down, 1);
    add(c.x, added, rows * hidden);
  }
}
