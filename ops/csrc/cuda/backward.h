// Backward kernel: all gradients in one pass over the points.
//
// Everything but grad_value follows from four products per point, grad_output . corner (sampling.h, point_grads). Each
// lane sums its own channels of LANES points' products; an exchange that halves the number of points at every step
// then leaves lane i with the complete sums of point i, whose coordinates it holds.
#pragma once

#include "deterministic.h"
#include "merge.h"

namespace ddetr_ops {

constexpr int kBackwardThreads = 256;

// grad_output of the group: in registers if D is known, else read where it is needed.
template <typename C>
struct HeadGrad {
  using A = typename C::A;
  const typename C::T* from;
  A registers[C::SLICES][C::V];

  DDETR_OPS_DEVICE HeadGrad(const Params<typename C::T>& p, const Group<C>& group)
      : from(p.grad_output + group.row * group.channels + group.lane * C::V) {
    if constexpr (C::D != 0) {
#pragma unroll
      for (int s = 0; s < C::SLICES; ++s) load(from + s * C::SPAN, registers[s]);
    }
  }
  DDETR_OPS_DEVICE int slices(const Group<C>& group) const {
    return C::D ? C::SLICES : (group.channels + C::SPAN - 1) / C::SPAN;
  }
  DDETR_OPS_DEVICE void slice(int s, A (&out)[C::V]) const {
    if constexpr (C::D != 0) {
#pragma unroll
      for (int v = 0; v < C::V; ++v) out[v] = registers[s][v];
    } else {
      load(from + s * C::SPAN, out);
    }
  }
};

// The caller's channels of the products of point j of the group.
template <typename C>
DDETR_OPS_DEVICE void point_products(const Params<typename C::T>& p, const Group<C>& group, const HeadGrad<C>& grad,
                                     const Point<typename C::A>& point, int j, typename C::A (&out)[4]) {
  using A = typename C::A;
  const int32_t token = simt::shuffle<C::LANES>(point.token, j);
  const int32_t width = simt::shuffle<C::LANES>(point.width, j);
  const unsigned corners = simt::shuffle<C::LANES>(point.cell.corners, j);
  const typename C::T* base = p.value + group.value_row * group.channels + group.lane * C::V;
#pragma unroll
  for (int c = 0; c < 4; ++c) out[c] = A(0);
#pragma unroll(C::SLICES)
  for (int s = 0; s < grad.slices(group); ++s) {
    if (C::D == 0 && group.lane * C::V + s * C::SPAN >= group.channels) continue;
    A head_grad[C::V];
    grad.slice(s, head_grad);
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      A corner[C::V];
      load_if(corners >> c & 1u, at_token(base, p.value_row, corner_token(token, width, c)) + s * C::SPAN, corner);
#pragma unroll
      for (int v = 0; v < C::V; ++v) out[c] += head_grad[v] * corner[v];
    }
  }
}

// Products of the MANY points from `first` on, summed over MANY lanes: lane i of these gets point first + i. Each half
// of the lanes keeps its half of the points and gives the other half away. Recursive, so that the partial sums of only
// log2(LANES) points are alive at a time, in registers.
template <int MANY, typename C>
DDETR_OPS_DEVICE void exchange_products(const Params<typename C::T>& p, const Group<C>& group, const HeadGrad<C>& grad,
                                        const Point<typename C::A>& point, int first, typename C::A (&out)[4]) {
  using A = typename C::A;
  if constexpr (MANY == 1) {
    point_products(p, group, grad, point, first, out);
  } else {
    constexpr int HALF = MANY / 2;
    A lower[4], products[4] = {};
#pragma unroll(MANY > C::BACKWARD_POINTS ? 1 : 2)
    for (int half = 0; half < MANY; half += HALF) {
#pragma unroll
      for (int c = 0; c < 4; ++c) lower[c] = products[c];  // from the second half on: of the first
      exchange_products<HALF>(p, group, grad, point, first + half, products);
    }
    const bool is_lower = (group.lane & HALF) == 0;
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const A given = is_lower ? products[c] : lower[c];
      out[c] = (is_lower ? lower[c] : products[c]) + simt::shuffle_xor(given, HALF);
    }
  }
}

// grad_value of the group's points, one addition per corner.
template <typename C>
DDETR_OPS_DEVICE void add_directly(const Params<typename C::T>& p, const Group<C>& group,
                                   const Point<typename C::A>& point, int existing) {
  using A = typename C::A;
  constexpr int WIDTH = C::V < 4 || sizeof(A) == 8 ? 1 : simt::kReductionWidth;
  constexpr int STEP = C::LANES * WIDTH;
  A weights[4];
  corner_weights(point.cell, group.active ? point.weight : A(0), weights);
  A* base = p.grad_value + group.value_row * group.channels;
  const typename C::T* grads = p.grad_output + group.row * group.channels;
#pragma unroll 1
  for (int begin = group.lane * WIDTH; begin - group.lane * WIDTH < group.channels; begin += STEP) {
    const bool has_channels = begin < group.channels;
    A grad[WIDTH] = {};
    if (has_channels) load(grads + begin, grad);
#pragma unroll 1
    for (int pair = 0; pair < existing; pair += 2) {
#pragma unroll
      for (int j = pair; j < pair + 2; ++j) {
        const int32_t token = simt::shuffle<C::LANES>(point.token, j);
        const int32_t width = simt::shuffle<C::LANES>(point.width, j);
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const A weight = simt::shuffle<C::LANES>(weights[c], j);
          if (weight == A(0) || !has_channels) continue;
          A share[WIDTH];
#pragma unroll
          for (int w = 0; w < WIDTH; ++w) share[w] = weight * grad[w];
          simt::reduce_add(at_token(base, p.grad_row, corner_token(token, width, c)) + begin, share);
        }
      }
    }
  }
}

// Adds this head's gradient of the reference points: the sum over each level's points. `along` is the derivative by
// the reference's coordinates of the caller's point, zero for a point that does not exist.
template <typename C>
DDETR_OPS_DEVICE void add_reference_grads(const Params<typename C::T>& p, const Group<C>& group, int32_t level,
                                          const typename C::A (&along)[4]) {
  using A = typename C::A;
  const int32_t last = simt::shuffle<C::LANES>(level, C::LANES - 1);
#pragma unroll 1
  for (int32_t l = simt::shuffle<C::LANES>(level, 0); l <= last; ++l) {
    A* to = p.grad_reference_points + (group.row * p.levels + l) * p.reference_dim;
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      if (r >= p.reference_dim) break;
      const A sum = simt::group_sum<C::LANES>(level == l ? along[r] : A(0));
      if (group.active && group.lane == 0) to[r] += sum;
    }
  }
}

// Classic: writes the gradients of the caller's point.
template <typename C>
DDETR_OPS_DEVICE void write_point_grads(const Params<typename C::T>& p, const Group<C>& group,
                                        const Level<typename C::A>* levels, int index,
                                        const Point<typename C::A>& point, const PointGrads<typename C::A>& grads) {
  using A = typename C::A;
  if (index >= p.points || !group.active) return;
  const int64_t entry = group.row * p.points + index;
  if (p.grad_locations) {
    store_points_dtype(p, p.grad_locations, 2 * entry, grads.x * A(point.width));
    store_points_dtype(p, p.grad_locations, 2 * entry + 1, grads.y * A(levels[point.level].height));
  }
  if (p.grad_weights) store_points_dtype(p, p.grad_weights, entry, grads.weight);
}

// Fused: writes the offset's gradient and adds the reference's. All lanes of the warp must call.
template <typename C>
DDETR_OPS_DEVICE void write_fused_point_grads(const Params<typename C::T>& p, const Group<C>& group,
                                              const Level<typename C::A>* levels, int index,
                                              const Point<typename C::A>& point,
                                              const PointGrads<typename C::A>& grads) {
  using A = typename C::A;
  const bool exists = index < p.points;
  const int64_t entry = group.row * p.points + index;
  const A norm_x = grads.x * A(point.width), norm_y = grads.y * A(levels[point.level].height);
  A along[4] = {exists ? norm_x : A(0), exists ? norm_y : A(0), A(0), A(0)};
  A offset_x = grads.x, offset_y = grads.y;
  if (p.reference_dim == 4 && exists) {
    const A* reference = reference_of(p, group, point.level);
    const A half = levels[point.level].half_per_point;
    along[2] = norm_x * half * load_points_dtype<A>(p, p.locations, 2 * entry);
    along[3] = norm_y * half * load_points_dtype<A>(p, p.locations, 2 * entry + 1);
    offset_x = norm_x * (half * reference[2]);
    offset_y = norm_y * (half * reference[3]);
  }
  if (p.grad_reference_points) add_reference_grads(p, group, point.level, along);
  if (!p.grad_locations || !exists || !group.active) return;
  store_points_dtype(p, p.grad_locations, 2 * entry, offset_x);
  store_points_dtype(p, p.grad_locations, 2 * entry + 1, offset_y);
}

// Fused: gradients of the attention weights, kept until their weighted sum is known. In shared memory, or in global
// memory if there are too many points. Only the lane that wrote an entry reads it.
template <typename C>
struct WeightGrads {
  using A = typename C::A;
  A* shared;

  DDETR_OPS_DEVICE void put(const Params<typename C::T>& p, const Group<C>& group, int index, A grad) const {
    if (!p.weight_grads) {
      shared[index] = grad;
    } else if (group.active) {
      p.weight_grads[group.row * p.points + index] = grad;
    }
  }
  DDETR_OPS_DEVICE A get(const Params<typename C::T>& p, const Group<C>& group, int index) const {
    return p.weight_grads ? p.weight_grads[group.row * p.points + index] : shared[index];
  }
};

// Gradient of the logits: a_i (g_i - sum_j a_j g_j) with the weights a and their gradients g.
template <typename C>
DDETR_OPS_DEVICE void write_logit_grads(const Params<typename C::T>& p, const Group<C>& group,
                                        const Softmax<typename C::A>& softmax, const WeightGrads<C>& weight_grads) {
  using A = typename C::A;
  const int64_t first = group.row * p.points;
  A dot = 0;
#pragma unroll 1
  for (int i = group.lane; i < p.points; i += C::LANES)
    dot += softmax(load_points_dtype<A>(p, p.weights, first + i)) * weight_grads.get(p, group, i);
  dot = simt::group_sum<C::LANES>(dot);
  if (!group.active) return;
#pragma unroll 1
  for (int i = group.lane; i < p.points; i += C::LANES) {
    const A weight = softmax(load_points_dtype<A>(p, p.weights, first + i));
    store_points_dtype(p, p.grad_weights, first + i, weight * (weight_grads.get(p, group, i) - dot));
  }
}

// How the kernel adds to grad_value, unless it is null or the points are to be sorted: then kDirect adds nothing.
enum class Scatter { kDirect, kMerged };

template <typename C>
int64_t weight_grads_bytes(int threads, const Params<typename C::T>& p) {
  if (!C::FUSED || p.weight_grads || !p.grad_weights) return 0;
  return (int64_t(threads / C::LANES) * p.points * sizeof(typename C::A) + 15) / 16 * 16;
}

// Shared memory: the levels, the weights' gradients, the merge table.
template <typename C, Scatter SCATTER>
int64_t backward_shared_bytes(int threads, const Params<typename C::T>& p) {
  const int64_t table = MergeTable<typename C::A>::bytes(threads, threads / C::LANES, p.channels);
  return level_bytes(p) + weight_grads_bytes<C>(threads, p) + (SCATTER == Scatter::kMerged ? table : 0);
}

// Copies the block's grad_output for merge_and_add.
template <typename C>
DDETR_OPS_DEVICE void share_grads(const Group<C>& group, const HeadGrad<C>& grad, typename C::A* grads) {
  using A = typename C::A;
  A* to = grads + group.index * group.channels;
#pragma unroll(C::SLICES)
  for (int s = 0; s < grad.slices(group); ++s) {
    const int channel = group.lane * C::V + s * C::SPAN;
    if (C::D == 0 && channel >= group.channels) continue;
    A slice[C::V];
    grad.slice(s, slice);
#pragma unroll
    for (int v = 0; v < C::V; ++v) to[channel + v] = slice[v];
  }
}

template <typename C, Scatter SCATTER>
DDETR_OPS_KERNEL(kBackwardThreads, 2) backward_kernel(Params<typename C::T> p) {
  using A = typename C::A;
  const int threads = simt::block_threads();
  const Level<A>* levels = read_levels(p);
  const Group<C> group(p);
  const HeadGrad<C> grad(p, group);
  unsigned char* memory = simt::shared_memory() + level_bytes(p);
  const WeightGrads<C> weight_grads{reinterpret_cast<A*>(memory) + group.index * p.points};
  if (C::FUSED && p.grad_weights && !p.weight_grads)
    memory += (group.count * p.points * sizeof(A) + 15) / 16 * 16;
  MergeTable<A> table(memory, threads, group.count, group.channels);
  if constexpr (SCATTER == Scatter::kMerged) {
    table.clear(simt::thread(), threads);
    share_grads(group, grad, table.grads);
  }
  __syncthreads();

  Softmax<A> softmax{};
  if constexpr (C::FUSED) softmax = softmax_of_group(p, group);
  const bool point_grads_needed = p.grad_locations || p.grad_weights || p.grad_reference_points;
#pragma unroll 1
  for (int first = 0; first < p.points; first += C::LANES) {
    const int index = first + group.lane;
    const Point<A> point = load_point(p, group, levels, index, softmax);
    if constexpr (SCATTER == Scatter::kMerged) {
      merge_and_add(p, group, table, point);
    } else if (p.sorted.keys) {
      record_point(p, group, levels, index, point);
    } else if (p.grad_value) {
      add_directly(p, group, point, points_from<C>(p, first));
    }
    if (!point_grads_needed) continue;
    __syncwarp();  // tells the assembler that the warp is together: else it compiles the shuffles below for both cases
    A products[4];
    exchange_products<C::LANES>(p, group, grad, point, 0, products);
    const PointGrads<A> grads = point_grads(point.cell, point.weight, products);
    if constexpr (C::FUSED) {
      write_fused_point_grads(p, group, levels, index, point, grads);
      if (p.grad_weights && index < p.points) weight_grads.put(p, group, index, grads.weight);
    } else {
      write_point_grads(p, group, levels, index, point, grads);
    }
  }
  if constexpr (C::FUSED) {
    if (p.grad_weights) write_logit_grads(p, group, softmax, weight_grads);
  }
}

}  // namespace ddetr_ops
