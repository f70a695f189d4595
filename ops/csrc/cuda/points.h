// From a call's tensors to single sampling points: who works on what, and what one lane prepares for its group.
//
// A group of LANES neighbouring lanes owns one (batch, query, head). The lanes split the head's channels, V
// contiguous ones each, and they split the coordinate arithmetic: lane i prepares point i of every LANES
// points and the others get it by shuffles.
#pragma once

#include <type_traits>

#include "../sampling.h"
#include "storage.h"

namespace ddetr_ops {

// What the compiler is told in advance. Zero: known at run time only.
template <typename T_, int V_, int LANES_, int D_, int L_, int P_, bool FUSED_>
struct Plan {
  using T = T_;
  using A = wide_t<T_>;
  static constexpr int V = V_, LANES = LANES_, D = D_, L = L_, P = P_;
  static constexpr bool FUSED = FUSED_;
  static constexpr int SPAN = V_ * LANES_;  // channels that a group covers at once
  // Points whose loads may be in flight together. More, and the assembler spills registers to hold what they bring.
  static constexpr int AT_ONCE = V_ < 2 ? 4 : 16 / V_;
};

// The group's place in the problem. Blocks run through (batch, query tile, head): those that run at the same
// time read neighbouring queries, and the queries of one block share the head, hence rows of `value` in L1.
template <typename C>
struct Place {
  int lane, group, groups;    // in my group; of my group in the block; groups in the block
  int32_t batch, query, head, channels, levels, points;
  bool live;                  // false: the tile's last queries do not exist, the group only keeps step
  int64_t query_item, item;   // batch * Q + query; that * M + head
  int64_t map;                // batch * S * M + head: the head's first row in value

  DDETR_OPS_DEVICE explicit Place(const Problem<typename C::T>& p, int32_t slices = 1) {
    lane = simt::thread() % C::LANES;
    group = simt::thread() / C::LANES;
    groups = simt::block_threads() / C::LANES;
    channels = C::D ? C::D : p.channels;
    levels = C::L ? C::L : p.levels;
    points = C::P ? C::P : p.points;
    const unsigned tiles = (static_cast<unsigned>(p.queries) + groups - 1) / groups;
    unsigned rest = simt::block() / slices;
    head = static_cast<int32_t>(rest % p.heads);
    rest /= p.heads;
    query = static_cast<int32_t>(rest % tiles * groups) + group;
    batch = static_cast<int32_t>(rest / tiles);
    live = query < p.queries;
    if (!live) query = p.queries - 1;
    query_item = static_cast<int64_t>(batch) * p.queries + query;
    item = query_item * p.heads + head;
    map = static_cast<int64_t>(batch) * p.tokens * p.heads + head;
  }

  DDETR_OPS_DEVICE int all_points() const { return levels * points; }
};

// Whether a level lies within the tokens; the sizes come from the GPU's memory, where nobody checked them.
DDETR_OPS_DEVICE bool fits(int64_t height, int64_t width, int64_t start, int64_t tokens) {
  return height >= 0 && width >= 0 && start >= 0 && height <= tokens && width <= tokens && start <= tokens &&
         start + height * width <= tokens;
}

// One point as its lane prepared it.
template <typename A>
struct Point {
  Cell<A> cell;
  A weight;
  int32_t row, width;   // the top left corner's token; it may lie outside the map, where its corner does not count
  int32_t level, height;
  A x, y;               // pixel coordinates
};

template <typename A, typename T>
DDETR_OPS_DEVICE A load_point_value(const Problem<T>& p, const void* from, int64_t index) {
  return p.points_are_wide ? static_cast<const A*>(from)[index] : widen(static_cast<const T*>(from)[index]);
}

template <typename A, typename T>
DDETR_OPS_DEVICE void store_point_value(const Problem<T>& p, void* to, int64_t index, A value) {
  if (p.points_are_wide) {
    static_cast<A*>(to)[index] = value;
  } else {
    static_cast<T*>(to)[index] = narrow<T>(value);
  }
}

// Greatest logit and one over the sum of exponentials: what turns a logit into its weight.
template <typename A>
struct Softmax {
  A top, scale;
  DDETR_OPS_DEVICE A operator()(A logit) const { return std::exp(logit - top) * scale; }
};

template <typename C>
DDETR_OPS_DEVICE Softmax<typename C::A> softmax_of_group(const Problem<typename C::T>& p, const Place<C>& at) {
  using A = typename C::A;
  const int count = at.all_points();
  const int64_t first = at.item * count;
  A top = -INFINITY;
  for (int i = at.lane; i < count; i += C::LANES) {
    const A logit = load_point_value<A>(p, p.how_much, first + i);
    top = logit > top || logit != logit ? logit : top;
  }
#pragma unroll
  for (int step = C::LANES / 2; step; step /= 2) {
    const A other = simt::shuffle_xor(top, step);
    top = other > top || other != other ? other : top;
  }
  A sum = 0;
  for (int i = at.lane; i < count; i += C::LANES) sum += std::exp(load_point_value<A>(p, p.how_much, first + i) - top);
#pragma unroll
  for (int step = C::LANES / 2; step; step /= 2) sum += simt::shuffle_xor(sum, step);
  return {top, A(1) / sum};
}

// Pixel coordinate along one axis (0: x, 1: y) from the reference and the raw offset.
template <typename A, typename T>
DDETR_OPS_DEVICE A fused_pixel(const Problem<T>& p, const A* reference, int axis, A offset, int32_t points,
                               int32_t size) {
  return p.reference_size == 2 ? pixel_of_point_offset(reference[axis], offset, size)
                               : pixel_of_box_offset(reference[axis], reference[axis + 2], offset, points, size);
}

// Point `index` of the group's head; an index past the last gives a point that contributes nothing.
template <typename C>
DDETR_OPS_DEVICE Point<typename C::A> prepare(const Problem<typename C::T>& p, const Place<C>& at, int index,
                                              const Softmax<typename C::A>& softmax) {
  using A = typename C::A;
  const int count = at.all_points();
  const bool exists = index < count;
  if (!exists) index = count - 1;
  Point<A> point;
  point.level = index / at.points;
  const int64_t height = p.shapes[2 * point.level], width = p.shapes[2 * point.level + 1];
  const int64_t start = p.starts[point.level], entry = at.item * count + index;
  const bool readable = fits(height, width, start, p.tokens);
  point.height = readable ? static_cast<int32_t>(height) : 0;
  point.width = readable ? static_cast<int32_t>(width) : 0;
  const A first = load_point_value<A>(p, p.where, 2 * entry), second = load_point_value<A>(p, p.where, 2 * entry + 1);
  const A amount = load_point_value<A>(p, p.how_much, entry);
  if constexpr (C::FUSED) {
    const A* reference =
        p.reference + (at.query_item * at.levels + point.level) * p.reference_size;
    point.x = fused_pixel(p, reference, 0, first, at.points, point.width);
    point.y = fused_pixel(p, reference, 1, second, at.points, point.height);
    point.weight = softmax(amount);
  } else {
    point.x = pixel_of_location(first, point.width);
    point.y = pixel_of_location(second, point.height);
    point.weight = amount;
  }
  point.cell = locate(point.x, point.y, point.height, point.width);
  point.row = static_cast<int32_t>(start) + point.cell.y * point.width + point.cell.x;
  if (!readable) {  // NaN says so without waiting for the GPU, and nothing beyond token 0 is touched
    point.cell = {0, 0, A(0), A(0), 1u};
    point.weight = A(NAN);
    point.row = 0;
  }
  if (!exists) point.cell.corners = 0u;
  return point;
}

// The token of corner c of a point whose top left corner is token `row`.
DDETR_OPS_DEVICE int32_t corner_row(int32_t row, int32_t width, int c) { return row + (c & 1) + (c & 2 ? width : 0); }

// The element `row_bytes * row` beyond `base`. In 32 x 32 -> 64 bits, which is one instruction: tensors may be
// larger than 4 GiB, and 64 x 64 bits would cost as much per corner as the corner's multiply-adds.
template <typename E>
DDETR_OPS_DEVICE E* at_row(E* base, uint32_t row_bytes, int32_t row) {
  using Byte = std::conditional_t<std::is_const_v<E>, const char, char>;
  const uint64_t bytes = static_cast<uint64_t>(static_cast<uint32_t>(row)) * row_bytes;
  return reinterpret_cast<E*>(reinterpret_cast<Byte*>(base) + bytes);
}

}  // namespace ddetr_ops
