// How much attention the last rows of a sequence give to each block of keys and to each block diagonal, for float32 on a
// CPU: what vertical-slash patterns choose by (MInference, arXiv 2407.02490, section 3.2). Keys are read where they lie.
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

#include "simd.h"

using namespace folio;

// Mirrored by `_Call` in cpu_score.py. Strides are in floats.
struct LastRows {
  const float* q;                     // [heads, rows, dim], times the scale; heads of one KV head are neighbours
  const int32_t* first_head;          // [sources + 1]: the heads of each KV head that is wanted
  const float* const* pages;          // [sources]: page 0 of the KV head, each [page_size, dim]
  const int64_t* page_stride;         // [sources]
  const int32_t* const* block_table;  // [sources]: pages of the context in order
  const float* const* k_new;          // [sources]: keys behind the context
  float *stats;                       // [heads, rows, 4, tiles]: maximum, and the three sums
  float *vertical, *slash;            // [heads, blocks], zero
  int64_t k_row;
  int32_t sources, heads, rows, dim, page_size, context, length, block, tiles, threads;
};

namespace {

constexpr int TILE = 64;         // keys
constexpr int TILES_A_TASK = 8;
constexpr int VECTORS = TILE / LANES;
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

class Tiles {
 public:
  explicit Tiles(const LastRows& call)
      : c(call), columns(size_t(c.dim) * TILE), scores(size_t(MAX_ROWS) * TILE), ahead(2 * c.block + TILE),
        behind(ahead.size()) {
    for (int u = 0; u < int(ahead.size()); ++u) {  // of a key at c - r = u - block
      behind[u] = float(std::max(0, c.block - u)) / float(c.block);
      ahead[u] = float(std::max(0, u - c.block)) / float(c.block);
    }
  }

  void run(int source, int tile) {
    const int key = tile * TILE;
    point(source, key);
    transpose(keys, TILE, c.dim, columns.data(), TILE, [] {});
    const int head0 = c.first_head[source], packed = (c.first_head[source + 1] - head0) * c.rows;
    for_row_groups(packed, [&](auto size, int r) { rows<decltype(size)::value>(head0 * c.rows + r, tile); });
  }

 private:
  const LastRows& c;
  std::vector<float> columns, scores, ahead, behind;
  const float* keys[TILE];

  void point(int source, int key) {
    for (int i = 0; i < TILE; ++i) {
      const int at = std::min(key + i, c.length - 1);  // what is too many is hidden from every row
      keys[i] = at < c.context
                    ? c.pages[source] + c.block_table[source][at / c.page_size] * c.page_stride[source] +
                          int64_t(at % c.page_size) * c.dim
                    : c.k_new[source] + (at - c.context) * c.k_row;
    }
  }

  // ROWS rows of [heads, rows] from number `first` on.
  template <int ROWS>
  void rows(int first, int tile) {
    multiply_wide<ROWS, false>(c.q + int64_t(first) * c.dim, c.dim, c.dim,
                               [&](int d) { return columns.data() + d * TILE; }, scores.data(), TILE, VECTORS);
    for (int r = 0; r < ROWS; ++r) row(first + r, tile, scores.data() + r * TILE);
  }

  void row(int number, int tile, const float* s) {
    const int key = tile * TILE, position = c.length - c.rows + number % c.rows, count = position - key + 1;
    float* out = c.stats + int64_t(number) * 4 * c.tiles + tile;
    vec x[VECTORS], top = splat(-INF);
    for (int v = 0; v < VECTORS; ++v) {
      x[v] = load(s + v * LANES);
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

}  // namespace

extern "C" void folio_last_rows(const LastRows* call) {
  const LastRows& c = *call;
  const int ranges = (c.tiles + TILES_A_TASK - 1) / TILES_A_TASK;
#pragma omp parallel num_threads(c.threads)
  {
    Tiles tiles(c);
#pragma omp for schedule(dynamic, 1)
    for (int task = 0; task < ranges * c.sources; ++task) {
      const int first = task / c.sources * TILES_A_TASK, end = std::min(first + TILES_A_TASK, c.tiles);
      for (int tile = first; tile < end; ++tile) tiles.run(task % c.sources, tile);
    }
#pragma omp for schedule(dynamic, 1)
    for (int head = 0; head < c.heads; ++head) weigh(c, head);
  }
}
