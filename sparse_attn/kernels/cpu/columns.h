// A tile of 64 keys, transposed, and the products of rows with them.
#pragma once

#include <vector>

#include "amx.h"
#include "units.h"

namespace folio {

template <class Unit>
class Columns {
  static constexpr bool TILED = Unit::NUMBERS > 1 && HAS_TILES;
  const int units, depth;
  std::vector<float> columns;
#if defined(__AMX_BF16__)
  Tiles tiles;
#endif

 public:
  static constexpr int TILE = 64;
  const float* keys[TILE];  // to be set before they are turned

  // Keys are of `units`; rows of q of `depth`, zero from the units on.
  Columns(int units, int depth) : units(units), depth(depth), columns(size_t(depth) * TILE) {}

  void turn() { transpose(keys, TILE, units, columns.data(), TILE, [] {}); }

  // out[rows][0:TILE] = q · keys; rows of q are `depth` apart, of out out_row.
  void multiply(const float* q, int rows, float* out, int64_t out_row) {
#if defined(__AMX_BF16__)
    if constexpr (TILED) {
      for (int r = 0; r < rows; r += 16) {
        tiles.shape(std::min(16, rows - r));
        tile_product<false>(q + int64_t(r) * depth, depth, depth, columns.data(), TILE, out + r * out_row, out_row,
                            TILE, [] {});
      }
      return;
    }
#endif
    for_row_groups(rows, [&](auto size, int r) {
      multiply_wide<Unit, decltype(size)::value, false>(q + int64_t(r) * depth, depth, units,
                                                        [&](int d) { return columns.data() + d * TILE; },
                                                        out + r * out_row, out_row, TILE / LANES);
    });
  }
};

}  // namespace folio
