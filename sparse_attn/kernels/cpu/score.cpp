// How much attention the last rows of a sequence give to each block of keys and to each block diagonal, on a CPU: what
// vertical-slash patterns choose by (MInference, arXiv 2407.02490, section 3.2). Keys are read where they lie.
//
// Every tile of TILE keys is its own: a row leaves there the maximum of its scores and three sums of exp(score - maximum).
// When all tiles are done a row's softmax is known, and each tile's sums are weighed and added to the blocks it lies in.
//
// A key at offset c of its block is at distance block·a + (r - c) from a row at offset r of its own, a blocks away: it
// lies between block diagonals a and a ± 1, in the proportion of r - c to the block. So the three sums are of all
// weights, of those of keys before r times (r - c) / block, and of those behind times (c - r) / block.
//
// And plain scores: products of rows of bfloat16 with float32 results, for which torch has none.
#include <algorithm>
#include <limits>
#include <vector>

#include "calls.h"
#include "columns.h"

using namespace folio;

// Mirrored by `_Call` in score.py. Strides are in elements.
struct LastRows {
  const float* q;                     // [heads, rows, depth], units; heads of one KV head are neighbours
  const int32_t* first_head;          // [sources + 1]: the heads of each KV head that is wanted
  const void* const* pages;           // [sources]: page 0 of the KV head, each [page_size, dim], of page_kind
  const uint16_t* const* scales;      // [sources]: of int8 pages, page 0 of the KV head's
  const int64_t* page_stride;         // [sources]
  const int32_t* const* block_table;  // [sources]: pages of the context in order
  const void* const* k_new;           // [sources]: keys behind the context, of new_kind
  float *stats;                       // [heads, rows, 4, tiles]: maximum, and the three sums
  float *vertical, *slash;            // [heads, blocks], zero
  int64_t k_row;
  int32_t sources, heads, rows, dim, page_size, context, length, block, tiles, threads;
  int32_t depth;              // units of a row of q: what is behind those of dim is zero
  Kind page_kind, new_kind, products;
  float scale;
};

// Mirrored by `_Scores` in score.py.
struct Scores {
  const float* q;            // [heads, rows, depth], units, as above
  const void* const* keys;   // [heads]: each [count, dim] bfloat16, rows contiguous
  float* out;                // [heads, rows, columns]: columns are count, rounded up to whole tiles
  int32_t heads, rows, count, dim, depth, columns, threads;
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

template <class Unit>
class KeyTiles {
 public:
  explicit KeyTiles(const LastRows& call)
      : c(call), units(c.dim / Unit::NUMBERS), columns(units, c.depth), decoded(size_t(units) * TILE),
        ahead(2 * c.block + TILE), behind(ahead.size()) {
    for (int u = 0; u < int(ahead.size()); ++u) {  // of a key at c - r = u - block
      behind[u] = float(std::max(0, c.block - u)) / float(c.block);
      ahead[u] = float(std::max(0, u - c.block)) / float(c.block);
    }
  }

  void run(int source, int tile) {
    for (int i = 0; i < TILE; ++i)  // what is too many is hidden from every row
      columns.keys[i] = key(source, std::min(tile * TILE + i, c.length - 1), decoded.data() + i * units);
    columns.turn();
    const int first = c.first_head[source] * c.rows, count = c.first_head[source + 1] * c.rows - first;
    scores.resize(size_t(count) * TILE);
    columns.multiply(c.q + int64_t(first) * c.depth, count, scores.data(), TILE);
    for (int r = 0; r < count; ++r) row(first + r, tile, scores.data() + r * TILE);
  }

 private:
  const LastRows& c;
  const int units;
  Columns<Unit> columns;
  std::vector<float> decoded, ahead, behind, scores;

  // A key: where it lies, or in `room` where it is held as something else than units.
  const float* key(int source, int number, float* room) const {
    if (number >= c.context) return unit(c.new_kind, c.k_new[source], nullptr, (number - c.context) * c.k_row, room);
    const int64_t page = c.block_table[source][number / c.page_size];
    return unit(c.page_kind, c.pages[source], c.scales[source],
                page * c.page_stride[source] + int64_t(number % c.page_size) * c.dim, room);
  }

  const float* unit(Kind kind, const void* base, const uint16_t* scales, int64_t at, float* room) const {
    if (are_units<Unit>(kind, c.products == BFLOAT16)) return element<Unit>(base, at);
    unit_row<Unit>(kind, base, scales, at, c.dim, c.products == BFLOAT16, room);
    return room;
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
    score<Narrow>(*call);
  else
    score<Single>(*call);
}

extern "C" void folio_scores(const Scores* call) {
  const Scores& c = *call;
  const int tiles = c.columns / TILE, units = c.dim / Narrow::NUMBERS;
#pragma omp parallel num_threads(c.threads)
  {
    Columns<Narrow> columns(units, c.depth);
    std::vector<float> wide(size_t(units) * TILE);
#pragma omp for schedule(dynamic, 4)
    for (int task = 0; task < c.heads * tiles; ++task) {
      const int64_t head = task / tiles;
      const int key = task % tiles * TILE;
      for (int i = 0; i < TILE; ++i) {
        const int64_t at = int64_t(std::min(key + i, c.count - 1)) * c.dim;
        columns.keys[i] = element<Narrow>(c.keys[head], at);
        if (are_units<Narrow>(BFLOAT16, true)) continue;
        columns.keys[i] = wide.data() + i * units;
        unit_row<Narrow>(BFLOAT16, c.keys[head], nullptr, at, c.dim, true, wide.data() + i * units);
      }
      columns.turn();
      columns.multiply(c.q + head * c.rows * c.depth, c.rows, c.out + head * c.rows * c.columns + key, c.columns);
    }
  }
}
