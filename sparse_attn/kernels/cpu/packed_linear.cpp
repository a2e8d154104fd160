// y = x · wᵀ + bias with w as it is stored, packed in panels (blocks.h), on a CPU.
//
// Two panels are a task: of one w, or a gate's and what it opens. For few rows a tile of each is unpacked into the first
// cache and multiplied while the next is unpacked, so that w is read from memory once, at its stored size; for many rows
// they are unpacked in runs along k that stay in the first cache, once for a block of rows, whose sums are put down from
// run to run. The products are those of products.h: a row's bits do not depend on how many rows run together.
#include "gate.h"
#include "linear_tasks.h"

using namespace folio;

namespace {

// x as the products read it (`place`): rows of whole tiles, zeros beyond the last column and up to a whole tile of rows.
template <class Value>
struct Input {
  Value* values;
  int64_t width, steps;
};

// Tiles first … first + count - 1 of a panel of `size` bytes. What lies AHEAD is brought in meanwhile: a panel goes on in
// the one that lies `gap` bytes behind it, across pages, where the processor's own guesses end.
template <int KIND, class Product>
void unpack(const uint8_t* panel, int64_t size, int64_t gap, int64_t first, int64_t count, typename Product::Value* out) {
  using L = LayoutOf<KIND>;
  for (int64_t step = first; step < first + count; ++step, out += Product::values) {
    const uint8_t* head = panel + step / L::span * (L::head + L::span * L::tile);
    const int64_t ahead = L::offset(step) + AHEAD;
    const uint8_t* soon = panel + ahead + (ahead < size ? 0 : gap);
    for (int line = 0; line < L::tile + L::head / L::span; line += 64) __builtin_prefetch(soon + line, 0, 3);
    unpack_tile<KIND>(head, panel + L::offset(step), int(step % L::span),
                      [&](int j, const wide& low, const wide& high) { Product::put(out, j, low, high); });
  }
}

// 32 columns of a result, from n0 on: two panels side by side.
struct Columns {
  static constexpr int width = WIDTH;
  static constexpr bool in_parts = true;  // sums may be put down in the place of the results
  const PackedLinear& c;
  const int64_t n0;

  Columns(const PackedLinear* call, int64_t n0, Activation) : c(*call), n0(n0) {}

  const uint8_t* panel(int i, int64_t size) const {
    return c.w + std::min(n0 / TILE_ROWS + i, (c.outer - 1) / TILE_ROWS) * size;
  }
  static int64_t gap(int64_t size) { return size; }  // from a panel's end to where its reader goes on
  void deliver(int64_t row0, int rows, float (*sums)[WIDTH]) const { folio::deliver(c, row0, rows, n0, sums); }

  void put_down(int64_t row0, int rows, const float (*sums)[WIDTH]) const {
    for (int r = 0; r < rows; ++r) std::memcpy(at(row0 + r), sums[r], bytes());
  }
  void take_up(int64_t row0, int rows, float (*sums)[WIDTH]) const {
    for (int r = 0; r < rows; ++r) std::memcpy(sums[r], at(row0 + r), bytes());
  }

 private:
  float* at(int64_t row) const { return c.y + row * c.outer + n0; }
  size_t bytes() const { return std::min<int64_t>(WIDTH, c.outer - n0) * sizeof(float); }
};

// 16 columns of a gate, which is the call, and of what it opens, which is the next one, in whose place the result goes.
struct Gated {
  static constexpr int width = TILE_ROWS;
  static constexpr bool in_parts = false;
  const PackedLinear &c, &up;
  const int64_t n0;
  const Activation activation;

  Gated(const PackedLinear* calls, int64_t n0, Activation activation)
      : c(calls[0]), up(calls[1]), n0(n0), activation(activation) {}

  const uint8_t* panel(int i, int64_t size) const { return (i ? up : c).w + n0 / TILE_ROWS * size; }
  static int64_t gap(int64_t) { return 0; }
  void deliver(int64_t row0, int rows, float (*sums)[WIDTH]) const {
    const int columns = int(std::min<int64_t>(TILE_ROWS, c.outer - n0));
    for (int r = 0; r < rows; ++r) {
      float *gate = sums[r], *opened = gate + TILE_ROWS;
      finish(c, n0, columns, gate);
      finish(up, n0, columns, opened);
      for (int n = 0; n < TILE_ROWS; n += LANES) store(opened + n, gated(activation, load(gate + n), load(opened + n)));
      std::memcpy(up.y + (row0 + r) * up.outer + n0, opened, columns * sizeof(float));
    }
  }
};

// What `out` has two panels for, for rows row0 … row0 + rows - 1; of more than BLOCK rows tiles k0 … k1 - 1 alone, whose
// sums go on from those that were put down.
template <int KIND, class Product, class Out>
void task(const Out& out, const Input<typename Product::Value>& x, int64_t row0, int64_t rows, int64_t k0, int64_t k1,
          Product& product, Kept<typename Product::Value>& kept) {
  using Value = typename Product::Value;
  using L = LayoutOf<KIND>;
  constexpr bool as_is = KIND == BF16 && Product::reads_bfloat16;
  const int64_t steps = x.steps, size = L::panel_bytes(steps), gap = Out::gap(size);
  const uint8_t* const panel[] = {out.panel(0, size), out.panel(1, size)};
  const Value* from = x.values + row0 * x.width;
  if (rows <= BLOCK) {
    if (k0) return;  // the whole was made at once
    alignas(64) float sums[BLOCK][WIDTH];
    product.begin(int(rows));
    if constexpr (as_is) {
      const auto w = [&](int i) { return reinterpret_cast<const Value*>(panel[i]); };
      product.add(from, x.width, w(0), w(1), int(steps));
    } else {
      Value* const room = kept.take(4 * Product::values);  // for a step's tiles and for the next one's
      const auto tile = [&](int64_t step, int i) { return room + (2 * (step & 1) + i) * Product::values; };
      const auto make = [&](int64_t step) {
        for (int i = 0; i < 2; ++i) unpack<KIND, Product>(panel[i], size, gap, step, 1, tile(step, i));
      };
      make(0);
      for (int64_t step = 0; step < steps; ++step) {
        if (step + 1 < steps) make(step + 1);  // before: a tile that was just stored is long in coming
        product.add(from + step * Product::step, x.width, tile(step, 0), tile(step, 1), 1);
      }
    }
    product.end(sums);
    return out.deliver(row0, int(rows), sums);
  }
  alignas(64) static thread_local float all[TASK_ROWS / BLOCK][BLOCK][WIDTH];
  for (int64_t k = k0; k < k1; k += Product::run) {
    const int64_t count = std::min<int64_t>(Product::run, k1 - k);
    const Value* w[2];
    for (int i = 0; i < 2; ++i) {
      if constexpr (as_is) {
        w[i] = reinterpret_cast<const Value*>(panel[i]) + k * Product::values;
      } else {
        Value* const room = kept.take(2 * count * Product::values) + i * count * Product::values;
        unpack<KIND, Product>(panel[i], size, gap, k, count, room);
        w[i] = room;
      }
    }
    for (int64_t r = 0; r < rows; r += BLOCK) {
      const int height = int(std::min<int64_t>(BLOCK, rows - r));
      float(*const sums)[WIDTH] = all[r / BLOCK];
      if (k == 0) product.begin(height);
      if constexpr (Out::in_parts) {
        if (k && k == k0) out.take_up(row0 + r, height, sums);
      }
      if constexpr (Product::run < INT64_MAX) {
        if (k) product.resume(height, sums);
      }
      product.add(from + r * x.width + k * Product::step, x.width, w[0], w[1], int(count));
      product.end(sums);
      if (k + count == steps) out.deliver(row0 + r, height, sums);
      if constexpr (Out::in_parts) {
        if (k + count == k1 && k1 < steps) out.put_down(row0 + r, height, sums);
      }
    }
  }
}

// Rows of tiles that are not whole are filled up, but for one alone, which is multiplied as it is.
int64_t padded_rows(int64_t rows) { return rows <= TILE_ROWS ? rows : (rows + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS; }

template <class Product>
void convert_rows(const PackedLinear& c, const Input<typename Product::Value>& x) {
#pragma omp for schedule(static)
  for (int64_t row = 0; row < padded_rows(c.rows); ++row)
    for (int64_t k = 0; k < c.inner; k += TILE_COLUMNS) {
      const int64_t count = row < c.rows ? std::min<int64_t>(TILE_COLUMNS, c.inner - k) : 0;
      Product::convert(c.x + row * c.x_row + k, int(count), x.values + Product::place(row, k, x.width));
    }
}

// A call for each of `count` results that `Out` describes; the second of a gate's two has the same x and kind.
template <class Product, class Out>
void run(const PackedLinear* calls, int32_t count, Activation activation = {}) {
  using Value = typename Product::Value;
  const int64_t rows = calls->rows, height = rows <= TASK_ROWS ? std::max<int64_t>(rows, 1) : TASK_ROWS;
  const int64_t blocks = (rows + height - 1) / height;
  std::vector<int64_t> first(count + 1);  // task of each product
  std::vector<Input<Value>> inputs(count);
  int64_t products = 0, room = 0, longest = 0;
  const auto same = [&](int i) { return i && calls[i].x == calls[i - 1].x && calls[i].inner == calls[i - 1].inner; };
  for (int i = 0; i < count; ++i) {
    const PackedLinear& c = calls[i];
    first[i + 1] = first[i] + (c.outer + Out::width - 1) / Out::width * blocks;
    products += rows * c.outer * c.inner * (WIDTH / Out::width);
    const int64_t steps = (c.inner + TILE_COLUMNS - 1) / TILE_COLUMNS;
    inputs[i] = {nullptr, (steps | 1) * TILE_COLUMNS, steps};  // an odd number of tiles: rows meet in no set of a cache
    longest = std::max(longest, steps);
    if (!same(i)) room += (rows + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS * inputs[i].width;
  }
  static thread_local Kept<Value> converted;
  Value* next = converted.take(room);
  for (int i = 0; i < count; ++i) {
    inputs[i].values = same(i) ? inputs[i - 1].values : next;
    if (!same(i)) next += (rows + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS * inputs[i].width;
  }
  const int threads = int(std::clamp<int64_t>(products / THREAD_PRODUCTS, 1, calls->threads));
  const int64_t share = std::max<int64_t>(1, first[count] / (threads * 8));  // tasks that lie beside one another
  const auto convert = [&] {
    for (int i = 0; i < count; ++i)
      if (!same(i)) convert_rows<Product>(calls[i], inputs[i]);
  };
  // What many rows have of x is read for every task: so much of it at a time as fits in a core's second cache.
  const int64_t span = Out::in_parts && Product::run < INT64_MAX && rows > BLOCK ? SPAN : longest;
  const bool few = rows <= TILE_ROWS;  // to wait for one another would take the threads longer than that work
  if (few) convert();
#pragma omp parallel num_threads(threads)
  {
    const FlushDenormals flush;
    if (!few) convert();
    static thread_local Kept<Value> kept;
    Product product;
    for (int64_t k = 0; k < longest; k += span) {
#pragma omp for schedule(dynamic, share) nowait
      for (int64_t at = 0; at < first[count]; ++at) {
        const int64_t own = std::upper_bound(first.begin(), first.end(), at) - first.begin() - 1;
        const PackedLinear& c = calls[own];
        const int64_t across = (c.outer + Out::width - 1) / Out::width, number = at - first[own];
        const int64_t row0 = number / across * height, end = std::min(k + span, inputs[own].steps);
        const Out out(&c, number % across * Out::width, activation);
        for_kind(c.kind, [&](auto known) {
          task<decltype(known)::value>(out, inputs[own], row0, std::min(height, rows - row0), k, end, product, kept);
        });
      }
      if (k + span < longest) {
#pragma omp barrier
      }
    }
#if defined(__x86_64__)
    _mm_sfence();  // results that went past the caches
#endif
  }
}

}  // namespace

extern "C" void folio_packed_linear(const PackedLinear* calls, int32_t count) {
  if (calls->rows == 0) return;
  const auto rest = std::find_if(calls, calls + count, [&](const PackedLinear& c) { return c.products != calls->products; });
  const int32_t alike = int32_t(rest - calls);
  switch (calls->products) {
    case Products::INT8: run_int8(calls, alike); break;
    case Products::BFLOAT16: run<Rounded, Columns>(calls, alike); break;
    case Products::FLOAT32: run<Float32, Columns>(calls, alike); break;
  }
  if (alike < count) folio_packed_linear(rest, count - alike);
}

// Where both are of one kind and a row's numbers are few enough to be gone through at once.
extern "C" bool folio_packed_gated(const PackedLinear* both, Activation activation) {
  const PackedLinear &gate = both[0], &up = both[1];
  const bool alike = gate.kind == up.kind && gate.products == up.products && gate.x == up.x;
  if (!alike || gate.products == Products::INT8 || gate.inner > SPAN * TILE_COLUMNS) return false;
  if (gate.rows == 0) return true;
  gate.products == Products::BFLOAT16 ? run<Rounded, Gated>(both, 1, activation) : run<Float32, Gated>(both, 1, activation);
  return true;
}
