// The forward kernel. Per point a warp issues four 16-byte loads per lane and nothing that waits for them but
// the multiply-adds; the shuffles that hand the point around are cheap beside the loads.
#pragma once

#include "points.h"

namespace ddetr_ops {

constexpr int kForwardThreads = 256;

template <typename C>
DDETR_OPS_KERNEL(kForwardThreads, 3) forward_kernel(Problem<typename C::T> p) {
  using A = typename C::A;
  using T = typename C::T;
  // Heads wider than the group covers are cut into slices, which are blocks of their own.
  const int32_t slices = C::D ? (C::D + C::SPAN - 1) / C::SPAN : (p.channels + C::SPAN - 1) / C::SPAN;
  const Place<C> at(p, slices);
  const int32_t channel = static_cast<int32_t>(simt::block() % slices) * C::SPAN + at.lane * C::V;
  const bool mine = (C::D && C::D % C::SPAN == 0) || channel < at.channels;
  const T* base = p.value + at.map * at.channels + channel;

  Softmax<A> softmax{};
  if constexpr (C::FUSED) softmax = softmax_of_group(p, at);
  A sum[C::V] = {};
  const int count = at.all_points();
#pragma unroll 1
  for (int first = 0; first < count; first += C::LANES) {
    const Point<A> point = prepare(p, at, first + at.lane, softmax);
    A weights[4];
    corner_weights(point.cell, point.weight, weights);
#pragma unroll 2
    for (int j = 0; j < C::LANES; ++j) {
      const int32_t row = simt::shuffle<C::LANES>(point.row, j);
      const int32_t width = simt::shuffle<C::LANES>(point.width, j);
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const A weight = simt::shuffle<C::LANES>(weights[c], j);
        A corner[C::V] = {};
        // Zero: off the map, never to be read, or without effect.
        if (weight != A(0) && mine) load(at_row(base, p.value_row, corner_row(row, width, c)), corner);
#pragma unroll
        for (int v = 0; v < C::V; ++v) sum[v] += weight * corner[v];
      }
    }
  }
  if (at.live && mine) store<C::V>(p.output + at.item * at.channels + channel, sum);
}

}  // namespace ddetr_ops
