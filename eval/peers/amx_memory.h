// Included before llama.cpp's sources (setup.py). GCC 12's intrinsics of AMX do not say that they read memory: it drops
// the stores of a tile's shape, so that the first product is illegal, and may drop those of a tile. These say it.
#pragma once

#if defined(__AMX_TILE__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>

static inline __attribute__((always_inline)) void folio_tile_loadconfig(const void* config) {
  __asm__ volatile("ldtilecfg %0" ::"m"(*static_cast<const char(*)[64]>(config)) : "memory");
}
#define _tile_loadconfig folio_tile_loadconfig

#undef _tile_loadd_internal
#define _tile_loadd_internal(tile, base, stride) \
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile ::"r"((const void*)(base)), "r"((long)(stride)) : "memory")

#undef _tile_stream_loadd_internal
#define _tile_stream_loadd_internal(tile, base, stride) \
  __asm__ volatile("tileloaddt1 (%0,%1,1), %%tmm" #tile ::"r"((const void*)(base)), "r"((long)(stride)) : "memory")
#endif
