// Weights from the order of a file into panels (blocks.h), and single rows out of them.
#include <algorithm>
#include <vector>

#include "blocks.h"
#include "packed.h"

using namespace folio;

namespace {

// 32 columns of a row of w, a byte each, eight in a word: they are handled eight at a time, on any processor.
struct Columns {
  uint64_t eight[4];
};

constexpr uint64_t each_byte(uint64_t x) { return x * 0x0101010101010101u; }
inline uint64_t word_at(const uint8_t* p) {
  uint64_t word;
  std::memcpy(&word, p, sizeof word);
  return word;
}

// Eight bits → the lowest bit of eight bytes.
inline uint64_t spread_bits(uint8_t bits) {
  return ((each_byte(bits) & 0x8040201008040201u) + each_byte(0x7f)) >> 7 & each_byte(1);
}

// The lowest BITS of bytes 0, 2, 4 and 6, side by side. The factor moves each to its place in the highest 16 bits, and all
// other copies beside them.
template <int BITS>
inline uint32_t every_second(uint64_t x) {
  constexpr uint64_t field = 0x0001000100010001u * ((1u << BITS) - 1);
  if constexpr (BITS == 8) {
    x = (x & field) | (x & field) >> 8;
    return uint32_t((x & 0xffff) | (x >> 16 & 0xffff0000u));
  } else {
    constexpr int gap = 16 - BITS;
    constexpr uint64_t moved = uint64_t(1) << 48 | uint64_t(1) << (48 - gap) | uint64_t(1) << (48 - 2 * gap) |
                               uint64_t(1) << (48 - 3 * gap);
    return uint32_t((x & field) * moved >> 48);
  }
}

// Sizes and offsets in ggml's blocks (ggml-common.h): bytes, the scale (what goes with it lies behind), scales of parts, high
// bits, low bits.
template <int COLUMNS, int SIZE, int D, int PARTS_AT, int HIGH, int LOW>
struct Offsets {
  static constexpr int columns = COLUMNS, size = SIZE, d = D, parts = PARTS_AT, high = HIGH, low = LOW;
};
template <int KIND> struct Block;
template <> struct Block<Q4_0> : Offsets<32, 18, 0, 0, 0, 2> {};
template <> struct Block<Q4_1> : Offsets<32, 20, 0, 0, 0, 4> {};
template <> struct Block<Q5_0> : Offsets<32, 22, 0, 0, 2, 6> {};
template <> struct Block<Q8_0> : Offsets<32, 34, 0, 0, 0, 2> {};
template <> struct Block<Q4_K> : Offsets<256, 144, 0, 4, 0, 16> {};
template <> struct Block<Q5_K> : Offsets<256, 176, 0, 4, 16, 48> {};
template <> struct Block<Q6_K> : Offsets<256, 210, 208, 192, 128, 0> {};

// The integers of columns 32 · part … of a block, not negative.
template <int KIND>
Columns numbers(const uint8_t* block, int part) {
  using B = Block<KIND>;
  constexpr uint64_t nibbles = each_byte(15);
  Columns c;
  for (int i = 0; i < 4; ++i) {
    if constexpr (KIND == Q8_0) {
      c.eight[i] = word_at(block + B::low + 8 * i) ^ each_byte(128);
    } else if constexpr (KIND == Q6_K) {
      const int side = part / 4, quarter = part % 4;
      const uint64_t low = word_at(block + B::low + 64 * side + 32 * (quarter & 1) + 8 * i) >> (quarter < 2 ? 0 : 4);
      const uint64_t high = word_at(block + B::high + 32 * side + 8 * i) >> (2 * quarter);
      c.eight[i] = (low & nibbles) | (high & each_byte(3)) << 4;
    } else if constexpr (B::columns == 256) {
      c.eight[i] = word_at(block + B::low + 32 * (part / 2) + 8 * i) >> (part % 2 ? 4 : 0) & nibbles;
      if constexpr (KIND == Q5_K) c.eight[i] |= (word_at(block + B::high + 8 * i) >> part & each_byte(1)) << 4;
    } else {
      c.eight[i] = word_at(block + B::low + 8 * (i % 2)) >> (i < 2 ? 0 : 4) & nibbles;
      if constexpr (KIND == Q5_0) c.eight[i] |= spread_bits(block[B::high + i]) << 4;
    }
  }
  return c;
}

// Scale and minimum of six bits each, of part `part` of a block of Q4_K or Q5_K.
void six_bits(const uint8_t* packed, int part, uint8_t& scale, uint8_t& least) {
  if (part < 4) {
    scale = packed[part] & 63;
    least = packed[part + 4] & 63;
  } else {
    scale = uint8_t((packed[part + 4] & 15) | packed[part - 4] >> 6 << 4);
    least = uint8_t(packed[part + 4] >> 4 | packed[part] >> 6 << 4);
  }
}

// What row `row` of a tile puts into its span's head.
template <int KIND>
void put_scales(const uint8_t* block, int part, int step, int row, uint8_t* head) {
  using B = Block<KIND>;
  const uint8_t* d = block + B::d;
  if constexpr (KIND == Q4_1) {
    std::memcpy(head + 2 * row, d, 2);
    std::memcpy(head + 32 + 2 * row, d + 2, 2);
  } else if constexpr (KIND == Q4_K || KIND == Q5_K) {
    std::memcpy(head + 2 * row, d, 2);
    std::memcpy(head + 32 + 2 * row, d + 2, 2);
    six_bits(block + B::parts, part, head[64 + 32 * step + row], head[80 + 32 * step + row]);
  } else if constexpr (KIND == Q6_K) {
    std::memcpy(head + 2 * row, d, 2);
    for (int half = 0; half < 2; ++half) head[64 + 32 * step + 16 * half + row] = block[B::parts + 2 * part + half];
  } else {
    std::memcpy(head + 32 * step + 2 * row, d, 2);
  }
}

// The integers of row `row` into a tile of zeros.
template <int KIND>
void put_numbers(const Columns& c, int row, uint8_t* tile) {
  using L = LayoutOf<KIND>;
  constexpr int wide_bits = L::bits == 8 ? 8 : 4, eights = wide_bits == 8 ? 1 : 2;  // of columns, in two words
  const int h = row / 8;
  const auto word = [&](int vector, int p) {
    return reinterpret_cast<uint32_t*>(tile + 64 * vector) + 2 * (row % 8) + p;
  };
  for (int p = 0; p < 2; ++p) {
    for (int q = 0; q < 4 / eights; ++q) {
      uint32_t low = 0;
      for (int i = 0; i < eights; ++i) low |= every_second<wide_bits>(c.eight[q * eights + i] >> 8 * p) << (16 * i);
      *word(h * (4 / eights) + q, p) = low;
    }
    if constexpr (L::high > 0) {
      constexpr int more = L::bits - 4;
      uint32_t high = 0;
      for (int i = 0; i < 4; ++i) high |= every_second<more>(c.eight[i] >> (8 * p + 4)) << (4 * more * i);
      if constexpr (more == 1)
        *word(L::low / 64, p) |= high << (16 * h);
      else
        *word(L::low / 64 + h, p) = high;
    }
  }
}

template <int KIND>
void pack_panel(const Pack& c, int64_t panel) {
  using L = LayoutOf<KIND>;
  const int64_t steps = (c.inner + TILE_COLUMNS - 1) / TILE_COLUMNS;
  uint8_t* out = c.packed + panel * L::panel_bytes(steps);
  std::memset(out, 0, L::panel_bytes(steps));
  const int rows = int(std::min<int64_t>(TILE_ROWS, c.outer - panel * TILE_ROWS));
  for (int64_t step = 0; step < steps; ++step) {
    uint8_t* tile = out + L::offset(step);
    uint8_t* head = out + step / L::span * (L::head + L::span * L::tile);
    if constexpr (KIND == INT8_ROWS) std::memset(tile, L::zero, L::tile);
    for (int row = 0; row < rows; ++row) {
      const int64_t n = panel * TILE_ROWS + row;
      const uint8_t* source = c.rows + (c.order ? c.order[n] : n) * c.row_bytes;
      const int64_t k = step * TILE_COLUMNS;
      const int count = int(std::min<int64_t>(TILE_COLUMNS, c.inner - k));
      if constexpr (L::bits == 0) {
        int i = 0;
        for (; i + 2 <= count; i += 2) std::memcpy(tile + 32 * i + 4 * row, source + 2 * (k + i), 4);
        if (i < count) std::memcpy(tile + 32 * i + 4 * row, source + 2 * (k + i), 2);
      } else if constexpr (KIND == INT8_ROWS) {
        Columns there{};
        std::memcpy(there.eight, source + k, count);
        for (uint64_t& eight : there.eight) eight ^= each_byte(L::zero);  // adds 128
        put_numbers<KIND>(there, row, tile);
      } else {
        using B = Block<KIND>;
        const uint8_t* block = source + k / B::columns * B::size;
        const int part = int(k % B::columns / TILE_COLUMNS);
        put_scales<KIND>(block, part, int(step % L::span), row, head);
        put_numbers<KIND>(numbers<KIND>(block, part), row, tile);
      }
    }
  }
}

}  // namespace

extern "C" int64_t folio_packed_bytes(int32_t kind, int64_t outer, int64_t inner) {
  int64_t bytes = 0;
  for_kind(kind, [&](auto known) {
    const int64_t steps = (inner + TILE_COLUMNS - 1) / TILE_COLUMNS;
    bytes = (outer + TILE_ROWS - 1) / TILE_ROWS * LayoutOf<decltype(known)::value>::panel_bytes(steps);
  });
  return bytes;
}

extern "C" void folio_pack(const Pack* call) {
  const Pack& c = *call;
  for_kind(c.kind, [&](auto known) {
#pragma omp parallel for num_threads(c.threads) schedule(dynamic, 4)
    for (int64_t panel = 0; panel < (c.outer + TILE_ROWS - 1) / TILE_ROWS; ++panel)
      pack_panel<decltype(known)::value>(c, panel);
  });
}

extern "C" void folio_unpack_rows(const Unpack* call) {
  const Unpack& c = *call;
  const int64_t steps = (c.inner + TILE_COLUMNS - 1) / TILE_COLUMNS;
  for_kind(c.kind, [&](auto known) {
    constexpr int KIND = decltype(known)::value;
    using L = LayoutOf<KIND>;
#pragma omp parallel for num_threads(c.threads) if (c.count > 64)
    for (int64_t i = 0; i < c.count; ++i) {
      const int64_t n = c.ids[i];
      const int row = int(n % TILE_ROWS);
      const uint8_t* panel = c.packed + n / TILE_ROWS * L::panel_bytes(steps);
      const float scale = c.scale ? c.scale[n] : 1.0f;
      for (int64_t step = 0; step < steps; ++step) {
        alignas(64) float pairs[2][TILE_ROWS];
        float* y = c.y + i * c.inner + step * TILE_COLUMNS;
        const int count = int(std::min<int64_t>(TILE_COLUMNS, c.inner - step * TILE_COLUMNS));
        const uint8_t* head = panel + step / L::span * (L::head + L::span * L::tile);
        const auto take = [&](int j, const wide& low, const wide& high) {
          store_wide(pairs[0], low);
          store_wide(pairs[1], high);
          for (int p = 0; p < 2; ++p)
            if (2 * j + p < count) y[2 * j + p] = pairs[row / 8][2 * (row % 8) + p] * scale;
        };
        unpack_tile<KIND>(head, panel + L::offset(step), int(step % L::span), take);
      }
    }
  });
}
