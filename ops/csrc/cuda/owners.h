// grad_value in a fixed order, for torch.use_deterministic_algorithms.
//
// A warp owns kRun neighbouring tokens of one batch and head: it walks over every query's points of the levels
// that its tokens belong to and adds, in the queries' order, what falls on its own. Nobody else writes there,
// so no atomics and always the same sum; the price is that every point is looked at by every warp of its level.
#pragma once

#include "points.h"

namespace ddetr_ops {

constexpr int kOwnerThreads = 128;
constexpr int kRun = 32;  // tokens of one warp

// Adds what the points `first`.. of one level, one per lane, put on tokens [begin, end).
template <typename T>
DDETR_OPS_DEVICE void add_owned(const Problem<T>& p, int32_t batch, int32_t head, int32_t begin, int32_t end,
                                int32_t first, const Cell<wide_t<T>>& cell, wide_t<T> weight, int32_t row,
                                int32_t width) {
  using A = wide_t<T>;
  const int lane = simt::thread() % 32;
  A weights[4];
  corner_weights(cell, weight, weights);
  bool hit = false;
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    const int32_t token = corner_row(row, width, c);
    if (token < begin || token >= end) weights[c] = A(0);
    hit = hit || weights[c] != A(0);
  }
  for (unsigned left = simt::ballot(hit); left; left &= left - 1) {
    const int source = simt::lowest_bit(left);
    const int64_t query = int64_t(batch) * p.queries + (first + source) / p.points;
    const int32_t its_row = simt::shuffle<32>(row, source);
    A its[4];
#pragma unroll
    for (int c = 0; c < 4; ++c) its[c] = simt::shuffle<32>(weights[c], source);
    const T* grads = p.grad_output + (query * p.heads + head) * p.channels;
    for (int32_t channel = lane; channel < p.channels; channel += 32) {
      const A grad = widen(grads[channel]);
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        if (its[c] == A(0)) continue;
        const int64_t token = int64_t(batch) * p.tokens + corner_row(its_row, width, c);
        p.grad_value[(token * p.heads + head) * p.channels + channel] += its[c] * grad;
      }
    }
  }
}

template <typename T>
DDETR_OPS_KERNEL(kOwnerThreads, 4) owners_kernel(Problem<T> p) {
  using A = wide_t<T>;
  const unsigned runs = (static_cast<unsigned>(p.tokens) + kRun - 1) / kRun;
  const unsigned blocks = (runs + kOwnerThreads / 32 - 1) / (kOwnerThreads / 32);
  const unsigned run = simt::block() % blocks * (kOwnerThreads / 32) + simt::thread() / 32;
  if (run >= runs) return;  // a whole warp
  const int32_t part = static_cast<int32_t>(simt::block() / blocks);
  const int32_t head = part % p.heads, batch = part / p.heads, many = p.queries * p.points;
  const int32_t begin = static_cast<int32_t>(run * kRun);
  const int32_t end = p.tokens - begin < kRun ? p.tokens : begin + kRun;
  for (int32_t level = 0; level < p.levels; ++level) {
    const int64_t height = p.shapes[2 * level], width = p.shapes[2 * level + 1], start = p.starts[level];
    if (!fits(height, width, start, p.tokens) || start >= end || start + height * width <= begin) continue;
    const A* trail = p.trail + 3 * (static_cast<int64_t>(part) * p.levels + level) * many;
    for (int32_t first = 0; first < many; first += 32) {
      const bool exists = simt::thread() % 32 < many - first;
      const A* entry = trail + 3 * static_cast<int64_t>(exists ? first + simt::thread() % 32 : many - 1);
      Cell<A> cell = locate(entry[0], entry[1], static_cast<int32_t>(height), static_cast<int32_t>(width));
      if (!exists) cell.corners = 0u;
      const int32_t row = static_cast<int32_t>(start + cell.y * width + cell.x);
      add_owned(p, batch, head, begin, end, first, cell, entry[2], row, static_cast<int32_t>(width));
    }
  }
}

}  // namespace ddetr_ops
