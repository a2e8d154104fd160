// Attention over pages and new rows on a CPU, by products of float32 or of bfloat16.
//
// The keys of a row are numbered 0, 1, 2, …: first its context in pages, then the new rows it sees, in order; for a
// tree node these are its ancestors and itself. Keys are taken in tiles of TILE and chunks of CHUNK by that number.
// Inside a chunk softmax runs online (FlashAttention-2, arXiv 2307.08691); chunks are joined in order
// (Flash-Decoding). A row's bits therefore depend on its query and its keys alone: not on the rows, sequences or
// threads beside it, on whether a key lies in a page or is new, on whether the row is a node of a tree, nor on how
// a prompt was cut into prefill chunks.
//
// All query heads of a KV head, for all rows of a block, go over a tile together (GQA packing): K and V are read from
// memory once. K is transposed in cache, so that scores and values are the same product: broadcast × rows of vectors.
//
// Products of bfloat16 take two neighbours along the sum at once: of a query or key two channels, of weights and values
// two keys, which lie in the place of one float (`Pair`). Queries, and the weights of keys after softmax, are rounded
// to bfloat16 for them; scores, softmax and all sums are of float32. Where there are tiles (AMX), every product goes
// through them, a single row's too, for their order of summation is another one. A processor that has no products of
// bfloat16 widens what it reads, a tile at a time, and multiplies floats.
//
// Where tiles may be skipped (`Skip` in operands.py), a row leaves out one whose largest score lies too far below those
// before it, in the chunk or in the first tile. What no row of a group weighs is not multiplied, and the values of what
// no group weighs are not read.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "amx.h"
#include "calls.h"
#include "units.h"

using namespace folio;

namespace {

constexpr int TILE = 64;          // keys
constexpr int CHUNK = 16 * TILE;  // keys joined before they meet the next chunk; never depends on the load
constexpr int SPLIT_ROWS = 64;    // up to so many new rows, chunks of a sequence are shared out to threads
constexpr int THREAD_SCORES = 8192;  // least work for one more thread
constexpr int BLOCK_ROWS = 256;   // rows × query heads that go over the keys together, about; of pairs twice as many
constexpr int GROUP_ROWS = 16;    // rows that go through AMX's tiles together
constexpr int ZIP_PAUSES = 8;      // for prefetches, while values are paired
constexpr float INF = std::numeric_limits<float>::infinity();

// Rows row0 … row1-1 of a sequence × query heads head0 … head0+heads-1, all of one KV head, over chunks
// chunk0 … chunk1-1; `partial` is where the chunks' states go, or null where they are joined at once.
struct Task {
  int sequence, row0, row1, head0, heads, chunk0, chunk1;
  float* partial;
};

constexpr int LINE = 64;  // bytes of a cache line: a vector that lies across two costs two accesses
struct alignas(LINE) Line { float floats[LINE / sizeof(float)]; };

// Softmax state of a set of rows: running maximum, sum by lanes, weighted values.
struct State {
  float *m, *l, *o;
  int width;  // floats a row of o
  void clear(int rows) {
    std::fill(m, m + rows, -INF);
    std::fill(l, l + rows * LANES, 0.0f);
    std::fill(o, o + rows * width, 0.0f);
  }
};

// Prefetches the keys, then the values of the next tile, line by line, from the loops over this one: from all of them,
// for where none are asked for the memory rests.
class Fetch {
  const char* sides[2] = {};
  int side = 2, next = 0, end = 0, row = 0, part = 0, every = 1;  // next and end in bytes, row and part in lines
  int last = 2;  // sides that are fetched

  void lines(int count) {
    while (count > 0 && side < last) {
      const char* const first = sides[side];
      const int stop = std::min(end, next + count * LINE);
      count -= (stop - next + LINE - 1) / LINE;
      for (int at = next; at < stop; at += LINE) prefetch(first + at);
      next = stop;
      if (next == end) next = 0, ++side;
    }
  }

 public:
  // The next tile's rows, of so many bytes. `pause` will be called `pauses` times meanwhile, and `step` as often as two
  // loops over the units of each of `groups` groups of rows have it.
  void begin(const char* keys, const char* values, int bytes, int units, int pauses, int groups, bool keys_alone) {
    sides[0] = keys, sides[1] = values, side = next = 0, end = bytes * TILE, last = keys_alone ? 1 : 2;
    row = (bytes + LINE - 1) / LINE;
    const int calls = 2 * groups * units * (TILE / LANES / MAX_VECTORS);
    for (every = 2; calls / every > 2 * TILE;) every *= 2;
    part = pauses ? ((2 * TILE - calls / every) * row + pauses - 1) / pauses : 0;
  }
  void stop() { side = 2; }
  void pause() { lines(part); }
  void step(int i) {
    if (!(i & (every - 1))) lines(row);
  }
};

// Joins a chunk of one row, finished, to those before it: m, l and o in `width + 2` floats.
void join(float* total, float part_m, float part_l, const float* part, int width) {
  if (part_m == -INF) return;
  if (total[0] == -INF) {
    total[0] = part_m;
    total[1] = part_l;
    std::copy(part, part + width, total + 2);
    return;
  }
  const float m = std::max(total[0], part_m);
  const float a = exp(splat(total[0] - m))[0], b = exp(splat(part_m - m))[0];
  total[0] = m;
  total[1] = std::fma(b, part_l, a * total[1]);
  for (int d = 0; d < width; d += LANES)
    store(total + 2 + d, fma(splat(b), load(part + d), splat(a) * load(total + 2 + d)));
}

// Most keys a row of the sequence can have.
int keys_of(const Attention& c, int sequence) {
  return c.context_lens[sequence] + (c.k_new ? c.cu_rows[sequence + 1] - c.cu_rows[sequence] : 0);
}

// `Unit` is what products are of. Rows of queries, keys and weights are counted in units, each as large as a float.
template <class Unit>
class Worker {
  static constexpr bool PAIRS = Unit::NUMBERS > 1, TILED = PAIRS && HAS_TILES;
  static constexpr int KEYS_STEP = PAIRS ? 32 : LANES;  // keys of a tile are filled up to a multiple of it
  static constexpr int WEIGHTS_ROW = TILE / Unit::NUMBERS;

 public:
  explicit Worker(const Attention& call)
      : c(call), width(round_up(c.dim, LANES)), units(c.dim / Unit::NUMBERS),
        depth(TILED ? round_up(units, 16) : units), padded(c.dim % LANES != 0), rounded(c.products == BFLOAT16) {}

  void run(const Task& task) {
    begin(task);
    const int context = c.context_lens[t.sequence];
    const bool tree = mask != nullptr;
    if (c.skip_counts && t.chunk0 > 0 && (!tree || context >= TILE)) look_at_first_tile();
    // Keys that all rows number alike: all of them, but for a tree only the whole tiles of the context.
    const int shared_keys = tree ? context / TILE * TILE : context + (c.k_new ? t.row1 : 0);
    for (int chunk = t.chunk0; chunk < t.chunk1; ++chunk) {
      const int first = chunk * CHUNK, end = std::min(first + CHUNK, shared_keys);
      if (!tree && !t.partial && next_tile(first, end) >= end) continue;  // would join nothing
      state.clear(rows);
      for (int key = next_tile(first, end); key < end; key = next_tile(key + TILE, end)) {
        first_tile = key == 0;
        shared_tile(key, std::min(TILE, shared_keys - key));
      }
      first_tile = false;
      if (tree)
        for (int i = t.row0; i < t.row1; ++i) path_tiles(i, std::max(first, shared_keys), first + CHUNK);
      finish_chunk(chunk);
    }
    if (!t.partial) write();
    if (c.skip_counts) {
      __atomic_fetch_add(c.skip_counts, looked_at, __ATOMIC_RELAXED);
      __atomic_fetch_add(c.skip_counts + 1, left_out, __ATOMIC_RELAXED);
      looked_at = left_out = 0;
    }
  }

 private:
  const Attention& c;
  const int width;  // floats of a row of results
  const int units;  // of a query or key
  const int depth;  // units of it that are multiplied: some behind may be zero
  const bool padded;
  const bool rounded;      // to bfloat16: queries, keys and values
  bool one_group = false;  // of AMX's tiles: all rows of the task together
#if defined(__AMX_BF16__)
  Tiles tiles;
#endif
  Task t{};
  const uint8_t* mask = nullptr;
  int row_base = 0, rows = 0, kv_head = 0, new_rows = 0;
  State state{};
  float *query = nullptr, *total = nullptr, *columns = nullptr, *scores = nullptr;
  float* query_columns = nullptr;              // a single group's queries, transposed
  float* weights = nullptr;                    // of the rows of `scores`; in their place where they are floats
  float* copies = nullptr;                     // a tile of values, padded or in pairs of keys
  float *k_wide = nullptr, *v_wide = nullptr;  // tiles of keys and values that are held in another type
  float* nothing = nullptr;                    // the values of keys that fill a tile up
  const float *k_rows[TILE], *v_rows[TILE];
  Fetch fetch;
  std::vector<int> low, high;  // of each row: the keys low <= number < high are visible
  int highest_low = 0, lowest_high = 0;
  std::vector<float> margin, floors;  // of each packed row, where tiles may be skipped: Skip::margins, the first tile's top
  bool first_tile = false, looking = false, values_ready = false;
  int64_t looked_at = 0, left_out = 0;  // tiles of rows
  std::vector<uint64_t> seen;  // of each packed row: which keys of the tile at hand it sees
  std::vector<int> path, cursor, query_block;
  std::vector<uint8_t> tile_visited;  // of each tile of keys: does any query block of the task visit it

  void begin(const Task& task) {
    t = task;
    row_base = c.cu_rows[t.sequence];
    new_rows = c.cu_rows[t.sequence + 1] - row_base;
    rows = (t.row1 - t.row0) * t.heads;
    kv_head = t.head0 / (c.q_heads / c.kv_heads);
    mask = c.tree_masks && c.k_new ? c.tree_masks[t.sequence] : nullptr;
    allocate();
    for (int r = 0; r < rows; ++r) {
      const int i = t.row0 + r / t.heads;
      pack_query((row_base + i) * c.q_row + (t.head0 + r % t.heads) * c.q_head, query + r * depth);
    }
    one_group = TILED && rows <= GROUP_ROWS && depth == units;
    if (one_group) {
      const float* lines[GROUP_ROWS];
      for (int r = 0; r < GROUP_ROWS; ++r) lines[r] = query + r * depth;
      transpose(lines, GROUP_ROWS, depth, query_columns, GROUP_ROWS, [] {});
    }
    for (int r = 0; r < rows; ++r) total[r * (width + 2)] = -INF;
    const int context = c.context_lens[t.sequence];
    low.assign(t.row1 - t.row0, 0);
    high.assign(t.row1 - t.row0, context);
    for (int i = t.row0; i < t.row1; ++i) {
      int self = context + i;
      if (mask) self = context + int(std::count(mask + i * new_rows, mask + (i + 1) * new_rows, 1)) - 1;
      if (c.k_new) high[i - t.row0] = self + 1;
      const int64_t position = c.positions ? c.positions[row_base + i] : self;
      if (c.window > 0) low[i - t.row0] = int(std::max<int64_t>(0, position - c.window + 1));
    }
    highest_low = *std::max_element(low.begin(), low.end());
    lowest_high = *std::min_element(high.begin(), high.end());
    seen.resize(rows);
    if (c.index_counts) find_query_blocks();
    if (c.skip_counts) {
      floors.assign(rows, -INF);
      margin.resize(rows);
      for (int r = 0; r < rows; ++r) {
        const int keys = high[r / t.heads];
        const double least = std::min(double(c.skip_share) / std::max(keys, 1), double(c.skip_most));
        margin[r] = keys > c.skip_gate ? float(-std::log(least)) : INF;
      }
    }
  }

  // What the rows of a later chunk compare with: their largest score in the first tile.
  void look_at_first_tile() {
    const auto kept = cursor;
    cursor.assign(cursor.size(), 0);
    state.clear(rows);
    first_tile = looking = true;
    shared_tile(0, TILE);
    first_tile = looking = false;
    looked_at = left_out = 0;  // they are another task's
    cursor = kept;
  }

  void allocate() {
    static thread_local std::vector<Line> memory;
    const size_t held = TILED ? round_up(rows, GROUP_ROWS) : rows;  // a group of rows is multiplied whole
    const size_t group = TILED ? GROUP_ROWS : MAX_ROWS, tile = size_t(TILE) * width;
    const auto lines = [](size_t n) { return (n * sizeof(float) + LINE - 1) / LINE; };
    const auto lay_out = [&](auto take) {
      columns = take(size_t(depth) * TILE);
      copies = take(tile);
      k_wide = take(tile);
      v_wide = take(tile);
      nothing = take(width);
      scores = take(group * TILE);
      weights = PAIRS ? take(group * WEIGHTS_ROW) : scores;
      state.width = width;
      state.o = take(held * width);
      state.l = take(held * LANES);
      query = take(held * depth);
      query_columns = take(TILED ? size_t(depth) * GROUP_ROWS : 0);
      total = take(rows * size_t(width + 2));
      state.m = take(rows);
    };
    size_t need = 0;
    lay_out([&](size_t n) { need += lines(n); return static_cast<float*>(nullptr); });
    if (memory.size() < need) memory.resize(need);
    Line* at = memory.data();
    lay_out([&](size_t n) { float* p = at->floats; at += lines(n); return p; });
    if (!PAIRS) return;
    std::fill(nothing, nothing + width, 0.0f);
    std::fill(columns + units * TILE, columns + depth * TILE, 0.0f);
    std::fill(query, query + held * depth, 0.0f);
    std::fill(weights, weights + group * WEIGHTS_ROW, 0.0f);
    std::fill(state.o + size_t(rows) * width, state.o + held * width, 0.0f);
  }

  // The query at element `at`: times the scale where it is of floats, for pairs of its own value.
  void pack_query(int64_t at, float* out) const {
    unit_row<Unit>(c.q_kind, c.q, nullptr, at, c.dim, rounded, out);
    if (!PAIRS)
      for (int d = 0; d < c.dim; ++d) out[d] *= c.scale;
  }

  // --- which keys ---------------------------------------------------------------------------------

  void find_query_blocks() {
    query_block.resize(t.row1 - t.row0);
    int block = c.index_first[t.sequence];
    for (int i = t.row0; i < t.row1; ++i) {
      while (c.index_cu_rows[block + 1] <= row_base + i) ++block;
      query_block[i - t.row0] = block;
    }
    cursor.assign(query_block.empty() ? 0 : query_block.back() - query_block.front() + 1, 0);
    const int first = t.chunk0 * CHUNK + c.index_k_offset[t.sequence];
    for (size_t b = 0; b < cursor.size(); ++b) {
      const int32_t* ids = block_ids(query_block.front() + int(b));
      const int count = block_count(query_block.front() + int(b));
      cursor[b] = int(std::lower_bound(ids, ids + count, first / c.index_block_k) - ids);
    }
    tile_visited.assign(keys_of(c, t.sequence) / TILE + 1, 0);
    for (size_t b = 0; b < cursor.size(); ++b) {
      const int32_t* ids = block_ids(query_block.front() + int(b));
      const int count = block_count(query_block.front() + int(b));
      for (int i = cursor[b]; i < count; ++i) {
        const int64_t key = int64_t(ids[i]) * c.index_block_k - c.index_k_offset[t.sequence];
        const int64_t from = std::max<int64_t>(0, key) / TILE, to = (key + c.index_block_k - 1) / TILE;
        for (int64_t tile = from; tile <= to && tile < int64_t(tile_visited.size()); ++tile) tile_visited[tile] = 1;
      }
    }
  }
  // The first tile from `key` on that any row visits; `end` or beyond where there is none.
  int next_tile(int key, int end) const {
    if (c.index_counts)
      while (key < end && !tile_visited[key / TILE]) key += TILE;
    return key;
  }
  int64_t block_row(int block) const {
    const int head = c.index_heads == c.q_heads ? t.head0 : kv_head;
    return head * c.index_blocks + block;
  }
  const int32_t* block_ids(int block) const { return c.index_ids + block_row(block) * c.index_width; }
  int block_count(int block) const { return c.index_counts[block_row(block)]; }

  // Which of the keys key … key+TILE-1 lie in blocks that the query block visits. Tiles must come in ascending order.
  uint64_t visited(int block, int key) {
    const int32_t* ids = block_ids(block);
    const int count = block_count(block), size = c.index_block_k;
    const int64_t start = int64_t(key) + c.index_k_offset[t.sequence];
    int& at = cursor[block - query_block.front()];
    while (at < count && int64_t(ids[at] + 1) * size <= start) ++at;
    uint64_t bits = 0;
    for (int i = at; i < count && int64_t(ids[i]) * size < start + TILE; ++i) {
      const int from = int(std::max<int64_t>(0, int64_t(ids[i]) * size - start));
      const int to = int(std::min<int64_t>(TILE, int64_t(ids[i] + 1) * size - start));
      bits |= (to - from == TILE ? ~0ull : ((1ull << (to - from)) - 1)) << from;
    }
    return bits;
  }
  bool visits(int block, int key) const {
    const int32_t* ids = block_ids(block);
    return std::binary_search(ids, ids + block_count(block), (key + c.index_k_offset[t.sequence]) / c.index_block_k);
  }

  int64_t context_row(int key) const {
    const int64_t page = c.block_tables[t.sequence * c.table_stride + key / c.page_size];
    return page * c.page_stride + (int64_t(kv_head) * c.page_size + key % c.page_size) * c.dim;
  }

  // `count` rows of the cache from element `at` on: where they lie, or in `room` where they are held as something else.
  const float* held_rows(const void* cache, const uint16_t* scales, int64_t at, int count, float* room) const {
    if (are_units<Unit>(c.page_kind, rounded)) return element<Unit>(cache, at);
    for (int i = 0; i < count; ++i)
      unit_row<Unit>(c.page_kind, cache, scales, at + int64_t(i) * c.dim, c.dim, rounded, room + i * units);
    return room;
  }

  // The same for the new row at element `at`.
  const float* new_row(const void* all, int64_t at, float* room) const {
    if (are_units<Unit>(c.new_kind, rounded)) return element<Unit>(all, at);
    unit_row<Unit>(c.new_kind, all, nullptr, at, c.dim, rounded, room);
    return room;
  }

  // Pointers to keys and values `key` … of the context and, beyond it, of the new rows in order of storage.
  void point(int slot, int key, int count) {
    const int context = c.context_lens[t.sequence], end = key + count;
    while (key < std::min(end, context)) {
      const int offset = key % c.page_size, run = std::min(std::min(end, context) - key, c.page_size - offset);
      const int64_t at = context_row(key);
      const float* k = held_rows(c.k_cache, c.k_scale, at, run, k_wide + slot * units);
      const float* v = held_rows(c.v_cache, c.v_scale, at, run, v_wide + slot * units);
      for (int i = 0; i < run; ++i, ++slot, ++key) {
        k_rows[slot] = k + i * units;
        v_rows[slot] = v + i * units;
      }
    }
    for (; key < end; ++key, ++slot) {
      const int64_t row = row_base + key - context;
      k_rows[slot] = new_row(c.k_new, row * c.k_row + kv_head * c.k_head, k_wide + slot * units);
      v_rows[slot] = new_row(c.v_new, row * c.v_row + kv_head * c.v_head, v_wide + slot * units);
    }
  }

  // --- tiles --------------------------------------------------------------------------------------

  void shared_tile(int key, int count) {
    if (!c.index_counts && key >= highest_low && key + TILE <= lowest_high) {
      std::fill(seen.begin(), seen.end(), ~0ull);
    } else {
      uint64_t bits = ~0ull, any = 0;
      int known = -1;
      for (int i = 0; i < t.row1 - t.row0; ++i) {
        if (c.index_counts && query_block[i] != known) bits = visited(known = query_block[i], key);
        any |= see(i, key, count, bits);
      }
      if (!any) return;
    }
    point(0, key, count);
    const int after = key + TILE;
    if (after < c.context_lens[t.sequence]) {
      const int64_t at = context_row(after) * KIND_BYTES[c.page_kind];
      fetch.begin(static_cast<const char*>(c.k_cache) + at, static_cast<const char*>(c.v_cache) + at,
                  c.dim * KIND_BYTES[c.page_kind], units, pauses(), TILED ? 0 : (rows + MAX_ROWS - 1) / MAX_ROWS,
                  c.skip_counts != nullptr);
    }
    tile(count, 0, rows);
    fetch.stop();
  }

  // How often a whole tile pauses for `fetch`: between the squares of a transposition or the products of AMX's tiles.
  int pauses() const {
    const int squares = TILE / LANES * (units / LANES), weighing = TILE / GROUP_ROWS + TILE / 32 * (width / 16);
    return squares + (one_group ? weighing : 0) + (PAIRS ? ZIP_PAUSES : 0);
  }

  // Notes which of the keys key … key+count-1 row i sees, of those in `bits`.
  uint64_t see(int i, int key, int count, uint64_t bits) {
    const int from = std::max(low[i] - key, 0), to = std::min(high[i] - key, count);
    if (from >= to)
      bits = 0;
    else
      bits &= (to == TILE ? ~0ull : (1ull << to) - 1) & (~0ull << from);
    std::fill_n(seen.begin() + i * t.heads, t.heads, bits);
    return bits;
  }

  // The keys from number `from` up to `to` of one row of a tree, from its last whole tile of context on.
  void path_tiles(int i, int from, int to) {
    const int context = c.context_lens[t.sequence], tail = context / TILE * TILE;
    path.clear();
    for (int key = tail; key < context; ++key) path.push_back(key);
    for (int j = 0; j < new_rows; ++j)
      if (mask[i * new_rows + j]) path.push_back(context + j);
    to = std::min(to, tail + int(path.size()));
    for (int key = from; key < to; key += TILE) {
      const int count = std::min(TILE, to - key);
      uint64_t bits = 0;
      for (int j = 0; j < count; ++j) {
        const int stored = path[key - tail + j];
        point(j, stored, 1);
        if (!c.index_counts || visits(query_block[i - t.row0], stored)) bits |= 1ull << j;
      }
      if (see(i - t.row0, key, count, bits)) tile(count, (i - t.row0) * t.heads, (i - t.row0 + 1) * t.heads);
    }
  }

  // Packed rows from … to over the `count` keys that k_rows and v_rows point to.
  void tile(int count, int from, int to) {
    const int filled = round_up(count, KEYS_STEP);
    const bool few = one_group && to - from == rows;
    for (int j = count; j < filled; ++j) k_rows[j] = k_rows[0];  // hidden below
    if (!few) transpose(k_rows, filled, units, columns, TILE, [&] { fetch.pause(); });
    values_ready = false;
    if (!c.skip_counts) ready_values(count, filled);
    if (few)
      tile_few(count, filled);
    else if constexpr (TILED)
      tile_groups(count, filled, from, to);
    else
      for_row_groups(to - from, [&](auto size, int r) { attend<decltype(size)::value>(count, filled, from + r); });
  }

  // The tile's values as products read them.
  void ready_values(int count, int filled) {
    if (values_ready) return;
    values_ready = true;
    if constexpr (PAIRS) {
      for (int j = count; j < filled; ++j) v_rows[j] = nothing;
      for (int j = 0; j < filled; j += 2) {
        if (j % (TILE / ZIP_PAUSES) == 0) fetch.pause();
        zip_rows(v_rows[j], v_rows[j + 1], c.dim, copies + j / 2 * width);
      }
    } else if (padded) {
      for (int j = 0; j < count; ++j) {
        std::copy(v_rows[j], v_rows[j] + c.dim, copies + j * width);
        std::fill(copies + j * width + c.dim, copies + (j + 1) * width, 0.0f);
        v_rows[j] = copies + j * width;
      }
    }
  }

  template <int ROWS>
  void attend(int count, int filled, int r0) {
    if (std::none_of(&seen[r0], &seen[r0] + ROWS, [](uint64_t bits) { return bits; })) return;
    auto column = [&](int d) {
      fetch.step(d);
      return columns + d * TILE;
    };
    multiply_wide<Unit, ROWS, false>(query + r0 * depth, depth, units, column, scores, TILE, filled / LANES);
    if (!soften_rows<ROWS>(count, filled, r0)) return;
    ready_values(count, filled);
    auto value = [&](int j) {
      fetch.step(j);
      return PAIRS ? copies + j * width : v_rows[j];
    };
    multiply_wide<Unit, ROWS, true>(weights, WEIGHTS_ROW, PAIRS ? filled / 2 : count, value, state.o + r0 * width,
                                    width, width / LANES);
  }

#if defined(__AMX_BF16__)
  // `attend` for groups of GROUP_ROWS, and what is left, by AMX's tiles: as a whole group where behind it is but room.
  void tile_groups(int count, int filled, int from, int to) {
    for (int r0 = from; r0 < to; r0 += GROUP_ROWS) {
      const int size = std::min(GROUP_ROWS, to - r0);
      if (std::none_of(&seen[r0], &seen[r0] + size, [](uint64_t bits) { return bits; })) continue;
      tiles.shape(to == rows && r0 + GROUP_ROWS <= round_up(rows, GROUP_ROWS) ? GROUP_ROWS : size);
      tile_product<false>(query + r0 * depth, depth, depth, columns, TILE, scores, TILE, filled, [] {});
      if (!soften_group(count, filled, r0, size)) continue;
      ready_values(count, filled);
      tile_product<true>(weights, WEIGHTS_ROW, filled / 2, copies, width, state.o + r0 * width, width, width, [] {});
    }
  }

  // The same where all rows together are one group at most. Then the keys are the rows of the first product and the
  // queries its columns, for transposing queries once is less than transposing all keys; each sum is the same.
  void tile_few(int count, int filled) {
    tiles.shape(GROUP_ROWS);
    alignas(64) float turned[TILE * GROUP_ROWS];
    const float* groups[TILE / GROUP_ROWS];
    for (int j = 0; j < filled; j += GROUP_ROWS) groups[j / GROUP_ROWS] = sixteen_keys(j);
    const auto ride = [&] { fetch.pause(); };
    if (filled == TILE)
      tile_tall_product<4>(groups, units, units, query_columns, turned, ride);
    else
      tile_tall_product<2>(groups, units, units, query_columns, turned, ride);
    for (int j = 0; j < filled; j += GROUP_ROWS) {
      fetch.pause();
      const float* lines[GROUP_ROWS];
      vec row[GROUP_ROWS];
      for (int i = 0; i < GROUP_ROWS; ++i) lines[i] = turned + (j + i) * GROUP_ROWS;
      transpose_square(lines, 0, row);
      for (int r = 0; r < rows; ++r) store(scores + r * TILE + j, row[r]);
    }
    if (!soften_group(count, filled, 0, rows)) return;
    ready_values(count, filled);
    tile_product<true>(weights, WEIGHTS_ROW, filled / 2, copies, width, state.o, width, width, ride);
  }

  // Keys j … j+15 of the tile, one behind another.
  const float* sixteen_keys(int j) {
    int i = 1;
    while (i < GROUP_ROWS && k_rows[j + i] == k_rows[j] + i * units) ++i;
    if (i == GROUP_ROWS) return k_rows[j];
    for (i = 0; i < GROUP_ROWS; ++i) std::copy(k_rows[j + i], k_rows[j + i] + units, columns + (j + i) * units);
    return columns + j * units;
  }

  // Whether any of the rows has weights.
  bool soften_group(int count, int filled, int r0, int size) {
    const bool whole = count == TILE && c.softcap <= 0 && size == GROUP_ROWS && !c.skip_counts;
    if (whole && std::all_of(&seen[r0], &seen[r0] + size, [](uint64_t s) { return !~s; })) {
      soften_whole_group(r0);
      return true;
    }
    bool any = false;
    for (int r = 0; r < size; ++r)
      any |= soften(scores + r * TILE, weights + r * WEIGHTS_ROW, filled / LANES, seen[r0 + r], r0 + r);
    return any;
  }

  // `soften` for GROUP_ROWS rows that see a whole tile: the same arithmetic, the maxima of all rows in one vector.
  void soften_whole_group(int r0) {
    constexpr int VECTORS = TILE / LANES;
    vec top[GROUP_ROWS];
    for (int r = 0; r < GROUP_ROWS; ++r) {
      top[r] = load(scores + r * TILE);
      for (int v = 1; v < VECTORS; ++v) top[r] = folio::max(top[r], load(scores + r * TILE + v * LANES));
    }
    const vec before = load(state.m + r0), highest = folio::max(before, max_each(top) * splat(c.scale));
    float m[GROUP_ROWS];
    store(m, highest);
    uint32_t raised = _mm512_cmp_ps_mask((__m512)before, (__m512)highest, _CMP_NEQ_UQ);
    for (; raised; raised &= raised - 1)
      raise(r0 + __builtin_ctz(raised), m[__builtin_ctz(raised)]);
    for (int r = 0; r < GROUP_ROWS; ++r) {
      vec l = load(state.l + (r0 + r) * LANES);
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) {
        const vec x = weigh(load(scores + r * TILE + v * LANES), c.scale, m[r]);
        l += x;
        put(weights + r * WEIGHTS_ROW, v, x);
      }
      store(state.l + (r0 + r) * LANES, l);
    }
  }
#else
  void tile_groups(int, int, int, int) {}
  void tile_few(int, int) {}
#endif

  template <int ROWS>
  bool soften_rows(int count, int filled, int r0) {
    const bool whole = count == TILE && c.softcap <= 0 && !c.skip_counts;
    if (whole && std::all_of(&seen[r0], &seen[r0] + ROWS, [](uint64_t s) { return !~s; })) {
      soften_whole<ROWS>(r0);
      return true;
    }
    bool any = false;
    for (int r = 0; r < ROWS; ++r)
      any |= soften(scores + r * TILE, weights + r * WEIGHTS_ROW, filled / LANES, seen[r0 + r], r0 + r);
    return any;
  }

  // exp(score - m). The scores of pairs are still without the scale.
  static vec weigh(vec score, float scale, float m) {
    constexpr float LOG2_E = 1.44269504f;
    return PAIRS ? exp2_rough(fma(score, splat(scale * LOG2_E), splat(-m * LOG2_E))) : exp(score - splat(m));
  }

  static void put(float* row, int v, vec weights_of) {
    if (PAIRS)
      store_bf16(reinterpret_cast<uint16_t*>(row) + v * LANES, round_normal_bf16(weights_of));
    else
      store(row + v * LANES, weights_of);
  }

  // `soften` for rows that see a whole tile: the same arithmetic, interleaved.
  template <int ROWS>
  void soften_whole(int r0) {
    constexpr int VECTORS = TILE / LANES;
    const float scale = PAIRS ? c.scale : 1.0f;
    float m[ROWS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
      vec top = load(scores + r * TILE);
#pragma GCC unroll 16
      for (int v = 1; v < VECTORS; ++v) top = folio::max(top, load(scores + r * TILE + v * LANES));
      m[r] = std::max(state.m[r0 + r], max_lane(top) * scale);
    }
    for (int r = 0; r < ROWS; ++r)
      if (m[r] != state.m[r0 + r]) raise(r0 + r, m[r]);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
      vec l = load(state.l + (r0 + r) * LANES);
#pragma GCC unroll 16
      for (int v = 0; v < VECTORS; ++v) {
        const vec x = weigh(load(scores + r * TILE + v * LANES), scale, m[r]);
        l += x;
        put(weights + r * WEIGHTS_ROW, v, x);
      }
      store(state.l + (r0 + r) * LANES, l);
    }
  }

  // Brings what a row has summed up to a larger maximum.
  void raise(int row, float m) {
    const vec shrink = exp(splat(state.m[row] - m));
    float *sums = state.l + row * LANES, *o = state.o + row * width;
    store(sums, load(sums) * shrink);
    for (int d = 0; d < width; d += LANES) store(o + d, load(o + d) * shrink);
    state.m[row] = m;
  }

  // One row's scores → weights, its maximum and sum brought up to date; whether there are any.
  bool soften(const float* s, float* out, int vectors, uint64_t visible, int row) {
    const float scale = PAIRS && c.softcap <= 0 ? c.scale : 1.0f;
    vec x[TILE / LANES], top = splat(-INF);
    for (int v = 0; v < vectors; ++v) {
      x[v] = load(s + v * LANES);
      if (c.softcap > 0) x[v] = cap(PAIRS ? x[v] * splat(c.scale) : x[v]);
      if (visible != ~0ull) x[v] = hide(x[v], uint32_t(visible >> (v * LANES)));
      top = folio::max(top, x[v]);
    }
    const float highest = max_lane(top) * scale, m = std::max(state.m[row], highest);
    if (m == -INF || skips(row, highest) || looking) {  // nothing seen yet, or that counts
      for (int v = 0; v < vectors; ++v) put(out, v, vec{});
      return false;
    }
    if (m != state.m[row]) raise(row, m);
    float* sums = state.l + row * LANES;
    vec l = load(sums);
    for (int v = 0; v < vectors; ++v) {
      x[v] = weigh(x[v], scale, m);
      l += x[v];
      put(out, v, x[v]);
    }
    store(sums, l);
    return true;
  }

  // Whether a row leaves out a tile of that largest score.
  bool skips(int row, float highest) {
    if (!c.skip_counts || highest == -INF) return false;
    if (first_tile) floors[row] = highest;
    const bool skipped = highest < std::max(state.m[row], floors[row]) - margin[row];
    ++looked_at;
    left_out += skipped;
    return skipped;
  }

  vec cap(vec x) const {  // c·tanh(x/c) = c − 2c / (exp(2x/c) + 1)
    const vec limit = splat(c.softcap), edge = splat(40.0f);
    vec y = x * splat(2.0f / c.softcap);
    y = folio::max(-edge, y < edge ? y : edge);
    return limit - splat(2.0f * c.softcap) / (exp(y) + splat(1.0f));
  }

  static vec hide(vec x, uint32_t seen) {
    ivec bit;
    for (int i = 0; i < LANES; ++i) bit[i] = 1 << i;
    return (int32_t(seen) & bit) != 0 ? x : splat(-INF);
  }

  // --- chunks -------------------------------------------------------------------------------------

  void finish_chunk(int chunk) {
    for (int r = 0; r < rows; ++r) {
      float* target = total + r * (width + 2);
      if (t.partial) {
        target = t.partial + (int64_t(chunk - t.chunk0) * rows + r) * (width + 2);
        target[0] = -INF;
      }
      join(target, state.m[r], sum_lanes(load(state.l + r * LANES)), state.o + r * width, width);
    }
  }

  void write() {
    for (int r = 0; r < rows; ++r) {
      const int64_t row = row_base + t.row0 + r / t.heads, head = t.head0 + r % t.heads;
      write_row(c, row, head, total + r * (width + 2));
    }
  }

 public:
  static void write_row(const Attention& c, int64_t row, int64_t head, const float* done) {
    const int64_t at = (row * c.q_heads + head) * c.dim;
    const bool empty = done[0] == -INF;
    const float share = empty ? 0.0f : 1.0f / done[1];
    auto* wide = static_cast<float*>(c.out) + at;
    auto* narrow = static_cast<uint16_t*>(c.out) + at;
    int d = 0;
    for (; d + LANES <= c.dim; d += LANES) {
      const vec x = empty ? vec{} : load(done + 2 + d) * splat(share);
      if (c.out_kind == BFLOAT16)
        store_bf16(narrow + d, round_bf16(x));
      else
        store(wide + d, x);
    }
    for (; d < c.dim; ++d) {
      const float x = empty ? 0.0f : done[2 + d] * share;
      if (c.out_kind == BFLOAT16)
        narrow[d] = round_bf16(x);
      else
        wide[d] = x;
    }
    c.lse[row * c.q_heads + head] = empty ? -INF : done[0] + std::log(done[1]);
  }
};

// The end of the row block that begins at row0; blocks of an index stay whole.
int block_end(const Attention& c, int sequence, int row0, int new_rows, int tokens) {
  const int end = std::min(new_rows, row0 + tokens);
  if (!c.index_counts || end == new_rows) return end;
  const int base = c.cu_rows[sequence];
  const int32_t *first = c.index_cu_rows + c.index_first[sequence],
                *last = c.index_cu_rows + c.index_first[sequence + 1];
  const int32_t* cut = std::upper_bound(first, last + 1, base + end) - 1;
  if (*cut - base > row0) return *cut - base;
  return std::min(new_rows, *std::upper_bound(first, last, base + row0) - base);
}

template <class Unit>
void attend_all(const Attention& c) {
  const int group = c.q_heads / c.kv_heads;
  const int heads = c.index_counts && c.index_heads == c.q_heads ? 1 : group;
  const int tokens = std::max(SPLIT_ROWS, BLOCK_ROWS * Unit::NUMBERS / heads);
  const int width = (c.dim + LANES - 1) / LANES * LANES;

  struct Split { Task whole; int chunks; int64_t partial; };
  std::vector<Task> tasks;
  std::vector<Split> splits;
  int64_t floats = 0, products = 0;
  for (int s = 0; s < c.sequences; ++s) {
    const int new_rows = c.cu_rows[s + 1] - c.cu_rows[s];
    const int chunks = (keys_of(c, s) + CHUNK - 1) / CHUNK;
    for (int row0 = 0, row1; row0 < new_rows; row0 = row1) {
      row1 = block_end(c, s, row0, new_rows, tokens);
      const int needed = c.k_new && !(c.tree_masks && c.tree_masks[s]) ? (c.context_lens[s] + row1 + CHUNK - 1) / CHUNK
                                                                       : chunks;
      for (int head = 0; head < c.q_heads; head += heads) {
        Task task{s, row0, row1, head, heads, 0, needed, nullptr};
        products += int64_t(row1 - row0) * heads * needed * CHUNK;
        if (new_rows <= SPLIT_ROWS && needed > 1) {
          splits.push_back({task, needed, floats});
          floats += int64_t(needed) * (row1 - row0) * heads * (width + 2);
        } else {
          tasks.push_back(task);
        }
      }
    }
  }
  static thread_local std::vector<float> partials;
  if (int64_t(partials.size()) < floats) partials.resize(floats);
  // The longest first: later row blocks of a prompt have more keys.
  std::stable_sort(tasks.begin(), tasks.end(), [](const Task& a, const Task& b) { return a.chunk1 > b.chunk1; });
  for (const Split& split : splits)
    for (int chunk = 0; chunk < split.chunks; ++chunk) {
      Task task = split.whole;
      const int64_t rows = int64_t(task.row1 - task.row0) * heads;
      task.chunk0 = chunk;
      task.chunk1 = chunk + 1;
      task.partial = partials.data() + split.partial + chunk * rows * (width + 2);
      tasks.push_back(task);
    }
  float* parts = partials.data();

  // A thread costs some microseconds to wake: worth it from a few thousand scores on.
  const int threads = int(std::clamp<int64_t>(products / THREAD_SCORES, 1, c.threads));
#pragma omp parallel num_threads(threads)
  {
    const FlushDenormals flush;
    Worker<Unit> worker(c);
#pragma omp for schedule(dynamic, 1)
    for (size_t i = 0; i < tasks.size(); ++i) worker.run(tasks[i]);
#pragma omp for schedule(dynamic, 1)
    for (size_t i = 0; i < splits.size(); ++i) {
      const Task& task = splits[i].whole;
      const int64_t rows = int64_t(task.row1 - task.row0) * heads, step = rows * (width + 2);
      for (int64_t r = 0; r < rows; ++r) {
        float* total = parts + splits[i].partial + r * (width + 2);
        for (int chunk = 1; chunk < splits[i].chunks; ++chunk) {
          const float* part = total + chunk * step;
          join(total, part[0], part[1], part + 2, width);
        }
        Worker<Unit>::write_row(c, c.cu_rows[task.sequence] + task.row0 + r / heads, task.head0 + r % heads, total);
      }
    }
  }
}

}  // namespace

extern "C" void folio_attention(const Attention* call) {
  if (call->products == BFLOAT16)
    attend_all<Narrow>(*call);
  else
    attend_all<Single>(*call);
}
