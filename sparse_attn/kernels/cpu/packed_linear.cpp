// y = x · wᵀ + bias with w as it is stored, packed in panels (blocks.h), on a CPU.
//
// Two panels are a task. For few rows a tile of each is unpacked into the first cache and multiplied while the next is
// unpacked, so that w is read from memory once, at its stored size; for many rows panels are unpacked whole, once for a
// block of rows. The products are those of products.h: a row's bits do not depend on how many rows run together.
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

// Columns of two panels from n0 on, for rows row0 … row0 + rows - 1.
template <int KIND, class Product>
void task(const PackedLinear& c, const Input<typename Product::Value>& x, int64_t row0, int64_t rows, int64_t n0,
          Product& product, Kept<typename Product::Value>& kept) {
  using Value = typename Product::Value;
  using L = LayoutOf<KIND>;
  constexpr bool as_is = KIND == BF16 && Product::reads_bfloat16;
  const int64_t first = n0 / TILE_ROWS, last = (c.outer - 1) / TILE_ROWS, steps = x.steps;
  const int64_t size = L::panel_bytes(steps);
  const uint8_t* const panel[] = {c.w + first * size, c.w + std::min(first + 1, last) * size};
  const Value* from = x.values + row0 * x.width;
  if (rows <= BLOCK) {
    alignas(64) float sums[BLOCK][WIDTH];
    product.begin(int(rows));
    if constexpr (as_is) {
      product.add(from, x.width, reinterpret_cast<const Value*>(panel[0]), reinterpret_cast<const Value*>(panel[1]), int(steps));
    } else {
      Value* const room = kept.take(4 * Product::values);  // for a step's tiles and for the next one's
      const auto tile = [&](int64_t step, int i) { return room + (2 * (step & 1) + i) * Product::values; };
      const auto make = [&](int64_t step) {
        for (int i = 0; i < 2; ++i) unpack<KIND, Product>(panel[i], size, size, step, 1, tile(step, i));  // side by side
      };
      make(0);
      for (int64_t step = 0; step < steps; ++step) {
        if (step + 1 < steps) make(step + 1);  // before: a tile that was just stored is long in coming
        product.add(from + step * Product::step, x.width, tile(step, 0), tile(step, 1), 1);
      }
    }
    product.end(sums);
    return deliver(c, row0, int(rows), n0, sums);
  }
  alignas(64) static thread_local float all[TASK_ROWS / BLOCK][BLOCK][WIDTH];
  for (int64_t k = 0; k < steps; k += Product::run) {
    const int64_t count = std::min<int64_t>(Product::run, steps - k);
    const Value* w[2];
    for (int i = 0; i < 2; ++i) {
      if constexpr (as_is) {
        w[i] = reinterpret_cast<const Value*>(panel[i]) + k * Product::values;
      } else {
        Value* const room = kept.take(2 * count * Product::values) + i * count * Product::values;
        unpack<KIND, Product>(panel[i], size, size, k, count, room);
        w[i] = room;
      }
    }
    for (int64_t r = 0; r < rows; r += BLOCK) {
      const int height = int(std::min<int64_t>(BLOCK, rows - r));
      float(*const sums)[WIDTH] = all[r / BLOCK];
      if (k == 0) product.begin(height);
      if constexpr (Product::run < INT64_MAX) {
        if (k) product.resume(height, sums);
      }
      product.add(from + r * x.width + k * Product::step, x.width, w[0], w[1], int(count));
      product.end(sums);
      if (k + count == steps) deliver(c, row0 + r, height, n0, sums);
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

template <class Product>
void run(const PackedLinear* calls, int32_t count) {
  using Value = typename Product::Value;
  const int64_t rows = calls->rows, height = rows <= TASK_ROWS ? std::max<int64_t>(rows, 1) : TASK_ROWS;
  const int64_t blocks = (rows + height - 1) / height;
  std::vector<int64_t> first(count + 1);  // task of each product
  std::vector<Input<Value>> inputs(count);
  int64_t products = 0, room = 0;
  const auto same = [&](int i) { return i && calls[i].x == calls[i - 1].x && calls[i].inner == calls[i - 1].inner; };
  for (int i = 0; i < count; ++i) {
    const PackedLinear& c = calls[i];
    first[i + 1] = first[i] + (c.outer + WIDTH - 1) / WIDTH * blocks;
    products += rows * c.outer * c.inner;
    const int64_t steps = (c.inner + TILE_COLUMNS - 1) / TILE_COLUMNS;
    inputs[i] = {nullptr, (steps | 1) * TILE_COLUMNS, steps};  // an odd number of tiles: rows meet in no set of a cache
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
  const bool few = rows <= TILE_ROWS;  // to wait for one another would take the threads longer than that work
  if (few) convert();
#pragma omp parallel num_threads(threads)
  {
    const FlushDenormals flush;
    if (!few) convert();
    static thread_local Kept<Value> kept;
    Product product;
#pragma omp for schedule(dynamic, share) nowait
    for (int64_t at = 0; at < first[count]; ++at) {
      const int64_t own = std::upper_bound(first.begin(), first.end(), at) - first.begin() - 1;
      const PackedLinear& c = calls[own];
      const int64_t across = (c.outer + WIDTH - 1) / WIDTH, number = at - first[own];
      const int64_t row0 = number / across * height, n0 = number % across * WIDTH;
      for_kind(c.kind, [&](auto known) {
        task<decltype(known)::value, Product>(c, inputs[own], row0, std::min(height, rows - row0), n0, product, kept);
      });
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
    case Products::BFLOAT16: run<Rounded>(calls, alike); break;
    case Products::FLOAT32: run<Float32>(calls, alike); break;
  }
  if (alike < count) folio_packed_linear(rest, count - alike);
}
