// The activations of a gated MLP.
#pragma once

#include "calls.h"
#include "simd.h"

namespace folio {

// u · activation(g): u · (g · sigmoid(t)), each rounded, where t is g for SiLU, and for GELU in its approximation by a tanh
// twice what that is of, since 1 + tanh(t / 2) is 2 · sigmoid(t).
inline vec gated(Activation activation, const vec& g, const vec& u) {
  const vec inner = splat(0.79788456080286536f) * (g + splat(0.044715f) * (g * g * g));
  const vec t = activation == SILU ? g : inner + inner;
  const vec limit = splat(-79.0f);  // below it the sigmoid is 0 in all but name, and `exp` would overflow
  return u * (g / (splat(1.0f) + exp(-(t < limit ? limit : t))));
}

}  // namespace folio
