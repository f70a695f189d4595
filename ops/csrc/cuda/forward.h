// Forward kernel. Per point a lane issues four 16-byte loads, and only the multiply-adds wait for them.
#pragma once

#include "points.h"

namespace ddetr_ops {

constexpr int kForwardThreads = 256;

template <typename C>
DDETR_OPS_KERNEL(kForwardThreads, 3) forward_kernel(Params<typename C::T> p) {
  using A = typename C::A;
  // D known at run time: a block sums one span of the channels.
  const int32_t spans = C::D ? 1 : (p.channels + C::SPAN - 1) / C::SPAN;
  const Level<A>* levels = read_levels(p);
  const Group<C> group(p, spans);
  const int32_t channel = (C::D ? 0 : static_cast<int32_t>(simt::block() % spans) * C::SPAN) + group.lane * C::V;
  const bool has_channels = C::D != 0 || channel < group.channels;
  const typename C::T* base = p.value + group.value_row * group.channels + channel;
  __syncthreads();

  Softmax<A> softmax{};
  if constexpr (C::FUSED) softmax = softmax_of_group(p, group);
  A sum[C::SLICES][C::V] = {};
#pragma unroll 1
  for (int first = 0; first < p.points; first += C::LANES) {
    const Point<A> point = load_point(p, group, levels, first + group.lane, softmax);
    A weights[4];
    corner_weights(point.cell, point.weight, weights);
    const int many = points_from<C>(p, first);
#pragma unroll 1
    for (int begin = 0; begin < many; begin += C::FORWARD_POINTS) {
#pragma unroll
      for (int j = begin; j < begin + C::FORWARD_POINTS; ++j) {
        const int32_t token = simt::shuffle<C::LANES>(point.token, j);
        const int32_t width = simt::shuffle<C::LANES>(point.width, j);
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const A weight = simt::shuffle<C::LANES>(weights[c], j);
          const typename C::T* from = at_token(base, p.value_row, corner_token(token, width, c));
#pragma unroll
          for (int s = 0; s < C::SLICES; ++s) {
            A corner[C::V];
            load_if(weight != A(0) && has_channels, from + s * C::SPAN, corner);
#pragma unroll
            for (int v = 0; v < C::V; ++v) sum[s][v] += weight * corner[v];
          }
        }
      }
    }
  }
  if (!group.active || !has_channels) return;
#pragma unroll
  for (int s = 0; s < C::SLICES; ++s)
    store<C::V>(p.output + group.row * group.channels + channel + s * C::SPAN, sum[s]);
}

}  // namespace ddetr_ops
