// From a call's tensors to single sampling points.
//
// A group of LANES neighbouring lanes owns one (batch, query, head). The lanes share the head's channels, V contiguous
// ones each, and the coordinate arithmetic: lane i prepares point i of every LANES points and hands it to the others
// by shuffles.
#pragma once

#include <type_traits>

#include "../sampling.h"
#include "storage.h"

namespace ddetr_ops {

// Compile-time sizes of a kernel. D = 0: any number of channels, known at run time.
template <typename T_, int V_, int LANES_, int D_, bool FUSED_>
struct Traits {
  using T = T_;
  using A = acc_t<T_>;
  static constexpr int V = V_, LANES = LANES_, D = D_;
  static constexpr bool FUSED = FUSED_;
  static constexpr int SPAN = V_ * LANES_;             // channels that a group covers at once
  static constexpr int SLICES = D_ ? D_ / SPAN : 1;    // of that size, per head
  static_assert(D_ % SPAN == 0, "a known D is a whole number of slices");
  // Points whose loads are in flight together in the forward and backward loops; more would spill registers.
  static constexpr int FORWARD_POINTS = SLICES > 1 ? 1 : 2;
  static constexpr int BACKWARD_POINTS = SLICES > 1 ? 1 : V_ > 4 ? 2 : 4;
};

// The caller's group within the launch. Blocks are numbered (batch, query tile, head), heads fastest: blocks that run
// together read neighbouring queries, and the queries of a block share a head, hence rows of value in L1.
template <typename C>
struct Group {
  int lane;                  // within the group
  int index, count;          // of the group within the block; groups of the block
  int32_t batch, query, head, channels;
  bool active;               // false past the last query: the group only takes part in shuffles and barriers
  int64_t query_row;         // b * Q + q
  int64_t row;               // (b * Q + q) * M + m
  int64_t value_row;         // b * S * M + m: the head's first row in value

  // `spans`: blocks per head, where heads wider than SPAN are cut.
  DDETR_OPS_DEVICE explicit Group(const Params<typename C::T>& p, int32_t spans = 1) {
    lane = simt::thread() % C::LANES;
    index = simt::thread() / C::LANES;
    count = simt::block_threads() / C::LANES;
    channels = C::D ? C::D : p.channels;
    const unsigned tiles = (static_cast<unsigned>(p.queries) + count - 1) / count;
    unsigned rest = simt::block() / spans;
    head = static_cast<int32_t>(rest % p.heads);
    rest /= p.heads;
    query = static_cast<int32_t>(rest % tiles * count) + index;
    batch = static_cast<int32_t>(rest / tiles);
    active = query < p.queries;
    if (!active) query = p.queries - 1;
    query_row = static_cast<int64_t>(batch) * p.queries + query;
    row = query_row * p.heads + head;
    value_row = static_cast<int64_t>(batch) * p.tokens * p.heads + head;
  }
};

// A level's entry in shared memory. A level that does not lie within the tokens has start -1 and no pixels.
template <typename A>
struct alignas(16) Level {
  int32_t height, width, start;
  A half_per_point;  // 0.5 / number of points of the level
};

template <typename T>
DDETR_OPS_HD int64_t level_bytes(const Params<T>& p) {
  return int64_t(p.levels) * sizeof(Level<acc_t<T>>);
}

template <typename T>
DDETR_OPS_DEVICE Level<acc_t<T>> read_level(const Params<T>& p, int32_t level) {
  const int64_t height = p.spatial_shapes[2 * level], width = p.spatial_shapes[2 * level + 1];
  const int64_t start = p.level_start_index[level], tokens = p.tokens;
  const bool within = height >= 0 && width >= 0 && start >= 0 && height <= tokens && width <= tokens &&
                      start <= tokens && start + height * width <= tokens;
  int32_t num_points = p.num_points;
  if (num_points == 0) num_points = p.level_end[level] - (level ? p.level_end[level - 1] : 0);
  const acc_t<T> half_per_point = acc_t<T>(0.5) / acc_t<T>(num_points);
  if (!within) return {0, 0, -1, half_per_point};
  return {static_cast<int32_t>(height), static_cast<int32_t>(width), static_cast<int32_t>(start), half_per_point};
}

// The levels, read and checked once per block. All threads of the block must call; the caller adds the barrier.
template <typename T>
DDETR_OPS_DEVICE const Level<acc_t<T>>* read_levels(const Params<T>& p) {
  Level<acc_t<T>>* levels = reinterpret_cast<Level<acc_t<T>>*>(simt::shared_memory());
#pragma unroll 1
  for (int32_t l = simt::thread(); l < p.levels; l += simt::block_threads()) levels[l] = read_level(p, l);
  return levels;
}

// Level of a point. The product is point / num_points, exactly while points * num_points <= 2^32.
template <typename T>
DDETR_OPS_DEVICE int32_t level_of(const Params<T>& p, int32_t point) {
  if (p.num_points) return static_cast<int32_t>(__umulhi(static_cast<uint32_t>(point) + 1u, p.num_points_factor));
  int32_t level = 0;
#pragma unroll 1
  while (point >= p.level_end[level]) ++level;
  return level;
}

// One point, as its lane prepared it.
template <typename A>
struct Point {
  Cell<A> cell;
  A weight;
  int32_t token, width;  // of the top left corner, which may lie off the map and then does not count
  int32_t level;
};

template <typename A, typename T>
DDETR_OPS_DEVICE A load_points_dtype(const Params<T>& p, const void* from, int64_t index) {
  return p.points_in_acc ? static_cast<const A*>(from)[index] : widen(static_cast<const T*>(from)[index]);
}

template <typename A, typename T>
DDETR_OPS_DEVICE void store_points_dtype(const Params<T>& p, void* to, int64_t index, A value) {
  if (p.points_in_acc) {
    static_cast<A*>(to)[index] = value;
  } else {
    static_cast<T*>(to)[index] = narrow<T>(value);
  }
}

// weight = exp(logit - max) * scale
template <typename A>
struct Softmax {
  A max, scale;
  DDETR_OPS_DEVICE A operator()(A logit) const { return std::exp(logit - max) * scale; }
};

template <typename C>
DDETR_OPS_DEVICE Softmax<typename C::A> softmax_of_group(const Params<typename C::T>& p, const Group<C>& group) {
  using A = typename C::A;
  const int64_t first = group.row * p.points;
  A max = -INFINITY;
#pragma unroll 1
  for (int i = group.lane; i < p.points; i += C::LANES) {
    const A logit = load_points_dtype<A>(p, p.weights, first + i);
    max = logit > max || logit != logit ? logit : max;
  }
#pragma unroll
  for (int step = C::LANES / 2; step; step /= 2) {
    const A other = simt::shuffle_xor(max, step);
    max = other > max || other != other ? other : max;
  }
  A sum = 0;
#pragma unroll 1
  for (int i = group.lane; i < p.points; i += C::LANES)
    sum += std::exp(load_points_dtype<A>(p, p.weights, first + i) - max);
  return {max, A(1) / simt::group_sum<C::LANES>(sum)};
}

// Pixel coordinate of a point along one axis (0: x, 1: y) from its reference and offset.
template <typename A, typename T>
DDETR_OPS_DEVICE A fused_pixel(const Params<T>& p, const A* reference, int axis, A offset, A half_per_point,
                               int32_t size) {
  return p.reference_dim == 2 ? pixel_of_point_offset(reference[axis], offset, size)
                               : pixel_of_box_offset(reference[axis], reference[axis + 2], offset, half_per_point,
                                                    size);
}

template <typename C>
DDETR_OPS_DEVICE const typename C::A* reference_of(const Params<typename C::T>& p, const Group<C>& group,
                                                   int32_t level) {
  return p.reference_points + (group.query_row * p.levels + level) * p.reference_dim;
}

// Point `index` of the group. An index past the last point gives one that contributes nothing.
template <typename C>
DDETR_OPS_DEVICE Point<typename C::A> load_point(const Params<typename C::T>& p, const Group<C>& group,
                                                 const Level<typename C::A>* levels, int index,
                                                 const Softmax<typename C::A>& softmax) {
  using A = typename C::A;
  const bool exists = index < p.points;
  if (!exists) index = p.points - 1;
  Point<A> point;
  point.level = level_of(p, index);
  const Level<A> level = levels[point.level];
  point.width = level.width;
  const int64_t entry = group.row * p.points + index;
  const A first = load_points_dtype<A>(p, p.locations, 2 * entry);
  const A second = load_points_dtype<A>(p, p.locations, 2 * entry + 1);
  point.weight = load_points_dtype<A>(p, p.weights, entry);
  A x, y;
  if constexpr (C::FUSED) {
    const A* reference = reference_of(p, group, point.level);
    x = fused_pixel(p, reference, 0, first, level.half_per_point, level.width);
    y = fused_pixel(p, reference, 1, second, level.half_per_point, level.height);
    point.weight = softmax(point.weight);
  } else {
    x = pixel_of_location(first, level.width);
    y = pixel_of_location(second, level.height);
  }
  point.cell = locate(x, y, level.height, level.width);
  point.token = level.start + point.cell.y * level.width + point.cell.x;
  if (level.start < 0) {  // invalid levels are redirected to token 0 with weight NaN
    point.cell = {0, 0, A(0), A(0), 1u};
    point.weight = A(NAN);
    point.token = 0;
  }
  if (!exists) point.cell.corners = 0u;
  return point;
}

// Points of the LANES from `first` on that exist. The same in all lanes of a warp.
template <typename C>
DDETR_OPS_DEVICE int points_from(const Params<typename C::T>& p, int first) {
  return p.points - first < C::LANES ? p.points - first : C::LANES;
}

// Token of corner c.
DDETR_OPS_DEVICE int32_t corner_token(int32_t token, int32_t width, int c) {
  return token + (c & 1) + (c & 2 ? width : 0);
}

// `base` plus token * token_bytes, as one 32 x 32 -> 64-bit multiply-add: tensors may be larger than 4 GiB.
template <typename E>
DDETR_OPS_DEVICE E* at_token(E* base, uint32_t token_bytes, int32_t token) {
  using Byte = std::conditional_t<std::is_const_v<E>, const char, char>;
  const uint64_t bytes = static_cast<uint64_t>(static_cast<uint32_t>(token)) * token_bytes;
  return reinterpret_cast<E*>(reinterpret_cast<Byte*>(base) + bytes);
}

}  // namespace ddetr_ops
