// grad_value with sums in a fixed order, for torch.use_deterministic_algorithms.
//
// The backward kernel adds nothing but records every point under a key: the token of its first corner on the map. A
// stable sort by key (sort.cu) brings the points of a token together in the order of the queries. Then one warp per
// token and head sums what falls on the token from the points filed under the token itself, its left, its upper and
// its upper left neighbour.
#pragma once

#include "points.h"

namespace ddetr_ops {

constexpr int kMarkThreads = 256;
constexpr int kSumThreads = 128;

// The key of points without a corner on the map.
template <typename T>
DDETR_OPS_HD int64_t last_key(const Params<T>& p) {
  return int64_t(p.batch) * p.heads * p.tokens;
}

template <typename C>
DDETR_OPS_DEVICE void record_point(const Params<typename C::T>& p, const Group<C>& group,
                                   const Level<typename C::A>* levels, int index, const Point<typename C::A>& point) {
  using A = typename C::A;
  if (index >= p.points || !group.active) return;
  A weights[4];
  corner_weights(point.cell, point.weight, weights);
  int32_t token = point.token;
  if (point.cell.x < 0) {  // no left corners: count from the right ones
    token += 1;
    weights[0] = weights[1], weights[2] = weights[3], weights[1] = weights[3] = A(0);
  }
  if (point.cell.y < 0) {
    token += point.width;
    weights[0] = weights[2], weights[1] = weights[3], weights[2] = weights[3] = A(0);
  }
  bool has_key = point.cell.corners != 0u;
  if (levels[point.level].start < 0) {  // NaN in token 0, as in the other kernels; no invalid level holds that token
    has_key = false;
    A* to = p.grad_value + group.value_row * group.channels;
#pragma unroll 1
    for (int32_t channel = 0; channel < group.channels; ++channel) to[channel] = A(NAN);
  }
  const int64_t head = int64_t(group.batch) * p.heads + group.head, entry = group.row * p.points + index;
  p.sorted.keys[entry] = static_cast<uint32_t>(has_key ? head * p.tokens + token : last_key(p));
  p.sorted.indices[entry] = static_cast<uint32_t>(entry);
#pragma unroll
  for (int c = 0; c < 4; ++c) p.corner_weights[4 * entry + c] = weights[c];
}

template <typename T>
DDETR_OPS_HD int64_t total_points(const Params<T>& p) {
  return int64_t(p.batch) * p.queries * p.heads * p.points;
}

// After the sort: where the points of each key begin and end.
template <typename T>
DDETR_OPS_KERNEL(kMarkThreads, 4) mark_segments_kernel(Params<T> p) {
  const int64_t i = int64_t(simt::block()) * kMarkThreads + simt::thread(), count = total_points(p);
  if (i >= count) return;
  const uint32_t key = p.sorted.keys[i];
  if (key == last_key(p)) return;
  if (i == 0 || p.sorted.keys[i - 1] != key) p.sorted.begin[key] = static_cast<uint32_t>(i);
  if (i + 1 == count || p.sorted.keys[i + 1] != key) p.sorted.end[key] = static_cast<uint32_t>(i + 1);
}

// Adds corner c of the points filed under `key` that belong to `level`. The groups of the warp take turns.
template <typename C>
DDETR_OPS_DEVICE void add_segment(const Params<typename C::T>& p, int64_t key, int32_t level, int c, int32_t channel,
                                  typename C::A (&sum)[C::V]) {
  using A = typename C::A;
  const uint32_t end = p.sorted.end[key];
#pragma unroll 4
  for (uint32_t i = p.sorted.begin[key] + simt::thread() % 32 / C::LANES; i < end; i += 32 / C::LANES) {
    const uint32_t entry = p.sorted.indices[i], row = entry / p.points;
    const A weight = p.corner_weights[4 * int64_t(entry) + c];
    const bool counts = level_of(p, entry - row * p.points) == level && weight != A(0) && channel < p.channels;
    A grad[C::V];
    load_if(counts, p.grad_output + int64_t(row) * p.channels + channel, grad);
#pragma unroll
    for (int v = 0; v < C::V; ++v) sum[v] += (counts ? weight : A(0)) * grad[v];
  }
}

template <typename C>
DDETR_OPS_KERNEL(kSumThreads, 4) sum_points_kernel(Params<typename C::T> p) {
  using A = typename C::A;
  constexpr unsigned WARPS = kSumThreads / 32;
  const Level<A>* levels = read_levels(p);
  __syncthreads();
  const unsigned blocks = (static_cast<unsigned>(p.tokens) + WARPS - 1) / WARPS;
  const int32_t token = static_cast<int32_t>(simt::block() % blocks * WARPS + simt::thread() / 32);
  const int64_t head = simt::block() / blocks, key = head * p.tokens + token;
  if (token >= p.tokens) return;  // the whole warp
  const int lane = simt::thread() % C::LANES;
  for (int32_t first = 0; first < p.channels; first += C::SPAN) {
    const int32_t channel = first + lane * C::V;
    A sum[C::V] = {};
    for (int32_t l = 0; l < p.levels; ++l) {
      const Level<A> level = levels[l];
      const int32_t within = token - level.start;
      if (within < 0 || within >= level.height * level.width) continue;
      const int32_t y = within / level.width, x = within - y * level.width;
      for (int c = 0; c < 4; ++c)
        if (x >= (c & 1) && y >= c >> 1)
          add_segment<C>(p, key - (c & 1) - (c & 2 ? level.width : 0), l, c, channel, sum);
    }
#pragma unroll
    for (int v = 0; v < C::V; ++v)
      for (int step = C::LANES; step < 32; step *= 2) sum[v] += simt::shuffle_xor(sum[v], step);
    if (simt::thread() % 32 >= C::LANES || channel >= p.channels) continue;
    const int64_t row = (head / p.heads * p.tokens + token) * p.heads + head % p.heads;
#pragma unroll
    for (int v = 0; v < C::V; ++v) p.grad_value[row * p.channels + channel + v] += sum[v];
  }
}

}  // namespace ddetr_ops
