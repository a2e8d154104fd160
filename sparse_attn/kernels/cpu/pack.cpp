// Weights from the order of a file into panels (blocks.h), and single rows out of them.
#include <algorithm>
#include <vector>

#include "blocks.h"
#include "packed.h"

using namespace folio;

namespace {

// 32 columns of a row of w, from whatever they are stored in.
struct Columns {
  uint8_t number[TILE_COLUMNS];
};

// Offsets in ggml's blocks (ggml-common.h): scale, minimum or second scale, scales of parts, high bits, low bits.
template <int KIND> struct Block;
template <> struct Block<Q4_0> { static constexpr int columns = 32, size = 18, d = 0, high = 0, low = 2; };
template <> struct Block<Q4_1> { static constexpr int columns = 32, size = 20, d = 0, high = 0, low = 4; };
template <> struct Block<Q5_0> { static constexpr int columns = 32, size = 22, d = 0, high = 2, low = 6; };
template <> struct Block<Q8_0> { static constexpr int columns = 32, size = 34, d = 0, high = 0, low = 2; };
template <> struct Block<Q4_K> { static constexpr int columns = 256, size = 144, d = 0, parts = 4, high = 0, low = 16; };
template <> struct Block<Q5_K> { static constexpr int columns = 256, size = 176, d = 0, parts = 4, high = 16, low = 48; };
template <> struct Block<Q6_K> { static constexpr int columns = 256, size = 210, d = 208, parts = 192, high = 128, low = 0; };

// The integers of columns 32 · part … of a block, not negative.
template <int KIND>
Columns numbers(const uint8_t* block, int part) {
  using B = Block<KIND>;
  Columns c;
  for (int i = 0; i < TILE_COLUMNS; ++i) {
    if constexpr (KIND == Q8_0) {
      c.number[i] = uint8_t(block[B::low + i] + 128);
    } else if constexpr (KIND == Q6_K) {
      const int side = part / 4, quarter = part % 4;
      const uint8_t low = block[B::low + 64 * side + 32 * (quarter & 1) + i];
      const uint8_t high = block[B::high + 32 * side + i] >> (2 * quarter) & 3;
      c.number[i] = uint8_t((quarter < 2 ? low & 15 : low >> 4) | high << 4);
    } else if constexpr (B::columns == 256) {
      const uint8_t low = block[B::low + 32 * (part / 2) + i];
      c.number[i] = part % 2 ? low >> 4 : low & 15;
      if constexpr (KIND == Q5_K) c.number[i] |= uint8_t((block[B::high + i] >> part & 1) << 4);
    } else {
      const uint8_t low = block[B::low + i % 16];
      c.number[i] = i < 16 ? low & 15 : low >> 4;
      if constexpr (KIND == Q5_0) c.number[i] |= uint8_t((block[B::high + i / 8] >> (i % 8) & 1) << 4);
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
  constexpr int wide_bits = L::bits == 8 ? 8 : 4, in_word = 32 / wide_bits;
  const int h = row / 8;
  const auto word = [&](int vector, int p) {
    return reinterpret_cast<uint32_t*>(tile + 64 * vector) + 2 * (row % 8) + p;
  };
  for (int p = 0; p < 2; ++p) {
    for (int q = 0; q < PAIRS / in_word; ++q) {
      uint32_t low = 0;
      for (int i = 0; i < in_word; ++i) {
        const uint32_t number = c.number[2 * (q * in_word + i) + p];
        low |= (L::bits == 8 ? number : number & 15) << (wide_bits * i);
      }
      *word(h * (PAIRS / in_word) + q, p) = low;
    }
    if constexpr (L::high > 0) {
      constexpr int more = L::bits - 4;
      uint32_t high = 0;
      for (int j = 0; j < PAIRS; ++j) high |= uint32_t(c.number[2 * j + p] >> 4) << (more * j);
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
        for (int i = 0; i < count; ++i) std::memcpy(tile + 64 * (i / 2) + 4 * row + 2 * (i % 2), source + 2 * (k + i), 2);
      } else if constexpr (KIND == INT8_ROWS) {
        Columns numbers;
        for (int i = 0; i < TILE_COLUMNS; ++i) numbers.number[i] = uint8_t((i < count ? source[k + i] : 0) + L::zero);
        put_numbers<KIND>(numbers, row, tile);
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
        unpack_tile<KIND>(head, panel + L::offset(step), int(step % L::span), [&](int j, const wide& low, const wide& high) {
          store_wide(pairs[0], low);
          store_wide(pairs[1], high);
          for (int p = 0; p < 2; ++p)
            if (2 * j + p < count) y[2 * j + p] = pairs[row / 8][2 * (row % 8) + p] * scale;
        });
      }
    }
  });
}
