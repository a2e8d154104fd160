// How much attention the last rows of a sequence give to each block of keys and to each block diagonal, on a CPU: what
// vertical-slash patterns choose by (MInference, arXiv 2407.02490, section 3.2). Keys are read where they lie.
//
// Every tile of TILE keys is its own: a row leaves there the maximum of its scores and three sums of exp(score - maximum).
// When all tiles are done a row's softmax is known, and each tile's sums are weighed and added to the blocks it lies in.
//
// A key at offset c of its block is at distance block·a + (r - c) from a row at offset r of its own, a blocks away: it
// lies between block diagonals a and a ± 1, in the proportion of r - c to the block. So the three sums are of all
// weights, of those of keys before r times (r - c) / block, and of those behind times (c - r) / block.
#include <algorithm>
#include <limits>
#include <vector>

#include "amx.h"
#include "calls.h"
#include "units.h"

using namespace folio;

// Mirrored by `_Call` in score.py. Strides are in elements.
struct LastRows {
  const float* q;                     // [heads, rows, depth], units; heads of one KV head are neighbours
  const int32_t* first_head;          // [sources + 1]: the heads of each KV head that is wanted
  const void* const* pages;           // [sources]: page 0 of the KV head, each [page_size, dim], of page_kind
  const uint16_t* const* scales;      // [sources]: of int8 pages, page 0 of the KV head's
  const int64_t* page_stride;         // [sources]
  const int32_t* const* block_table;  // [sources]: pages of the context in order
  const void* const* k_new;           // [sources]: keys behind the context, of `products`
  float *stats;                       // [heads, rows, 4, tiles]: maximum, and the three sums
  float *vertical, *slash;            // [heads, blocks], zero
  int64_t k_row;
  int32_t sources, heads, rows, dim, page_size, context, length, block, tiles, threads;
  int32_t depth, page_kind, products;  // depth: units of a row of q, what is behind those of dim is zero
  float scale;
};

namespace {

constexpr int TILE = 64;         // keys
constexpr int TILES_A_TASK = 8;
constexpr int VECTORS = TILE / LANES;
constexpr int GROUP_ROWS = 16;   // rows that go through AMX's tiles together
constexpr float INF = std::numeric_limits<float>::infinity();

float add_lanes(vec v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#else
  return sum_lanes(v);
#endif
}

vec hide_from(vec x, int count, int first) {  // lanes `count - first` and beyond
  ivec number;
  for (int i = 0; i < LANES; ++i) number[i] = first + i;
  return number < count ? x : splat(-INF);
}

template <class Unit>
class KeyTiles {
  static constexpr bool TILED = Unit::NUMBERS > 1 && HAS_TILES;

 public:
  explicit KeyTiles(const LastRows& call)
      : c(call), units(c.dim / Unit::NUMBERS), columns(size_t(c.depth) * TILE),
        scores(size_t(TILED ? GROUP_ROWS : MAX_ROWS) * TILE), decoded(c.page_kind == INT8 ? size_t(units) * TILE : 0),
        ahead(2 * c.block + TILE), behind(ahead.size()) {
    for (int u = 0; u < int(ahead.size()); ++u) {  // of a key at c - r = u - block
      behind[u] = float(std::max(0, c.block - u)) / float(c.block);
      ahead[u] = float(std::max(0, u - c.block)) / float(c.block);
    }
  }

  void run(int source, int tile) {
    const int key = tile * TILE;
    point(source, key);
    transpose(keys, TILE, units, columns.data(), TILE, [] {});
    const int first = c.first_head[source] * c.rows, end = c.first_head[source + 1] * c.rows;
    if constexpr (TILED)
      tile_groups(first, end, tile);
    else
      for_row_groups(end - first, [&](auto size, int r) { rows<decltype(size)::value>(first + r, tile); });
  }

 private:
  const LastRows& c;
  const int units;
  std::vector<float> columns, scores, decoded, ahead, behind;
  const float* keys[TILE];
#if defined(__AMX_BF16__)
  Tiles tiles;
#endif

  void point(int source, int key) {
    for (int i = 0; i < TILE; ++i) {
      const int at = std::min(key + i, c.length - 1);  // what is too many is hidden from every row
      keys[i] = at < c.context ? held(source, at, decoded.data() + (c.page_kind == INT8 ? i * units : 0))
                               : element<Unit>(c.k_new[source], (at - c.context) * c.k_row);
    }
  }

  const float* held(int source, int key, float* room) const {
    const int64_t row = c.block_table[source][key / c.page_size] * (c.page_stride[source] / c.dim) + key % c.page_size;
    if (c.page_kind != INT8) return element<Unit>(c.pages[source], row * c.dim);
    decode_rows<Unit>(static_cast<const int8_t*>(c.pages[source]) + row * c.dim, c.scales[source] + row, 1, c.dim, room);
    return room;
  }

#if defined(__AMX_BF16__)
  void tile_groups(int first, int end, int tile) {
    for (; first < end; first += GROUP_ROWS) {
      const int size = std::min(GROUP_ROWS, end - first);
      tiles.shape(size);
      tile_product<false>(c.q + int64_t(first) * c.depth, c.depth, c.depth, columns.data(), TILE, scores.data(), TILE, TILE);
      for (int r = 0; r < size; ++r) row(first + r, tile, scores.data() + r * TILE);
    }
  }
#else
  void tile_groups(int, int, int) {}
#endif

  // ROWS rows of [heads, rows] from number `first` on.
  template <int ROWS>
  void rows(int first, int tile) {
    multiply_wide<Unit, ROWS, false>(c.q + int64_t(first) * c.depth, c.depth, units,
                                     [&](int d) { return columns.data() + d * TILE; }, scores.data(), TILE, VECTORS);
    for (int r = 0; r < ROWS; ++r) row(first + r, tile, scores.data() + r * TILE);
  }

  void row(int number, int tile, const float* s) {
    const int key = tile * TILE, position = c.length - c.rows + number % c.rows, count = position - key + 1;
    float* out = c.stats + int64_t(number) * 4 * c.tiles + tile;
    vec x[VECTORS], top = splat(-INF);
    for (int v = 0; v < VECTORS; ++v) {
      x[v] = load(s + v * LANES) * splat(c.scale);
      if (count < TILE) x[v] = hide_from(x[v], count, v * LANES);
      top = folio::max(top, x[v]);
    }
    const float m = max_lane(top);
    out[0] = m;
    vec all{}, nearer{}, farther{};
    if (m > -INF) {
      const int u = key % c.block - position % c.block + c.block;
      for (int v = 0; v < VECTORS; ++v) {
        const vec e = exp(x[v] - splat(m));
        all += e;
        farther = fma(e, load(&behind[u + v * LANES]), farther);
        nearer = fma(e, load(&ahead[u + v * LANES]), nearer);
      }
    }
    out[c.tiles] = add_lanes(all);
    out[2 * c.tiles] = add_lanes(farther);
    out[3 * c.tiles] = add_lanes(nearer);
  }
};

// Adds a head's rows to its blocks and block diagonals.
void weigh(const LastRows& c, int head) {
  const int blocks = (c.length + c.block - 1) / c.block, tiles_a_block = c.block / TILE;
  float *vertical = c.vertical + int64_t(head) * blocks, *slash = c.slash + int64_t(head) * blocks;
  for (int i = 0; i < c.rows; ++i) {
    const float* m = c.stats + (int64_t(head) * c.rows + i) * 4 * c.tiles;
    const float *all = m + c.tiles, *farther = all + c.tiles, *nearer = farther + c.tiles;
    const float top = *std::max_element(m, m + c.tiles);
    float total = 0;
    for (int t = 0; t < c.tiles; ++t)
      if (m[t] > top - 80) total += std::exp(m[t] - top) * all[t];
    const int own = (c.length - c.rows + i) / c.block;
    for (int t = 0; t < c.tiles; ++t) {
      if (!(m[t] > top - 80)) continue;
      const float share = std::exp(m[t] - top) / (total * float(c.rows));
      const int block = t / tiles_a_block, distance = own - block;
      vertical[block] += share * all[t];
      slash[distance] += share * (all[t] - farther[t] - nearer[t]);
      if (distance + 1 < blocks) slash[distance + 1] += share * farther[t];
      if (distance > 0) slash[distance - 1] += share * nearer[t];
    }
  }
}

template <class Unit>
void score(const LastRows& c) {
  const int ranges = (c.tiles + TILES_A_TASK - 1) / TILES_A_TASK;
#pragma omp parallel num_threads(c.threads)
  {
    KeyTiles<Unit> tiles(c);
#pragma omp for schedule(dynamic, 1)
    for (int task = 0; task < ranges * c.sources; ++task) {
      const int first = task / c.sources * TILES_A_TASK, end = std::min(first + TILES_A_TASK, c.tiles);
      for (int tile = first; tile < end; ++tile) tiles.run(task % c.sources, tile);
    }
#pragma omp for schedule(dynamic, 1)
    for (int head = 0; head < c.heads; ++head) weigh(c, head);
  }
}

}  // namespace

extern "C" void folio_last_rows(const LastRows* call) {
  if (call->products == BFLOAT16)
    score<Pair>(*call);
  else
    score<Single>(*call);
}
