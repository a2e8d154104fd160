// The decoder layers of a model of Llama's, Phi's or Gemma's kind over one ragged batch: all in one call, or a layer's two halves, before
// and after its attention.
//
// A small model's step is spent between its operations: each is a dozen calls through Python and torch, whose code the
// KV has meanwhile driven out of the caches; and a long prompt's, in passes over memory that each of them makes. Here an
// operation follows the other. They are those of the modules, over the same kernels and rounded alike, so that a forward
// has the same bits either way.
#include <algorithm>
#include <initializer_list>
#include <vector>

#include "calls.h"
#include "packed.h"
#include "simd.h"

using namespace folio;

// Mirrored by `_Projection` in decoder.py: w [outer, inner] of float32, contiguous, and bias [outer] or null; or packed.
struct Projection {
  const float *w, *bias;
  const PackedLinear* packed;  // all of the call but x and y; or null
};

// Mirrored by `_Layer` in decoder.py. All norms but those of a half's input may be null.
struct Layer {
  const float *input_norm, *attended_norm, *mlp_norm, *gated_norm, *q_norm, *k_norm;
  Projection q, k, v, o, gate, up, down;
  void *k_pages, *v_pages;  // of the batch's page_kind
  float input_eps, attended_eps, mlp_eps, gated_eps, q_eps, k_eps, scale, softcap;
  int32_t window, rotary;  // of the angles that rotate it, or -1
  Activation activation;
};

// Mirrored by `_Angles` in decoder.py: cos and sin [rows, width], of which a head's first `width` numbers are rotated.
struct Angles {
  const float *cos, *sin;
  int64_t width;
};

// Mirrored by `_Decoder` in decoder.py.
struct Decoder {
  const Layer* layers;
  const int32_t* chosen;       // [count]: the layers to run, in order
  const Attention* attention;  // the batch; what a layer has of its own is filled in here
  float* x;                    // [rows, hidden], in place
  const Angles* angles;        // those that layers name
  const int64_t* slots;        // [rows]
  float *q, *k, *v;            // of a layer's first half: [rows, heads · dim]
  const float* attended;       // of its second: [rows, q_heads · dim]
  int64_t count, rows, hidden, inner, num_pages;
  int32_t q_heads, kv_heads, dim, threads;
};

namespace {

constexpr int64_t ALIGN = 64;             // bytes: a vector across two cache lines costs two accesses
constexpr int64_t THREAD_FLOATS = 1 << 16;  // least work for one more thread
constexpr int64_t BLOCK_ROWS = 512;       // rows that go through an MLP together: weights are unpacked once for them

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

struct Output {
  const Projection& of;
  float* y;
  int64_t width;
};

class Body {
  const Decoder& c;
  const int64_t q_width, kv_width;

  int threads(int64_t floats) const { return int(std::clamp<int64_t>(floats / THREAD_FLOATS, 1, c.threads)); }

  void norm(const float* x, const float* weight, float eps, float* y, int64_t count, int64_t width) const {
    const Norm one{x, weight, y, width, count, width, eps, c.threads};
    folio_rms_norm(&one);
  }

  PackedLinear call(const PackedLinear& weight, const float* x, int64_t rows, int64_t inner, float* y) const {
    PackedLinear one = weight;
    one.x = x, one.y = y, one.x_row = inner, one.rows = rows, one.threads = c.threads;
    return one;
  }

  // Products of the same rows of x, in one meeting of the threads.
  void multiply(const float* x, int64_t rows, int64_t inner, std::initializer_list<Output> outputs) const {
    Linear plain[3];
    PackedLinear packed[3];
    int count = 0;
    for (const Output& out : outputs) {
      const Projection& p = out.of;
      if (p.packed) {
        packed[count] = call(*p.packed, x, rows, inner, out.y);
      } else {
        plain[count] = {x, p.w, p.bias, out.y, inner, inner, rows, inner, out.width, c.threads};
      }
      ++count;
    }
    if (outputs.begin()->of.packed)
      folio_packed_linear(packed, count);
    else
      folio_linear(plain, count);
  }

  // up = activation(gate · x) · (up · x); `gate` is room.
  void open_gate(const Layer& layer, const float* x, int64_t rows, float* gate, float* up) const {
    if (layer.gate.packed) {
      const PackedLinear both[] = {call(*layer.gate.packed, x, rows, c.hidden, gate),
                                   call(*layer.up.packed, x, rows, c.hidden, up)};
      if (folio_packed_gated(both, layer.activation)) return;
    }
    multiply(x, rows, c.hidden, {{layer.gate, gate, c.inner}, {layer.up, up, c.inner}});
    folio_gate(layer.activation, gate, up, rows * c.inner, c.threads);
  }

  // Rotary position embedding by halves (RoFormer, arXiv 2104.09864), as transformers rounds it; x [rows, heads, dim].
  void rotate(const Angles& angles, float* x, int heads) const {
    const int half = int(angles.width / 2), most = threads(c.rows * heads * c.dim);
#pragma omp parallel for num_threads(most) if (most > 1)
    for (int64_t row = 0; row < c.rows; ++row) {
      const float *cos = angles.cos + row * angles.width, *sin = angles.sin + row * angles.width;
      float* at = x + row * heads * c.dim;
      for (int head = 0; head < heads; ++head, at += c.dim)
        for (int d = 0; d < half; ++d) {
          const float low = at[d], high = at[d + half];
          at[d] = low * cos[d] + -high * sin[d];
          at[d + half] = high * cos[d + half] + low * sin[d + half];
        }
    }
  }

  void add(float* x, const float* y, int64_t count) const {
    const int most = threads(count);
#pragma omp parallel for simd num_threads(most) if (parallel : most > 1)
    for (int64_t i = 0; i < count; ++i) x[i] += y[i];
  }

 public:
  explicit Body(const Decoder& call)
      : c(call), q_width(int64_t(call.q_heads) * call.dim), kv_width(int64_t(call.kv_heads) * call.dim) {}

  // Queries, keys and values of the rows, rotated.
  void before(const Layer& layer, float* q, float* k, float* v) const {
    static thread_local Scratch scratch;
    scratch.clear(c.rows * c.hidden, 1);
    float* const normed = scratch.take(c.rows * c.hidden);
    norm(c.x, layer.input_norm, layer.input_eps, normed, c.rows, c.hidden);
    multiply(normed, c.rows, c.hidden, {{layer.q, q, q_width}, {layer.k, k, kv_width}, {layer.v, v, kv_width}});
    if (layer.q_norm) norm(q, layer.q_norm, layer.q_eps, q, c.rows * c.q_heads, c.dim);
    if (layer.k_norm) norm(k, layer.k_norm, layer.k_eps, k, c.rows * c.kv_heads, c.dim);
    if (layer.rotary >= 0) {
      rotate(c.angles[layer.rotary], q, c.q_heads);
      rotate(c.angles[layer.rotary], k, c.kv_heads);
    }
  }

  // What the layer adds to x: of the attention's result, and of the MLP behind it.
  void after(const Layer& layer, const float* attended) const {
    static thread_local Scratch scratch;
    const int64_t most = std::min(c.rows, BLOCK_ROWS);
    scratch.clear(most * (2 * c.hidden + 2 * c.inner), 4);
    float* const normed = scratch.take(most * c.hidden);
    float* const added = scratch.take(most * c.hidden);
    float* const gate = scratch.take(most * c.inner);
    float* const up = scratch.take(most * c.inner);
    for (int64_t row = 0; row < c.rows; row += BLOCK_ROWS) {
      const int64_t rows = std::min(BLOCK_ROWS, c.rows - row);
      float* const x = c.x + row * c.hidden;
      multiply(attended + row * q_width, rows, q_width, {{layer.o, added, c.hidden}});
      if (layer.attended_norm) norm(added, layer.attended_norm, layer.attended_eps, added, rows, c.hidden);
      add(x, added, rows * c.hidden);
      norm(x, layer.mlp_norm, layer.mlp_eps, normed, rows, c.hidden);
      open_gate(layer, normed, rows, gate, up);
      multiply(up, rows, c.inner, {{layer.down, added, c.hidden}});
      if (layer.gated_norm) norm(added, layer.gated_norm, layer.gated_eps, added, rows, c.hidden);
      add(x, added, rows * c.hidden);
    }
  }
};

}  // namespace

extern "C" void folio_layer_before(const Decoder* call) {
  Body(*call).before(call->layers[*call->chosen], call->q, call->k, call->v);
}

extern "C" void folio_layer_after(const Decoder* call) {
  Body(*call).after(call->layers[*call->chosen], call->attended);
}

extern "C" void folio_decoder(const Decoder* call) {
  const Decoder& c = *call;
  const Body body(c);
  Attention attention = *c.attention;
  const int64_t q_width = int64_t(c.q_heads) * c.dim, kv_width = int64_t(c.kv_heads) * c.dim;

  static thread_local Scratch scratch;
  scratch.clear(c.rows * (2 * q_width + 4 * kv_width + c.q_heads), 7);
  float* const q = scratch.take(c.rows * q_width);
  float* const k = scratch.take(c.rows * kv_width);
  float* const v = scratch.take(c.rows * kv_width);
  float* const attended = scratch.take(c.rows * q_width);
  attention.q = q;
  attention.out = attended;
  attention.lse = scratch.take(c.rows * c.q_heads);
  attention.q_row = q_width;
  attention.k_row = attention.v_row = kv_width;
  attention.q_head = attention.k_head = attention.v_head = c.dim;

  const bool narrow = attention.page_kind == BFLOAT16;
  const int64_t size = narrow ? sizeof(uint16_t) : sizeof(float);
  const auto as_in_pages = [&](const float* rows_of, float* room) -> const void* {
    if (!narrow) return rows_of;
    auto* rounded = reinterpret_cast<uint16_t*>(room);
    for (int64_t i = 0; i < c.rows * kv_width; ++i) rounded[i] = round_bf16(rows_of[i]);
    return rounded;
  };
  float* const k_room = scratch.take(c.rows * kv_width);
  float* const v_room = scratch.take(c.rows * kv_width);
  const auto write = [&](const void* rows_of, void* pages) {
    const int64_t head = c.dim * size;
    const Write one{static_cast<const char*>(rows_of), static_cast<char*>(pages), c.slots, kv_width * size, head,
                    attention.page_stride * size, c.num_pages, c.rows, attention.kv_heads, attention.page_size, head};
    folio_write(&one);
  };

  for (int64_t i = 0; i < c.count; ++i) {
    const Layer& layer = c.layers[c.chosen[i]];
    body.before(layer, q, k, v);
    attention.k_new = as_in_pages(k, k_room);
    attention.v_new = as_in_pages(v, v_room);
    attention.k_cache = layer.k_pages;
    attention.v_cache = layer.v_pages;
    attention.scale = layer.scale;
    attention.softcap = layer.softcap;
    attention.window = layer.window;
    folio_attention(&attention);
    write(attention.k_new, layer.k_pages);
    write(attention.v_new, layer.v_pages);
    body.after(layer, attended);
  }
}
